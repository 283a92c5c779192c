"""llama.cpp through its Python binding xllamacpp: tokenization and greedy continuations."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A GGUF file loaded on the CPU by llama.cpp's server in this process."""

    def __init__(self, gguf: Path, context: int = 128) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, 0
        params.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(params)

    def ask(self, path: str, **body: Any) -> Any:
        address = f"{self.server.listening_address}/{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text: str) -> list[int]:
        return list(self.ask("tokenize", content=text, add_special=False, parse_special=True)["tokens"])

    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """Ids of the greedy continuation: at most `tokens`, without the end-of-generation token."""
        answer = self.ask(
            "completion",
            prompt=list(prompt),
            n_predict=tokens,
            temperature=0.0,
            samplers=["temperature"],
            return_tokens=True,
            cache_prompt=False,
        )
        return list(answer["tokens"])
