"""A plain forward pass for Llama-like models, on the very modules that transformers made.

Small models spend most of a pass between the matrix products: in mask building, cache objects, casts, and
elementwise kernels one by one. This is the same arithmetic (pre-norm blocks, rotary positions, grouped queries,
gated MLP) with fewer and larger steps, and with a cache that is one tensor a layer. Linear layers, and the LoRA
adapters on them, are called as the modules they are. `plain_decoder` compares it with the model's own forward and
gives nothing where they differ.

Shapes: B rows, L positions of this pass, S positions in the cache, N query heads, M key and value heads, D a head's
width, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from stages.models.precision import working_dtype

SHORT = 128
"""Up to this many positions a CPU attends faster with its scores written out than with the fused kernel."""


class Cache:
    """Keys and values (B, M, S, D) of every layer, allocated once."""

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        dtype = working_dtype(like)
        self.keys = [like.new_empty(shape, dtype=dtype) for _ in range(layers)]
        self.values = [like.new_empty(shape, dtype=dtype) for _ in range(layers)]
        self.length = 0

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        for tensors in (self.keys, self.values):
            for i, tensor in enumerate(tensors):
                tensors[i] = tensor.index_select(0, rows)


class PlainDecoder:
    """What `model.get_decoder()` does, for a model that `plain_decoder` accepted."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._lm: Any = model
        self._trunk: Any = model.get_decoder()
        attentions = [layer.self_attn for layer in self._trunk.layers]
        if any(getattr(attention, "sliding_window", None) is not None for attention in attentions):
            raise AttributeError("no window in a plain pass")
        attention = attentions[0]
        self._width, self._scale = attention.head_dim, attention.scaling
        self._groups = model.config.num_attention_heads // model.config.num_key_value_heads
        self._kv_heads = model.config.num_key_value_heads

    def hidden(self, ids_BL: Tensor) -> Tensor:
        """Last hidden states (B, L, H) of right-padded rows, with gradients as the modules' parameters ask."""
        positions = torch.arange(ids_BL.shape[1], device=ids_BL.device)[None]
        x = self._trunk.embed_tokens(ids_BL)
        turn = self._turn(x, positions)
        mask = _causal(ids_BL.shape[1], x) if _written_out(x, ids_BL.shape[1]) else None
        for layer in self._trunk.layers:
            if layer.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._layer, layer, x, turn, mask, use_reentrant=False)
            else:
                x = self._layer(layer, x, turn, mask)
        return self._norm(self._trunk.norm, x)

    def new_cache(self, rows: int, length: int) -> Cache:
        weight = self._trunk.embed_tokens.weight
        return Cache(len(self._trunk.layers), (rows, self._kv_heads, length, self._width), weight)

    def extend(self, ids_BL: Tensor, positions_BL: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """The last position's hidden state (B, H) after `ids_BL`, which enter the cache.

        Args:
            mask: added to the scores, broadcast over (B, N, L, S).
        """
        x = self._trunk.embed_tokens(ids_BL)
        turn = self._turn(x, positions_BL)
        for i, layer in enumerate(self._trunk.layers):
            x = self._layer(layer, x, turn, mask, (cache.keys[i], cache.values[i], cache.length))
        cache.length += ids_BL.shape[1]
        return self._norm(self._trunk.norm, x[:, -1])

    def _layer(
        self,
        layer: Any,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cached: tuple[Tensor, Tensor, int] | None = None,
    ) -> Tensor:
        return self._gated_mlp(layer, self._attention(layer, x, turn, mask, cached))

    def _attention(
        self,
        layer: Any,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cached: tuple[Tensor, Tensor, int] | None,
    ) -> Tensor:
        attention, inner = layer.self_attn, self._norm(layer.input_layernorm, x)
        heads = (*x.shape[:2], -1, self._width)
        query, key = attention.q_proj(inner).view(heads), attention.k_proj(inner).view(heads)
        if hasattr(attention, "q_norm"):
            query, key = self._norm(attention.q_norm, query), self._norm(attention.k_norm, key)
        query, key = Rotary.apply(query, *turn), Rotary.apply(key, *turn)
        value = attention.v_proj(inner).view(heads)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if cached is not None:
            keys, values, start = cached
            end = start + x.shape[1]
            keys[:, :, start:end], values[:, :, start:end] = key, value
            key, value = keys[:, :, :end], values[:, :, :end]
        mixed = self._attend(query, key, value, mask)
        return x + attention.o_proj(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))

    def _gated_mlp(self, layer: Any, x: Tensor) -> Tensor:
        mlp, inner = layer.mlp, self._norm(layer.post_attention_layernorm, x)
        gate, up = mlp.gate_proj(inner), mlp.up_proj(inner)
        gated = GatedSiLU.apply(gate, up)
        # A block that is computed anew as a whole keeps nothing, and must not keep what this would start from.
        if torch.is_grad_enabled() and not layer.gradient_checkpointing:
            with _recomputed(gated, partial(GatedSiLU.of, gate, up)):
                return x + mlp.down_proj(gated)
        del inner, gate, up
        return x + mlp.down_proj(gated)

    def _attend(self, query_BNLD: Tensor, key_BMSD: Tensor, value_BMSD: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return F.scaled_dot_product_attention(
                query_BNLD, key_BMSD, value_BMSD, is_causal=True, scale=self._scale, enable_gqa=self._groups > 1
            )
        if not _written_out(query_BNLD, key_BMSD.shape[2]):
            return F.scaled_dot_product_attention(
                query_BNLD, key_BMSD, value_BMSD, attn_mask=mask, scale=self._scale, enable_gqa=self._groups > 1
            )
        return Attention.apply(query_BNLD, key_BMSD, value_BMSD, mask, self._scale)

    def _turn(self, x: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B or 1, L, 1, D / 2) of the rotary positions."""
        cos, sin = self._trunk.rotary_emb(x, positions_BL)
        return cos[:, :, None, : self._width // 2], sin[:, :, None, : self._width // 2]

    @staticmethod
    def _norm(norm: Any, x: Tensor) -> Tensor:
        # Under autocast each of the layers that read it would cast it for itself, and keep what it cast.
        return RMSNorm.apply(x, norm.weight, norm.variance_epsilon).to(working_dtype(x))


class PlainSteps:
    """Decoding after left-padded prompts (`stages.models.actor.Steps`)."""

    def __init__(self, decoder: PlainDecoder, ids_BL: Tensor, mask_BL: Tensor, length: int) -> None:
        self._decoder, self._ids = decoder, ids_BL
        self._position = mask_BL.long().cumsum(1) - 1
        width = ids_BL.shape[1] + length
        self._cache = decoder.new_cache(len(ids_BL), width)
        # The lowest finite number, not minus infinity: a padding position sees nothing at all.
        like = self._cache.keys[0]
        self._lowest = torch.finfo(like.dtype).min
        self._padding_BS = torch.zeros((len(ids_BL), width), dtype=like.dtype, device=ids_BL.device)
        self._padding_BS[:, : ids_BL.shape[1]].masked_fill_(~mask_BL.bool(), self._lowest)

    def start(self) -> Tensor:
        length = self._ids.shape[1]
        causal = _causal(length, self._padding_BS)
        mask = (self._padding_BS[:, None, None, :length] + causal).clamp_(min=self._lowest)
        return self._decoder.extend(self._ids, self._position.clamp(min=0), mask, self._cache)

    def next(self, token_B: Tensor) -> Tensor:
        self._position = self._position[:, -1:] + 1
        mask = self._padding_BS[:, None, None, : self._cache.length + 1]
        return self._decoder.extend(token_B[:, None], self._position, mask, self._cache)

    def keep(self, rows: Tensor) -> None:
        self._cache.keep(rows)
        self._padding_BS, self._position = self._padding_BS[rows], self._position[rows]


def _written_out(x: Tensor, length: int) -> bool:
    return x.device.type == "cpu" and length <= SHORT


def _causal(length: int, like: Tensor) -> Tensor:
    return torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device).triu_(1)


class RMSNorm(Function):
    """`x / rms(x) * weight` over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4), in
    float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, inverse, weight = ctx.saved_tensors
        unit = x.float() * inverse
        grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad = (grad * weight).float()
        along = (grad * unit).mean(-1, keepdim=True)
        return grad.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype), grad_weight, None


