"""What may be asked of a causal LM: hidden states, log-probs, scalars, and responses token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from pipeline.errors import StageError
from stages.models.heads import ScalarHead
from stages.models.logprobs import positions_at_once, token_logprobs
from stages.models.plain import PlainSteps, plain_decoder
from stages.models.precision import computing
from stages.models.wide import logits_of


class Steps(Protocol):
    """Decoding under way. Each call gives the hidden states (B, H) of the last position of the rows still in it."""

    def start(self) -> Tensor:
        """After the prompts."""

    def next(self, token_B: Tensor) -> Tensor:
        """After one more token of each row."""

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""


class Actor:
    """A causal LM and, if it has one, its scalar head.

    Args:
        route: names what is active in a model that several roles share; a gradient that arrives under another
            route than its forward had is an error.
    """

    def __init__(
        self, lm: PreTrainedModel, head: ScalarHead | None = None, route: Callable[[], Any] = lambda: None
    ) -> None:
        self.lm, self._head, self._route = lm, head, route
        self._plain = plain_decoder(lm)

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
            if self._plain:
                hidden = self._plain.hidden(ids_BL)
            else:
                hidden = self.lm.get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state
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
        if self._plain:
            return PlainSteps(self._plain, ids_BL, mask_BL, length)
        return CachedSteps(self.lm, ids_BL, mask_BL)

    def project(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V) of hidden states, as the model's own forward makes them, but in float32 where it computes
        in 16 bits (`stages.models.wide`)."""
        config = self.lm.config.get_text_config()
        with self.computing():
            logits = logits_of(self.lm.get_output_embeddings(), hidden_NH)
        scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        if scale != 1:
            logits = logits * scale
        cap = getattr(config, "final_logit_softcapping", None)
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
            chunk_size = positions_at_once(self.lm.get_output_embeddings().weight.shape[0], hidden_NH.device)
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


class CachedSteps:
    """Decoding through the model's own forward and cache, for architectures that `plain_decoder` leaves alone."""

    def __init__(self, lm: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> None:
        self._decoder, self._ids, self._mask = lm.get_decoder(), ids_BL, mask_BL.long()
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=lm.config)

    def start(self) -> Tensor:
        return self._pass(self._ids)

    def next(self, token_B: Tensor) -> Tensor:
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        return self._pass(token_B[:, None])

    def keep(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _pass(self, ids: Tensor) -> Tensor:
        output = self._decoder(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]


def check_projection(actor: Actor) -> None:
    """Compares `hidden` and `project` with the model's own forward; architectures that do more are refused."""
    ids = torch.arange(4, device=actor.device)[None]
    with torch.no_grad(), actor.computing():
        ours = actor.project(actor.hidden(ids)).float()
        theirs = actor.lm(ids, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
        raise StageError(
            f"{type(actor.lm).__name__} computes its logits in a way that is not supported here",
            where="base.model",
            mend="use a model whose logits are its head applied to its last hidden states",
        )
