"""The interface to a causal LM: hidden states, log-probs, scalars, and token-by-token decoding."""

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
from stages.models.fast.packing import Packing
from stages.models.fast.plain import PlainDecoder
from stages.models.fast.slots import PlainSlots
from stages.models.fast.wide import logits_of
from stages.models.heads import ScalarHead
from stages.models.logprobs import token_logprobs
from stages.models.passes import OwnPass, Pass, Steps
from stages.models.precision import computing

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Config names of the soft cap: logits become `cap * tanh(logits / cap)`."""


class Actor:
    """A causal LM with an optional scalar head.

    Args:
        route: returns what is active in a model that several roles share. A backward pass under a different route
            than its forward pass raises `RuntimeError`.
        passes: the passes to use; None: determined by `stages.models.acceptance`.

    Raises `StageError` when no pass is correct for the model.
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
        """As `stages.models.precision.computing`. Call `decode` and its steps inside it."""
        return computing(self.lm)

    def hidden(self, ids_BL: Tensor, packing: Packing | None = None) -> Tensor:
        """Last hidden states (B, L, H) of right-padded rows. Values at padded positions are meaningless.

        Causal attention never reads later positions, so right padding needs no mask.

        Args:
            packing: the places of the tokens, so that a pass that can do so leaves out the padding.
        """
        with self.computing():
            row_pass = self._pass(ids_BL.shape[1])
            if isinstance(row_pass, PlainDecoder):
                hidden = row_pass.hidden(ids_BL, packing)
            else:
                hidden = row_pass.hidden(ids_BL)
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
        """Decodes at most `length` tokens after left-padded prompts; the mask is true at tokens. Call it and its
        steps inside `computing()`."""
        return self._pass(ids_BL.shape[1] + length).decode(ids_BL, mask_BL, length)

    def has_slots(self, length: int) -> bool:
        """Whether `slots` can hold rows of `length` positions."""
        return self._plain is not None and length <= self._accepted.plain

    def slots(self, rows: int, length: int) -> PlainSlots:
        """Slots for `rows` rows of at most `length` positions. Use them inside `computing()`."""
        assert self._plain is not None
        return PlainSlots(self._plain, rows, length, self.device)

    @property
    def passes(self) -> Passes:
        """The passes in use."""
        return self._accepted if self._plain else replace(self._accepted, plain=0)

    def through_modules(self) -> Actor:
        """This actor without the plain pass, which reads weights without calling the modules that hold them."""
        return Actor(self.lm, self._head, self._route, replace(self._accepted, plain=0))

    def _pass(self, length: int) -> Pass:
        """The pass for rows of `length` positions."""
        if self._plain is not None and length <= self._accepted.plain:  # as `has_slots`
            return self._plain
        if length > self._accepted.own:
            raise StageError(
                f"a row has {length} tokens: beyond {self._accepted.longest:g} tokens, the output of "
                f"{type(self.lm).__name__} depends on the other rows of the batch",
                where="base.model",
                hint="lower the recipe's max_prompt_length, response_length and max_length",
            )
        return self._own

    def project(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, H), as the model's own forward computes them. 16-bit models return
        float32 logits (`stages.models.fast.wide`)."""
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
        """As `stages.models.logprobs.token_logprobs`. Without a chunk size, the vocabulary sets it
        (`pipeline.memory.limits.positions_at_once`)."""
        if chunk_size is None:
            chunk_size = positions_at_once(self.lm.get_output_embeddings().weight.shape[0], hidden_NH.device.type)
        return token_logprobs(
            hidden_NH, targets_N, self.project, temperature=temperature, chunk_size=chunk_size, entropy=entropy
        )

    @property
    def has_head(self) -> bool:
        return self._head is not None

    def scalar(self, hidden: Tensor) -> Tensor:
        """The scalar head's output (...) for hidden states (..., H). Raises `RuntimeError` without a head."""
        if self._head is None:
            raise RuntimeError("this role has no scalar head")
        return self._head(hidden)


def _number(config: Any, name: str) -> float:
    return getattr(config, name, None) or 1.0


def check_projection(actor: Actor, ids_BL: Tensor | None = None) -> None:
    """Checks that `hidden` and `project` give the logits of the model's own forward, within `tolerance`.

    Args:
        ids_BL: a row of ordinary text, of which the start is used; None: tokens spread over the vocabulary.

    Raises `StageError` when the logits differ.
    """
    spread_BL = spread_tokens(actor.lm, actor.passes.longest)
    ids_BL = spread_BL if ids_BL is None else ids_BL[:, : spread_BL.shape[1]]
    with torch.no_grad(), actor.computing():
        ours = actor.project(actor.hidden(ids_BL)[0])
        theirs = actor.lm(input_ids=ids_BL, use_cache=False).logits[0]
    error = relative_error(ours, theirs)
    if not error <= tolerance(actor.lm):
        raise StageError(
            f"{type(actor.lm).__name__} computes its logits in an unsupported way: the head applied to the last "
            f"hidden states differs from the model's logits by {error:.2g} of their spread",
            where="base.model",
            hint="use a model that applies only its output layer, a scale and a soft cap to the last hidden states",
        )
