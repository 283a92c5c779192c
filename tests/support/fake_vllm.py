"""A stand-in for vLLM 0.33: the part of its interface that is used here, with its defaults and refusals.

It decodes with transformers' own forward over all tokens, from the folders of the base and of the adapter.
Like vLLM, it reads an adapter once per id, cannot generate while it sleeps, raises low temperatures silently, and
stops at the model's own EOS unless `ignore_eos` is set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if 0 < self.temperature < 1e-2:
            self.temperature = 1e-2
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0 < self.top_p <= 1 or self.top_k < -1:
            raise ValueError("top_p must be in (0, 1]")
        if not all(type(token) is int for token in self.stop_token_ids or ()):
            raise ValueError("stop_token_ids must contain only integers")


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None
    tensorizer_config_dict: dict[str, Any] | None = None
    load_inplace: bool = False

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"


@dataclass(frozen=True)
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass
class EngineArgs:
    """The keyword arguments of `LLM` that are fields of vLLM's `EngineArgs`."""

    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    enable_sleep_mode: bool = False
    logprobs_mode: str = "raw_logprobs"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    enable_prefix_caching: bool | None = None
    max_num_batched_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_lora_rank not in RANKS:
            raise ValueError(f"max_lora_rank: input should be one of {RANKS}")
        if self.logprobs_mode not in ("raw_logits", "raw_logprobs", "processed_logits", "processed_logprobs"):
            raise ValueError("logprobs_mode")


class LLM:
    """Attributes: `instances`, all that were made; `calls`, what was done to this one."""

    instances: ClassVar[list[LLM]] = []

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool = False,
        **kwargs: Any,
    ) -> None:
        self.arguments = EngineArgs(**kwargs)
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype}")
        self.dtype, self.revision, self.seed, self.utilization = dtype, revision, seed, gpu_memory_utilization
        self.skip_tokenizer_init = skip_tokenizer_init
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._adapters: dict[int, str] = {}
        self.asleep = False
        self.calls: list[str] = []
        LLM.instances.append(self)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        if not self.arguments.enable_sleep_mode:
            raise ValueError("Sleep mode is not enabled.")
        assert level == 1, "level 2 drops the weights, and reload_weights fails with LoRA"
        self.asleep = True
        self.calls.append("sleep")

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.asleep = False
        self.calls.append("wake_up")

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        assert not self.asleep, "the engine is asleep"
        self.calls.append("generate")
        many = sampling_params if isinstance(sampling_params, Sequence) else [sampling_params] * len(prompts)
        if len(many) != len(prompts):
            raise ValueError("The lengths of prompts and params must be the same.")
        model = self._with(lora_request)
        return [
            RequestOutput(str(number), prompt["prompt_token_ids"], [self._one(model, prompt, params)])
            for number, (prompt, params) in enumerate(zip(prompts, many, strict=True))
        ]

    def _with(self, request: LoRARequest | None) -> Any:
        if request is None:
            return self._model
        if not self.arguments.enable_lora:
            raise ValueError("LoRA is not enabled!")
        name = str(request.lora_int_id)
        if request.lora_int_id not in self._adapters:
            if not Path(request.lora_path, "adapter_config.json").exists():
                raise ValueError(
                    f"Loading lora {request.lora_name} failed: No adapter found for {request.lora_path}"
                )
            if isinstance(self._model, PeftModel):
                self._model.load_adapter(request.lora_path, adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, request.lora_path, adapter_name=name)
            rank = self._model.peft_config[name].r
            if rank > self.arguments.max_lora_rank:
                raise ValueError(f"LoRA rank {rank} is greater than max_lora_rank {self.arguments.max_lora_rank}.")
            self._adapters[request.lora_int_id] = request.lora_path
        self._model.set_adapter(name)
        return self._model

    @torch.no_grad()
    def _one(self, model: Any, prompt: dict[str, list[int]], params: SamplingParams) -> CompletionOutput:
        assert not (params.detokenize and self.skip_tokenizer_init), "there is no tokenizer to detokenize with"
        tokens, limit = list(prompt["prompt_token_ids"]), self.arguments.max_model_len or 10**9
        if len(tokens) >= limit:
            raise ValueError(
                f"The prompt ({len(tokens)} tokens) is longer than the maximum model length of {limit}"
            )
        stops = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            stops.add(self._model.config.eos_token_id)
        generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
        start, logprobs = len(tokens), []
        while len(tokens) - start < (params.max_tokens or limit) and len(tokens) < limit:
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].float()
            raw, processed = logits.log_softmax(-1), (logits / (params.temperature or 1.0)).log_softmax(-1)
            if params.temperature == 0:
                token = int(logits.argmax())
            else:
                noise = torch.empty_like(processed).exponential_(generator=generator)
                token = int((processed.exp() / noise).argmax())
            shown = processed if self.arguments.logprobs_mode == "processed_logprobs" else raw
            logprobs.append({token: Logprob(float(shown[token]), 1)})
            tokens.append(token)
            if token in stops:
                break
        kept = None if params.logprobs is None else logprobs
        return CompletionOutput(0, "", tokens[start:], None, kept)


def install(monkeypatch: Any) -> type[LLM]:
    """Makes `import vllm` give this module for the duration of a test."""
    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LLM, "instances", [])
    return LLM
