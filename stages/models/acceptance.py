"""Determines which passes are correct for a model, by testing them on a small random copy of its architecture.

Each pass is compared in float32 with the copy's own forward over each row alone. The test covers right-padded rows,
and decoding after left-padded prompts that drops rows on the way. Its rows are longer than every sliding window and
original context. A pass that fails is tested again on rows within these limits, and if it succeeds, it is used for
rows up to that length. (With real weights in 16 bits, rounding would hide mistakes, and a few tokens would not
exceed a window.)
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
from stages.models.passes import OwnPass, Pass, trunk_of
from stages.models.precision import exact

Project = Callable[[PreTrainedModel, Tensor], Tensor]
"""Computes logits (N, V) from hidden states (N, H), as `Actor.project` does."""

PROMPTS, NEW = (5, 17, 9, 22), 10
"""Lengths of the test prompts, and the number of tokens decoded after each."""
DROPS = {3: [0, 2, 3], 6: [1, 2]}
"""Decoding steps before which rows are dropped, with the indices of the remaining rows to keep."""
EXACT, ROUNDED = 1e-4, 0.25
"""Tolerances of `relative_error` in float32 and in coarser arithmetic.

Correct passes differ by 1e-6 to 1e-5 in float32 and, on SmolLM2-135M's 30 layers, by 4 epsilons in 16 bits, which
is 0.03 in bfloat16 (errors add up as a random walk: 4 times as many layers double that). Incorrect passes differ by
0.01 to 1.4 on the copies, whose weights are chosen to amplify mistakes."""


@dataclass(frozen=True)
class Passes:
    """The passes that are correct for a model.

    Attributes:
        plain: the longest row, in positions, for which the plain pass is correct; 0: none.
        own: the same for the model's own pass; infinity: any length.
        decoding: how the model's own pass decodes: with its cache, or with a pass over the full rows per token.
    """

    plain: float
    own: float
    decoding: Literal["cached", "full"] = "cached"

    @property
    def longest(self) -> float:
        """The longest row that can be computed, in positions."""
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
"""The model's own pass, untested."""

_accepted: dict[tuple[str, str], Passes] = {}


