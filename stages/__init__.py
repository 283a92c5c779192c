"""The stages: each module's `run` follows the contract in `pipeline.stage`.

Importing this package sets the libraries' tone, before any of them is imported: what they print about their own
workings is not for the person who runs a recipe. Stages report through their `RunContext`.
"""

import logging
import os
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# trl 1.16 still calls what transformers 5.23 has renamed: https://github.com/huggingface/trl/issues
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")
