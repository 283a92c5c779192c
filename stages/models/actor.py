"""What may be asked of a causal LM: hidden states, log-probs, scalars, and responses token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.errors import StageError
from pipeline.memory.limits import positions_at_once
from stages.models.acceptance import (
    OWN,
    Passes,
    accepted_passes,
    plain_decoder,
    relative_error,
    spread_tokens,
    tolerance,
)
from stages.models.fast.wide import logits_of
from stages.models.heads import ScalarHead
from stages.models.logprobs import token_logprobs
from stages.models.passes import OwnPass, Pass, Steps
from stages.models.precision import computing

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call the bound that `cap tanh(logits / cap)` puts on logits."""


class Actor:
    """A causal LM and, if it has one, its scalar head.

    Args:
        route: names what is active in a model that several roles share; a gradient that arrives under another
            route than its forward had is an error.
        passes: those that are right for the model; None: they are tested.

    Raises `StageError` when no pass is right for the model.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        head: ScalarHead | None = None,
        route: Callable[[], Any] = lambda: None,
        passes: Passes | None = None,
    ) -> None:
        self.lm, self._head, self._route = lm, head, route
        self._accepted = passes or accepted_passes(
            lm, lambda copy, hidden_NH: Actor(copy, passes=OWN).project(hidden_NH)
        )
        self._own = OwnPass(lm, self._accepted.decoding)
        self._plain = plain_decoder(lm, self._accepted.plain) if self._accepted.plain else None

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """As `stages.models.precision.computing`. `decode` and its steps are called inside it."""
        return computing(self.lm)

    def hidden(self, ids_BL: Tensor) -> Tensor:
        """Last hidden states (B, L, H) of right-padded rows. Causal attention never looks right, so that padding
        needs no mask; what stands at padded positions is meaningless."""
        with self.computing():
            hidden = self._pass(ids_BL.shape[1]).hidden(ids_BL)
        if hidden.requires_grad:
            before = self._route()

            def check(_: Tensor) -> None:
                if self._route() != before:
                    raise RuntimeError(
                        f"backward under route {self._route()}, forward under {before}: "
                        "call backward before the role's context ends"
                    )

            hidden.register_hook(check)
        return hidden

    def decode(self, ids_BL: Tensor, mask_BL: Tensor, length: int) -> Steps:
        """Decoding of at most `length` tokens after left-padded prompts; the mask is true at tokens. To be called,
        as its steps are, inside `computing()`."""
        return self._pass(ids_BL.shape[1] + length).decode(ids_BL, mask_BL, length)

    @property
    def passes(self) -> Passes:
        """The passes that the model is computed with."""
        return self._accepted if self._plain else replace(self._accepted, plain=0)

    def _pass(self, length: int) -> Pass:
        """The pass for rows of so many positions."""
        if self._plain is not None and length <= self._accepted.plain:
            return self._plain
        if length > self._accepted.own:
            raise StageError(
                f"a row has {length} tokens, and what {type(self.lm).__name__} makes of more than "
                f"{self._accepted.longest:g} depends on the other rows of its batch",
                where="base.model",
                hint="lower the recipe's max_prompt_length, response_length and max_length",
            )
        return self._own

    def project(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V) of hidden states, as the model's own forward makes them, but in float32 where it computes
        in 16 bits (`stages.models.fast.wide`)."""
        config = self.lm.config.get_text_config()
        with self.computing():
            logits = logits_of(self.lm.get_output_embeddings(), hidden_NH)
        scale = _number(config, "logit_scale") * _number(config, "lm_head_multiplier")
        scale /= _number(config, "logits_scaling")
        if scale != 1:
            logits = logits * scale
        cap = next((getattr(config, name) for name in CAPS if hasattr(config, name)), None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def logprobs(
        self,
        hidden_NH: Tensor,
        targets_N: Tensor,
        *,
        temperature: float,
        chunk_size: int | None,
        entropy: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """As `stages.models.logprobs.token_logprobs`; without a chunk size, as many positions as do little harm."""
        if chunk_size is None:
            chunk_size = positions_at_once(self.lm.get_output_embeddings().weight.shape[0], hidden_NH.device.type)
        return token_logprobs(
            hidden_NH, targets_N, self.project, temperature=temperature, chunk_size=chunk_size, entropy=entropy
        )

    @property
    def has_head(self) -> bool:
        return self._head is not None

    def scalar(self, hidden: Tensor) -> Tensor:
        """The role's scalar head on hidden states (..., H) -> (...)."""
        if self._head is None:
            raise RuntimeError("this role has no scalar head")
        return self._head(hidden)


def _number(config: Any, name: str) -> float:
    return getattr(config, name, None) or 1.0


def check_projection(actor: Actor, ids_BL: Tensor | None = None) -> None:
    """Compares `hidden` and `project` with the model's own forward, as far as its precision shows a difference.

    Args:
        ids_BL: a row of ordinary text, of which the start is taken; None: tokens from all over the vocabulary.

    Raises `StageError` when they differ.
    """
    spread_BL = spread_tokens(actor.lm, actor.passes.longest)
    ids_BL = spread_BL if ids_BL is None else ids_BL[:, : spread_BL.shape[1]]
    with torch.no_grad(), actor.computing():
        ours = actor.project(actor.hidden(ids_BL)[0])
        theirs = actor.lm(input_ids=ids_BL, use_cache=False).logits[0]
    error = relative_error(ours, theirs)
    if not error <= tolerance(actor.lm):
        raise StageError(
            f"{type(actor.lm).__name__} computes its logits in a way that is not supported here: they differ from "
            f"the model's own by {error:.2g} of their spread",
            where="base.model",
            hint="use a model whose logits are its head applied to its last hidden states",
        )