def accepted_passes(lm: PreTrainedModel, project: Project) -> Passes:
    """The passes that are correct for a model. Tested once per config.

    Raises `StageError` when no pass is correct, or when the model's logits are not `project` of its last hidden
    states.
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
        # Test the model itself. Its precision may hide mistakes, so the plain pass is not considered.
        try:
            far = near = _Trial(lm, tolerance(lm))
        except Exception as error:
            raise _refused(lm, f"its forward pass fails: {error}") from error

    def longest_row(make: Callable[[PreTrainedModel], Pass]) -> float:
        if far.passes(make):
            return math.inf
        return most if near is not far and near.passes(make) else 0

    plain = longest_row(PlainDecoder) if far.model is not lm else 0
    decoding: Literal["cached", "full"]
    for decoding in ("cached", "full"):
        own = longest_row(partial(OwnPass, decoding=decoding))
        if own:
            break
    if not plain and not own:
        raise _refused(lm, "the output at a token depends on later tokens, or on other rows of the batch")
    if not near.projects(project):
        raise _refused(lm, "its logits are not its output layer applied to its last hidden states")
    return Passes(plain, own, decoding)


def _refused(lm: PreTrainedModel, reason: str) -> StageError:
    return StageError(
        f"{type(lm).__name__} cannot be trained here: {reason}",
        where="base.model",
        hint="use a decoder-only language model, such as a Llama, Qwen, Mistral, Gemma or SmolLM",
    )


class _Trial:
    """A model to test passes on, with the hidden states of its own forward over each test row alone."""

    def __init__(self, model: PreTrainedModel, tolerance: float = EXACT) -> None:
        self.model, self._tolerance = model, tolerance
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(SPECIAL, _vocabulary(model), (n + NEW,), generator=generator) for n in PROMPTS]
        self._rows = [row.to(model.device) for row in rows]
        self._expected = [_own_hidden(model, row[None])[0] for row in self._rows]

    def projects(self, project: Project) -> bool:
        """Whether the model's logits are `project` of its last hidden states."""
        try:
            logits = self.model(input_ids=self._rows[0][None], use_cache=False).logits[0]
            return self._agrees(project(self.model, self._expected[0]), logits)
        except Exception:
            return False

    def passes(self, make: Callable[[PreTrainedModel], Pass]) -> bool:
        """Whether a pass agrees with the model's own forward. Any exception counts as disagreement: passes make
        assumptions about modules, arguments and caches that a model may break in any way."""
        try:
            candidate = make(self.model)
            return self._agrees_on_rows(candidate) and self._agrees_in_decoding(candidate)
        except Exception:
            return False

    def _agrees_on_rows(self, candidate: Pass) -> bool:
        hidden = candidate.hidden(pad_sequence(self._rows, batch_first=True))
        return all(self._agrees(h[: len(row)], row) for h, row in zip(hidden, self._expected, strict=True))

    def _agrees_in_decoding(self, candidate: Pass) -> bool:
        prompts = [row[:n] for row, n in zip(self._rows, PROMPTS, strict=True)]
        ids = pad_sequence(prompts, batch_first=True, padding_side="left")
        mask = pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True, padding_side="left").bool()
        steps = candidate.decode(ids, mask, NEW)
        live = list(range(len(PROMPTS)))
        hidden, decoded, expected = steps.start(), [], []
        for t in range(NEW):
            if t:
                if t in DROPS:
                    steps.keep(torch.tensor(DROPS[t], device=ids.device))
                    live = [live[i] for i in DROPS[t]]
                hidden = steps.next(torch.stack([self._rows[i][PROMPTS[i] + t - 1] for i in live]))
            decoded.append(hidden)
            expected.append(torch.stack([self._expected[i][PROMPTS[i] + t - 1] for i in live]))
        return self._agrees(torch.cat(decoded), torch.cat(expected))

    def _agrees(self, ours: Tensor, theirs: Tensor) -> bool:
        return relative_error(ours, theirs) <= self._tolerance


def _own_hidden(lm: Any, ids_BL: Tensor) -> Tensor:
    hidden: Tensor = trunk_of(lm)(input_ids=ids_BL, use_cache=False).last_hidden_state
    return hidden


def plain_decoder(lm: PreTrainedModel, up_to: float) -> PlainDecoder | None:
    """The plain pass over a model whose architecture it is correct for, in rows of `up_to` positions. None if it
    still disagrees with the model's own pass, for example because one of the layers was replaced."""
    ids = spread_tokens(lm, up_to)
    training = lm.training
    try:
        lm.eval()
        with torch.no_grad():
            decoder = PlainDecoder(lm)
            error = relative_error(decoder.hidden(ids)[0], _own_hidden(lm, ids)[0])
    except (AttributeError, RuntimeError, TypeError, IndexError):
        return None
    finally:
        lm.train(training)
    return decoder if error <= tolerance(lm) else None


def spread_tokens(lm: PreTrainedModel, up_to: float = math.inf) -> Tensor:
    """A row (1, L) of at most 32 tokens spread over the vocabulary. The first tokens of a vocabulary are special,
    and 16-bit passes differ most on them."""
    width = int(min(up_to, 32, getattr(lm.config.get_text_config(), "max_position_embeddings", 32)))
    return torch.arange(1, width + 1, device=lm.device)[None] * _vocabulary(lm) // (width + 2)


def _vocabulary(lm: Any) -> int:
    """The number of tokens that a model embeds."""
    return len(lm.get_input_embeddings().weight)


def tolerance(lm: PreTrainedModel) -> float:
    """The largest `relative_error` between two correct computations of a real model."""
    return EXACT if exact(lm) and not torch.is_autocast_enabled(lm.device.type) else ROUNDED


def relative_error(ours_NH: Tensor, theirs_NH: Tensor) -> float:
    """Root mean square of the differences over that of `theirs`, after subtracting each dimension's mean from
    `theirs`."""
    ours, theirs = ours_NH.float(), theirs_NH.float()
    return float((ours - theirs).norm() / (theirs - theirs.mean(0)).norm().clamp(min=1e-12))
