"""The stages: each module's `run` follows the contract in `pipeline.engine.stage`.

Importing this package sets the libraries' tone, before any of them is imported: what they print about their own
workings is not for the person who runs a recipe. Stages report through their `RunContext`.
"""

import logging
import os
import warnings

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# torchao, where it is installed, is imported by peft and names what it cannot load on this machine.
for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
# trl 1.16 and peft 0.21 still call what transformers 5.23 has renamed; a user can do nothing about it.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")