class Rotary(Function):
    """Rotates the pairs (x_i, x_{i + D/2}) by their position's angles (Su et al. 2021, arXiv:2104.09864, equation
    34, in the halves' order that transformers uses). The gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x_BLND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_BLND, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out_low, out_high = out.chunk(2, dim=-1)
    torch.mul(low, cos, out=out_low).addcmul_(high, sin, value=-sign)
    torch.mul(high, cos, out=out_high).addcmul_(low, sin, value=sign)
    return out


class GatedSiLU(Function):
    """`silu(gate) * up` (Shazeer 2020, arXiv:2002.05202, equation 5); keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return GatedSiLU.of(gate, up)

    @staticmethod
    def of(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class Attention(Function):
    """`softmax(scale * q k^T + mask) v` (Vaswani et al. 2017, arXiv:1706.03762, equation 1), with grouped queries;
    keeps its inputs only, and computes the weights again for the gradient.

    Shapes: query (B, N, L, D), key and value (B, M, S, D), mask broadcast over (B, N, L, S) and without a gradient.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        weights, _ = Attention._weights(query, key, mask, scale)
        return (weights @ value).view(query.shape)

    @staticmethod
    def _weights(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Weights, and the scaled queries that they come from, with a group's queries below each other: one product
        for each key head, nothing repeated."""
        rows, heads, length, width = query.shape
        grouped = (query * scale).reshape(rows, key.shape[1], -1, width)
        scores = (grouped @ key.transpose(-1, -2)).view(rows, heads, length, -1).add_(mask)
        return scores.softmax(-1).view(rows, key.shape[1], -1, key.shape[2]), grouped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        weights, grouped = Attention._weights(query, key, mask, ctx.scale)
        grad = grad.reshape(grouped.shape)
        grad_value = weights.transpose(-1, -2) @ grad
        grad_weights = grad @ value.transpose(-1, -2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_query = (grad_scores @ key).mul_(ctx.scale).view(query.shape)
        return grad_query, grad_scores.transpose(-1, -2) @ grouped, grad_value, None, None


def _recomputed(product: Tensor, again: Callable[[], Tensor]) -> Any:
    """Inside this context, what wants to keep `product` for its backward pass gets it computed anew instead."""
    place = product.data_ptr()  # autograd keeps the hooks: one that held the product would keep it too

    def keep(tensor: Tensor) -> Any:
        return tensor.shape if tensor.data_ptr() == place else tensor

    def give(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else again().view(kept)

    return saved_tensors_hooks(keep, give)


@torch.no_grad()
def plain_decoder(model: PreTrainedModel) -> PlainDecoder | None:
    """The plain forward of a model, or None when the model is not Llama-like or computes otherwise."""
    training = model.training
    try:
        model.eval()
        decoder = PlainDecoder(model)
        width = min(model.config.max_position_embeddings, 9)
        ids = torch.arange(width, device=model.device)[None] % model.config.vocab_size
        theirs = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state.float()
        ours = decoder.hidden(ids)
    except (AttributeError, RuntimeError, TypeError, IndexError):
        return None
    finally:
        model.train(training)
    worst = float((ours.float() - theirs).abs().max() / theirs.abs().max())
    return decoder if worst <= torch.finfo(ours.dtype).eps ** 0.5 / 3 else None
