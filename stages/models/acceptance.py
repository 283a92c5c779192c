"""Which passes are right for a model: decided for its architecture, on a small random copy of it.

Each pass is compared in float32 with the copy's own forward over each row alone: right-padded rows, and decoding
after left-padded prompts that drops rows on the way, at lengths past every window and original context. A pass that
fails there is compared again within them, and is then used for rows that short. (Real weights in 16 bits would hide
a mistake behind rounding, and a few tokens would not reach past a window.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from pipeline.errors import StageError
from stages.models.fast.plain import PlainDecoder
from stages.models.miniature import SPECIAL, NoMiniature, miniature, reach
from stages.models.passes import OwnPass, Pass
from stages.models.precision import exact

Project = Callable[[PreTrainedModel, Tensor], Tensor]
"""Logits (N, V) of hidden states (N, H), as `Actor.project` makes them."""

PROMPTS, NEW = (5, 17, 9, 22), 10
"""Lengths of the test's prompts, and how many tokens follow each."""
DROPS = {3: [0, 2, 3], 6: [1, 2]}
"""Before which of them rows are dropped, and which of the rows then left stay."""
EXACT, ROUNDED = 1e-4, 0.25
"""Tolerances of `relative_error` in float32 and in coarser arithmetic. Right computations differ by 1e-6 to 1e-5 in
float32 and, on SmolLM2-135M's 30 layers, by 4 epsilons in 16 bits, which is 0.03 in bfloat16 (errors add up as a
random walk: 4 times as many layers double that). Wrong ones differ by 0.01 to 1.4 on the copies, whose weights are
made to show it."""


@dataclass(frozen=True)
class Passes:
    """The passes that are right for a model.

    Attributes:
        plain: rows of up to this many positions may go through the plain pass; 0: none.
        own: rows of up to this many may go through the model's own; infinity: of any length.
        decoding: how its own pass decodes: with its cache, or by a pass over the whole rows for each token.
    """

    plain: float
    own: float
    decoding: Literal["cached", "full"] = "cached"

    @property
    def longest(self) -> float:
        """Positions of the longest row that can be computed."""
        return max(self.plain, self.own)

    @property
    def name(self) -> str:
        """`plain`, `own` or `own, without a cache`, with lengths where they matter."""
        own = "own" if self.decoding == "cached" else "own, without a cache"
        if not self.plain:
            return own if self.own == math.inf else f"{own}, up to {self.own} tokens"
        if self.plain < self.own:
            return f"plain up to {self.plain} tokens, {own} beyond"
        return "plain" if self.plain == math.inf else f"plain, up to {self.plain} tokens"


OWN = Passes(0, math.inf)
"""The model's own pass, without a test."""

_accepted: dict[tuple[str, str], Passes] = {}


def accepted_passes(lm: PreTrainedModel, project: Project) -> Passes:
    """The passes that are right for a model; tested once for each config.

    Raises `StageError` when none is, or when its logits are not `project` of its last hidden states.
    """
    values = {
        n: v for n, v in lm.config.to_dict().items() if n not in ("_name_or_path", "quantization_config", "dtype")
    }
    key = type(lm).__qualname__, json.dumps(values, sort_keys=True, default=str)
    if key not in _accepted:
        with torch.autocast("cpu", enabled=False):
            _accepted[key] = _test(lm, project)
    return _accepted[key]


@torch.no_grad()
def _test(lm: PreTrainedModel, project: Project) -> Passes:
    most = reach(lm.config.get_text_config(decoder=True))
    try:
        far = _Trial(miniature(lm))
        near = _Trial(miniature(lm, within=True)) if most < math.inf else far
    except NoMiniature:
        # The model itself instead, as far as its precision shows a mistake: too little for the plain pass.
        try:
            far = near = _Trial(lm, tolerance(lm))
        except Exception as error:
            raise _refused(lm, f"its forward pass fails: {error}") from error

    def up_to(make: Callable[[PreTrainedModel], Pass]) -> float:
        if far.passes(make):
            return math.inf
        return most if near is not far and near.passes(make) else 0

    plain = up_to(PlainDecoder) if far.model is not lm else 0
    decoding: Literal["cached", "full"]
    for decoding in ("cached", "full"):
        own = up_to(partial(OwnPass, decoding=decoding))
        if own:
            break
    if not plain and not own:
        raise _refused(lm, "what it makes of a token depends on later tokens, or on other rows of its batch")
    if not near.projects(project):
        raise _refused(lm, "its logits are more than its head applied to its last hidden states")
    return Passes(plain, own, decoding)


