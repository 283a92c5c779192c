"""Bytes of each component of a stage's memory, as the stages allocate it. docs/memory.md derives the counts.

The counts of tensors saved for the backward pass come from autograd's saved-tensor hooks, and
tests/end_to_end/test_memory_plan.py compares them with these hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.sft import LoRAConfig
from pipeline.memory.architecture import Architecture
from pipeline.memory.limits import EXPLICIT_ATTENTION, MERGED_COPIES, positions_at_once

SINGLE = 4
"""Bytes of a float32 number."""
NF4 = 0.5 + 1 / 64 + SINGLE / (64 * 256)
"""Bytes of a weight in NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3): four bits,
one byte per block of 64 for its scale, and a float32 per 256 scales."""

Forward = Literal["plain", "library"]
"""Which forward pass: the plain one of stages/models/fast with fast LoRA layers, or that of transformers and
peft."""
Mask = Literal["none", "padded", "packed"]
"""The attention mask: none; one for padding, of which each block keeps a float copy; or one for packed rows, shared
by all blocks. With a mask the library's pass repeats keys and values for each query head; the plain pass never
does."""


@dataclass(frozen=True)
class PlannedModel:
    """A model in memory: its architecture, and in which precision it is held.

    Attributes:
        size: bytes of a number that is not quantised, in weights and in computation.
        mixed: whether the weights and the hidden states between blocks are float32 although products are computed
            in `size` bytes: a full fine-tune under autocast.
        quantization: none, nf4, int8, or qat for weights that are rounded as they are used.
        lora: the adapters on it; None: all weights are trained.
        share: the share of weights, gradients and moments that this process's device holds; None: all of them,
            because the model is not sharded (stages/models/sharding.py).
    """

    architecture: Architecture
    device: str
    size: int
    quantization: str
    lora: LoRAConfig | None
    mixed: bool = False
    share: float | None = None

    @property
    def part(self) -> float:
        return 1.0 if self.share is None else self.share

    @property
    def wide(self) -> int:
        """Bytes of a number in the hidden states between blocks. Sharded weights are gathered in `size` bytes."""
        return SINGLE if self.mixed and self.share is None else self.size

    @property
    def cast(self) -> float:
        """Bytes of the weights' casts under autocast, which casts each weight once per pass."""
        return self.architecture.linear * self.size if self.mixed and self.share is None else 0.0

    @property
    def weights(self) -> float:
        """Bytes of one copy of the weights; of its part, if it is sharded."""
        number = SINGLE if self.mixed else self.size
        return self.part * (self._linear(number) + self.architecture.rest * number)

    def _linear(self, number: int) -> float:
        architecture = self.architecture
        rows = architecture.num_hidden_layers * sum(matrix.outputs for matrix in architecture.matrices)
        return {
            "none": architecture.linear * number,
            "nf4": architecture.linear * NF4,
            "int8": architecture.linear + rows * SINGLE,
            "qat": architecture.linear * 2 * self.size,  # each weight beside its rounded value
        }[self.quantization]

    @property
    def adapter(self) -> float:
        """Bytes of one LoRA adapter, in float32, or of its part; 0 without LoRA."""
        if not self.lora:
            return 0.0
        return self.part * self.architecture.lora(self.lora.r, self.lora.target_modules) * SINGLE

    @property
    def learning(self) -> float:
        """Bytes of the trained parameters of one role (its adapter, or every weight) in float32, or of their
        part."""
        return self.adapter if self.lora else self.part * self.architecture.parameters * SINGLE

    @property
    def gathered(self) -> float:
        """Bytes of a sharded model's gathered weights, as in sampling; 0 if it is not sharded."""
        return 0.0 if self.share is None else self._linear(self.size) + self.architecture.rest * self.size

    @property
    def units(self) -> float:
        """Bytes that a sharded model gathers at once in training: a block, the buffer of another one's gathering,
        and what is outside the blocks."""
        blocks = self.architecture.num_hidden_layers
        return 0.0 if self.share is None else 2 * self._linear(self.size) / blocks + self._outside * self.size

    @property
    def unreduced(self) -> float:
        """Bytes of a sharded model's gradients before they are summed into parts: those of a block and of what is
        outside the blocks, each once more in the buffer of the sum. (Adapters' are negligible.)"""
        if self.share is None or self.lora:
            return 0.0
        return 2 * (self.architecture.linear / self.architecture.num_hidden_layers + self._outside) * SINGLE

    @property
    def _outside(self) -> int:
        return (1 if self.architecture.tie_word_embeddings else 2) * self.architecture.embedding

    @property
    def merged(self) -> float:
        """Bytes of the merged copies for decoding, where the bank makes them; otherwise 0."""
        if not self.lora or self.quantization != "none" or self.size != SINGLE:
            return 0.0
        chosen = self.architecture.targeted(self.lora.target_modules)
        count = sum(matrix.size for matrix in self.architecture.matrices if matrix.name in chosen)
        copies = self.architecture.num_hidden_layers * count * SINGLE
        return copies if copies <= MERGED_COPIES else 0.0

    @property
    def unpacked(self) -> float:
        """Bytes of the largest layer in full precision: a quantised model unpacks one layer at a time."""
        largest = max(matrix.size for matrix in self.architecture.matrices)
        return 0.0 if self.quantization in ("none", "qat") else largest * self.size

    def explicit_attention(self, length: int) -> bool:
        """Whether the plain pass writes attention scores out."""
        return self.device == "cpu" and length <= EXPLICIT_ATTENTION

    def layer(self, length: int, forward: Forward, mask: Mask = "none") -> float:
        """Bytes per token that one block keeps for its backward pass, in rows of `length` tokens."""
        s, size = self.architecture, self.size
        hidden, queries, keys, wide = s.hidden_size, s.queries, s.keys, s.intermediate_size
        inputs = {m.name: m.inputs for m in s.matrices}
        targets = s.targeted(self.lora.target_modules) if self.lora else set(inputs)
        # The inputs of the normalisations, and their divisors.
        total = 2.0 * hidden * (self.wide if forward == "plain" else SINGLE) + 2 * SINGLE
        if forward == "library" and not self.lora:
            total += 2 * hidden * self.wide  # their outputs, for the gradient of the norm's weight
        if s.qk_norm:
            total += (queries + keys) * (size if forward == "plain" else SINGLE)
        # The inputs of linear layers. Fast layers keep each distinct input once, in its own precision. peft keeps
        # one in float32 per adapter, which is the same tensor if the model is in float32. Under autocast each layer
        # of the library's pass casts its input again.
        if self.lora and size < SINGLE and forward == "library":
            total += SINGLE * sum(inputs[name] for name in targets)
        elif self.mixed and forward == "library":
            total += size * sum(inputs[name] for name in targets)
        else:
            # The plain pass recomputes the input of the down projection.
            shared = {"qkv": hidden, "o": queries, "gate_up": hidden, "down": wide if forward == "library" else 0}
            groups = {name: _group(name) for name in targets}
            total += size * sum(shared[group] for group in set(groups.values()))
        if self.lora:
            total += (size if forward == "plain" else SINGLE) * self.lora.r * len(targets)
        # Attention: queries, keys and values. The fused kernel also keeps one number per head, and its output
        # unless that was counted above as the input of a linear layer.
        repeated = queries if forward == "library" and mask != "none" else keys
        total += size * (queries + 2 * repeated)
        counted = "self_attn.o_proj" in targets and (size == SINGLE or forward == "plain" or self.mixed)
        explicit = forward == "plain" and self.explicit_attention(length)
        total += 0 if counted or explicit else size * queries
        total += 0 if explicit else s.num_attention_heads * SINGLE
        total += length * size if forward == "library" and mask == "padded" else 0
        # The gated MLP: the outputs of gate and up and, in the library's pass, the activated gate.
        return total + size * wide * (2 if forward == "plain" else 3)

    def kept(self, rows: int, length: int, forward: Forward, *, checkpointing: bool, mask: Mask = "none") -> float:
        """Bytes of activations kept from the forward to the backward pass: those of all blocks, or with
        checkpointing the input of each block and the activations of one; and those of the last normalisation."""
        tokens, blocks = rows * length, self.architecture.num_hidden_layers
        block = self.layer(length, forward, mask)
        if checkpointing:
            block, blocks = block + blocks * self.architecture.hidden_size * self.wide, 1
        ends = self.architecture.hidden_size * (self.size + self.wide if forward == "plain" else self.wide + SINGLE)
        shared = length * self.size if forward == "library" and mask == "packed" else 0
        return tokens * (blocks * block + ends + shared) + self.cast

    def passing(self, rows: int, length: int, forward: Forward, *, merged: bool = False) -> float:
        """Peak bytes of a forward pass without gradient: in one block, its input beside the larger of attention and
        MLP."""
        s = self.architecture
        hidden, queries, keys, wide = s.hidden_size, s.queries, s.keys, s.intermediate_size
        apart = 1 if self.lora and not merged and (forward == "library" or self.quantization != "none") else 0
        ends = 2 * hidden * self.wide / self.size
        mlp = ends + (3 + apart) * wide
        scores = 2 * s.num_attention_heads * length if forward == "plain" and self.explicit_attention(length) else 0
        attention = ends + (3 + apart) * queries + 4 * keys + scores
        return rows * length * self.size * max(mlp, attention) + self.unpacked + self.cast

    def returning(self, rows: int, length: int, forward: Forward) -> float:
        """Peak bytes of one block's backward pass beside the kept activations. That is the gradients of the block's
        output and of the MLP's wide tensors (three at once in the plain pass, two in the library's); or, where
        attention scores are written out, three of those beside the gradients of queries, keys and values, by which
        time the MLP's activations are released."""
        s = self.architecture
        most = s.hidden_size + s.intermediate_size * (3 if forward == "plain" else 2)
        if forward == "plain" and self.explicit_attention(length):
            attention = 3 * s.num_attention_heads * length + 2 * (s.queries + s.keys + s.hidden_size)
            most = max(most, attention - 2 * s.intermediate_size)
        return rows * length * self.size * most + self.unpacked

    def cache(self, rows: int, length: int) -> float:
        """Bytes of the cached keys and values of all blocks."""
        return rows * length * 2 * self.architecture.num_hidden_layers * self.architecture.keys * self.size

    def chunk(self, positions: int, wanted: int | None = None) -> int:
        """Positions whose logits exist at once."""
        return min(positions, wanted or positions_at_once(self.architecture.vocab_size, self.device))

    def logits(self, positions: int, copies: float) -> float:
        """Bytes of `copies` float32 tensors over the vocabulary, and of one in the model's precision if that
        differs."""
        unconverted = self.size if self.size < SINGLE else 0
        return positions * self.architecture.vocab_size * (copies * SINGLE + unconverted)


def _group(name: str) -> str:
    """The group of a linear layer. Layers of one group share their input tensor."""
    part = name.rpartition(".")[2].removesuffix("_proj")
    return {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}.get(part, part)
