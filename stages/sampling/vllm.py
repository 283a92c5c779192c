"""vLLM as PPO's sampler: a copy of the base in this process, which gets the policy's adapter before each batch.

While the policy trains, vLLM sleeps: its cache is dropped, and its weights are in the host's memory (sleep level 1;
level 2 would drop them too, and vLLM cannot load them again with adapters). Written against vLLM 0.33.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.ppo import PPOConfig
from pipeline.config.sampler import BUILTIN, RANKS, TEMPERATURES
from pipeline.engine.environment import ALLOCATOR
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.actor import Actor
from stages.models.adapters import save_adapter
from stages.models.bank import ActorBank
from stages.models.loading import dtype_of, weights_of
from stages.sampling.decoding import Record
from stages.sampling.episodes import Episodes
from stages.sampling.sampler import Sampler, SamplingParams, Share

SLEEP = 1
EXPANDABLE = "expandable_segments:True"


def start(config: PPOConfig, base: Artifact, bank: ActorBank, device: str, seed: int) -> Any:
    """A sleeping `vllm.LLM` with the weights of a `base` artifact, and room for one adapter.

    Raises `StageError` when vLLM cannot load them.
    """
    # A process of its own would hold a second CUDA context. Statistics would be sent over the network.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    _use_plain_segments()
    from vllm import LLM

    source, revision = weights_of(base)
    adapters: dict[str, Any] = bank.model.peft_config
    largest = max(adapter.r for adapter in adapters.values())
    batch = config.batch_size if config.rollout_batch_size is None else config.rollout_batch_size
    try:
        engine = LLM(
            model=source,
            revision=revision,
            skip_tokenizer_init=True,  # tokens go in and come out
            dtype=str(dtype_of(base.json("base.json")["dtype"], device)).removeprefix("torch."),
            seed=seed,
            gpu_memory_utilization=config.vllm_gpu_memory_utilization,
            max_model_len=config.max_prompt_length + config.response_length,
            max_num_seqs=batch,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=next(rank for rank in RANKS if rank >= largest),
            enable_sleep_mode=True,
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from: after the temperature
        )
    except (ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(
            f"vLLM cannot load the base: {reason}",
            where="ppo.sampler",
            hint=f"{BUILTIN}; if memory is short, change ppo.vllm_gpu_memory_utilization",
        ) from error
    engine.sleep(level=SLEEP)
    return engine


def _use_plain_segments() -> None:
    """Turns off the CUDA allocator's expandable segments, which the pool of vLLM's sleep mode does not support."""
    for name in ALLOCATOR:
        values = [value for value in os.environ.get(name, "").split(",") if value and value != EXPANDABLE]
        os.environ.pop(name, None)
        if values:
            os.environ[name] = ",".join(values)
    if torch.cuda.is_available():
        torch._C._accelerator_setAllocatorSettings("expandable_segments:False")


class VLLMSampler(Sampler):
    """Samples with vLLM from a role of an `ActorBank`, which must be active.

    Each response has its own seed, drawn from the stage's, so a run that resumes asks for the same random numbers.
    In vLLM rounding depends on the batch, so tokens may differ nevertheless.

    Args:
        engine: a sleeping `vllm.LLM` (`start`).
        bank: holds the adapters.
        pad_id: pads the episodes.
    """

    native = False

    def __init__(self, engine: Any, bank: ActorBank, pad_id: int) -> None:
        self._engine, self._bank, self._pad_id = engine, bank, pad_id
        self._pushed = 0

    def sample(
        self,
        actor: Actor,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seed: int | torch.Generator,
        *,
        share: Share | None = None,
        record: bool = False,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> Episodes:
        """As `Sampler.sample`. `record` records log-probs.

        Raises `ValueError` for parameters that vLLM would silently change, or whose log-probs it does not return.
        """
        low, _ = TEMPERATURES
        if 0 < params.temperature < low:
            raise ValueError(f"vLLM samples at temperatures of 0 or at least {low}, not {params.temperature}")
        if record and (params.top_k or params.top_p < 1):
            raise ValueError("vLLM returns the log-probs after top_k and top_p, and those before are recorded")
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        seeds = torch.randint(2**31, (len(prompts) if share is None else share.total,), generator=generator)
        outputs = self._generate(prompts, params, seeds if share is None else seeds[share.rows], record)
        on_batch(len(prompts))
        responses = [list(output.token_ids) for output in outputs]
        sampled = None
        if record:
            logp_BT = torch.zeros((len(prompts), params.max_new_tokens))
            for row, output in zip(logp_BT, outputs, strict=True):
                logps = [step[token].logprob for token, step in zip(output.token_ids, output.logprobs, strict=True)]
                row[: len(logps)] = torch.tensor(logps)
            zeros = Record.empty((len(prompts), params.max_new_tokens), actor.device)
            sampled = Record(logp_BT.to(actor.device), zeros.entropy_BT, zeros.values_BT)
        return Episodes.build(prompts, responses, params.stop_ids, self._pad_id, actor.device, sampled)

    def _generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds_N: torch.Tensor, record: bool
    ) -> list[Any]:
        """One `vllm.CompletionOutput` for each prompt."""
        import vllm

        requests = [
            vllm.SamplingParams(
                max_tokens=params.max_new_tokens,
                temperature=params.temperature,
                top_k=params.top_k,
                top_p=params.top_p,
                seed=seed,
                stop_token_ids=sorted(params.stop_ids),
                ignore_eos=True,  # vLLM would add its own stop tokens
                logprobs=0 if record else None,  # that of the sampled token alone
                detokenize=False,
            )
            for seed in seeds_N.tolist()
        ]
        tokens = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what training's allocator keeps is not free to vLLM
        with tempfile.TemporaryDirectory() as folder:
            adapter = self._adapter(Path(folder))
            self._engine.wake_up()
            try:
                done = self._engine.generate(tokens, requests, use_tqdm=False, lora_request=adapter)
            finally:
                self._engine.sleep(level=SLEEP)
        return [request.outputs[0] for request in done]

    def _adapter(self, folder: Path) -> Any:
        """The adapter of the active role, in a file, because vLLM takes no tensors. It gets a new number each time:
        vLLM does not read an adapter again, and caches what it computed with it."""
        from vllm.lora.request import LoRARequest

        role = self._bank.role
        assert role is not None
        self._pushed += 1
        name = f"{role}-{self._pushed}"
        # Embeddings are not adapted; to find out, peft would ask the Hub.
        save_adapter(self._bank.model, role, folder, name, save_embedding_layers=False)
        return LoRARequest(lora_name=name, lora_int_id=self._pushed, lora_path=str(folder / name))
