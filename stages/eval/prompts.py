"""The held-out prompts that results may be reported on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from data.schema import prompt_key
from pipeline.engine.rounds import by_round
from pipeline.engine.stage import Artifact
from stages.left_out import LeftOut
from stages.models.text import Codec
from stages.ppo.artifact import POINTS
from stages.sampling.prompts import EncodedPrompt, load_prompts


def unseen_prompts(
    inputs: Mapping[str, Artifact], codec: Codec, max_length: int, advance: Callable[[], None] = lambda: None
) -> tuple[list[EncodedPrompt], LeftOut]:
    """Those that no evaluation point of PPO used, and what was left out because it is too long: a checkpoint
    selected on a prompt cannot be reported on it. `advance` is called for each held-out prompt."""
    prompts, left_out = load_prompts(
        inputs["data"], codec, "eval", max_length, key="eval.max_prompt_length", advance=advance
    )
    points = (point for policy in by_round(inputs, "ppo").values() for point in policy.jsonl(POINTS))
    used = {prompt_key(prompt) for point in points for prompt in point["prompts"]}
    return [prompt for prompt in prompts if prompt_key(prompt.messages) not in used], left_out