def _refused(lm: PreTrainedModel, why: str) -> StageError:
    return StageError(
        f"{type(lm).__name__} cannot be trained here: {why}",
        where="base.model",
        hint="use a decoder-only language model, such as a Llama, Qwen, Mistral, Gemma or SmolLM",
    )


class _Trial:
    """A model, small or not, and what its own forward makes of each of the test's rows alone."""

    def __init__(self, model: PreTrainedModel, tolerance: float = EXACT) -> None:
        self.model, self._tolerance = model, tolerance
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(SPECIAL, _vocabulary(model), (n + NEW,), generator=generator) for n in PROMPTS]
        self._rows = [row.to(model.device) for row in rows]
        self._alone = [_own(model, row[None])[0] for row in self._rows]

    def projects(self, project: Project) -> bool:
        """Whether the model's logits are `project` of its last hidden states."""
        try:
            logits = self.model(input_ids=self._rows[0][None], use_cache=False).logits[0]
            return self._agrees(project(self.model, self._alone[0]), logits)
        except Exception:
            return False

    def passes(self, make: Callable[[PreTrainedModel], Pass]) -> bool:
        """Whether a pass gives what the model's own forward does. It does not where it raises anything: passes
        assume things about modules, arguments and caches that a model may break in any manner."""
        try:
            candidate = make(self.model)
            return self._whole_rows(candidate) and self._decoding(candidate)
        except Exception:
            return False

    def _whole_rows(self, candidate: Pass) -> bool:
        hidden = candidate.hidden(pad_sequence(self._rows, batch_first=True))
        return all(self._agrees(h[: len(row)], row) for h, row in zip(hidden, self._alone, strict=True))

    def _decoding(self, candidate: Pass) -> bool:
        prompts = [row[:n] for row, n in zip(self._rows, PROMPTS, strict=True)]
        ids = pad_sequence(prompts, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left").bool()
        steps = candidate.decode(ids, mask, NEW)
        live = list(range(len(PROMPTS)))
        hidden, found, expected = steps.start(), [], []
        for t in range(NEW):
            if t:
                if t in DROPS:
                    steps.keep(torch.tensor(DROPS[t], device=ids.device))
                    live = [live[i] for i in DROPS[t]]
                hidden = steps.next(torch.stack([self._rows[i][PROMPTS[i] + t - 1] for i in live]))
            found.append(hidden)
            expected.append(torch.stack([self._alone[i][PROMPTS[i] + t - 1] for i in live]))
        return self._agrees(torch.cat(found), torch.cat(expected))

    def _agrees(self, ours: Tensor, theirs: Tensor) -> bool:
        return relative_error(ours, theirs) <= self._tolerance


def _own(lm: Any, ids_BL: Tensor) -> Tensor:
    hidden: Tensor = lm.get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state
    return hidden


def plain_decoder(lm: PreTrainedModel, up_to: float) -> PlainDecoder | None:
    """The plain pass over a model for whose architecture it is right, in rows of `up_to` positions. None where it
    still does not agree with the model's own pass, as when something has replaced one of its layers."""
    ids = spread_tokens(lm, up_to)
    training = lm.training
    try:
        lm.eval()
        with torch.no_grad():
            decoder = PlainDecoder(lm)
            error = relative_error(decoder.hidden(ids)[0], _own(lm, ids)[0])
    except (AttributeError, RuntimeError, TypeError, IndexError):
        return None
    finally:
        lm.train(training)
    return decoder if error <= tolerance(lm) else None


def spread_tokens(lm: PreTrainedModel, up_to: float = math.inf) -> Tensor:
    """A row (1, L) of at most 32 tokens from all over the vocabulary: its first ones are special, and passes in
    16 bits agree least on those."""
    width = int(min(up_to, 32, getattr(lm.config.get_text_config(), "max_position_embeddings", 32)))
    return torch.arange(1, width + 1, device=lm.device)[None] * _vocabulary(lm) // (width + 2)


def _vocabulary(lm: Any) -> int:
    """How many tokens a model embeds."""
    return len(lm.get_input_embeddings().weight)


def tolerance(lm: PreTrainedModel) -> float:
    """How far two right computations of a real model may be apart (`relative_error`)."""
    return EXACT if exact(lm) and not torch.is_autocast_enabled(lm.device.type) else ROUNDED


def relative_error(ours_NH: Tensor, theirs_NH: Tensor) -> float:
    """Root mean square of the differences over that of `theirs`, each dimension's mean left out."""
    ours, theirs = ours_NH.float(), theirs_NH.float()
    return float((ours - theirs).norm() / (theirs - theirs.mean(0)).norm().clamp(min=1e-12))
