"""What each thing takes, in bytes, as the stages allocate it. docs/memory.md derives the counts.

Every count of saved tensors below was read off autograd's saved-tensor hooks, and tests/stages/test_memory_plan.py
holds them against these hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.sft import LoRAConfig
from pipeline.memory.shapes import Architecture

SINGLE = 4
"""Bytes of a float32 number."""
NF4 = 0.5 + 1 / 64 + SINGLE / (64 * 256)
"""Bytes of a weight in NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314, section 3): four bits,
one byte a block of 64 for its scale, and a float32 for each 256 scales."""
WRITTEN_OUT = 128
"""Up to so many positions a CPU attends with its scores written out (stages/models/fast/plain.py)."""
MERGE_UP_TO = 2**29
"""Bytes of merged copies for decoding, at most (stages/models/fast/linear.py)."""

Path = Literal["plain", "library"]
"""Whose forward pass: our plain one with fast LoRA layers, or transformers' and peft's."""
Mask = Literal["none", "padded", "packed"]
"""What rows are told apart by: nothing; a mask of padding, which each block keeps as numbers of its own; or one
mask of packed rows, for all blocks. With either the library's pass repeats keys and values; ours never does."""


@dataclass(frozen=True)
class Model:
    """A model in memory: its shape, and how its numbers are held.

    Attributes:
        size: bytes of a number that is not quantised: of the weights, and of what is computed.
        mixed: whether weights, and what one block passes to the next, are float32 all the same: what learns in full
            computes under autocast.
        quantization: none, nf4, int8, or qat for weights that are rounded as they are used.
        lora: the adapters on it; None: whole models learn.
    """

    shape: Architecture
    device: str
    size: int
    quantization: str
    lora: LoRAConfig | None
    mixed: bool = False

    @property
    def wide(self) -> int:
        """Bytes of a number of the weights, and of what one block passes to the next."""
        return SINGLE if self.mixed else self.size

    @property
    def cast(self) -> float:
        """Of the weights as autocast casts them, each once for a pass."""
        return self.shape.linear * self.size if self.mixed else 0.0

    @property
    def weights(self) -> float:
        """Of one copy."""
        shape = self.shape
        rows = shape.num_hidden_layers * sum(matrix.outputs for matrix in shape.matrices)
        linear = {
            "none": shape.linear * self.wide,
            "nf4": shape.linear * NF4,
            "int8": shape.linear + rows * SINGLE,
            "qat": shape.linear * 2 * self.size,  # beside each weight what it is rounded to
        }[self.quantization]
        return linear + shape.rest * self.wide

    @property
    def adapter(self) -> float:
        """Of one LoRA adapter, in float32; nothing without LoRA."""
        return self.shape.lora(self.lora.r, self.lora.target_modules) * SINGLE if self.lora else 0.0

    @property
    def learning(self) -> float:
        """Of what one role learns, in float32: its adapter, or every weight."""
        return self.adapter if self.lora else self.shape.parameters * SINGLE

    @property
    def merged(self) -> float:
        """Of merged copies for decoding, where the bank makes them."""
        if not self.lora or self.quantization != "none" or self.size != SINGLE:
            return 0.0
        chosen = self.shape.targeted(self.lora.target_modules)
        count = sum(matrix.size for matrix in self.shape.matrices if matrix.name in chosen)
        copies = self.shape.num_hidden_layers * count * SINGLE
        return copies if copies <= MERGE_UP_TO else 0.0

    @property
    def unpacked(self) -> float:
        """Of the one layer that a quantised model has in full precision at a time."""
        largest = max(matrix.size for matrix in self.shape.matrices)
        return 0.0 if self.quantization in ("none", "qat") else largest * self.size

    def written_out(self, length: int) -> bool:
        return self.device == "cpu" and length <= WRITTEN_OUT

    def layer(self, length: int, path: Path, mask: Mask = "none") -> float:
        """Bytes that one block keeps of one token, in a row of `length`, for its backward pass."""
        s, size = self.shape, self.size
        hidden, queries, keys, wide = s.hidden_size, s.queries, s.keys, s.intermediate_size
        inputs = {m.name: m.inputs for m in s.matrices}
        targets = s.targeted(self.lora.target_modules) if self.lora else set(inputs)
        # The normalisations' inputs, and what they divide by.
        total = 2.0 * hidden * (self.wide if path == "plain" else SINGLE) + 2 * SINGLE
        if path == "library" and not self.lora:
            total += 2 * hidden * self.wide  # the normalised, for the gradient of the norm's weight
        if s.qk_norm:
            total += (queries + keys) * (size if path == "plain" else SINGLE)
        # The linear layers' inputs. Fast layers keep one of each in its own precision; peft's one in float32 for
        # each adapter, which where the model is in float32 is the same tensor; under autocast each layer of the
        # library's pass casts its own.
        if self.lora and size < SINGLE and path == "library":
            total += SINGLE * sum(inputs[name] for name in targets)
        elif self.mixed and path == "library":
            total += size * sum(inputs[name] for name in targets)
        else:
            # A plain pass computes the last one's anew.
            shared = {"qkv": hidden, "o": queries, "gate_up": hidden, "down": wide if path == "library" else 0}
            groups = {name: _group(name) for name in targets}
            total += size * sum(shared[group] for group in set(groups.values()))
        if self.lora:
            total += SINGLE * self.lora.r * len(targets)
        # Attention: queries, keys, values and, of the fused kernel, a number for each head and, unless it was
        # counted as an input, what comes of them.
        repeated = queries if path == "library" and mask != "none" else keys
        total += size * (queries + 2 * repeated)
        counted = "self_attn.o_proj" in targets and (size == SINGLE or path == "plain" or self.mixed)
        written_out = path == "plain" and self.written_out(length)
        total += 0 if counted or written_out else size * queries
        total += 0 if written_out else s.num_attention_heads * SINGLE
        total += length * size if path == "library" and mask == "padded" else 0
        # The gated MLP: its two inputs, and the library's pass one half done.
        return total + size * wide * (2 if path == "plain" else 3)

    def kept(self, rows: int, length: int, path: Path, *, checkpointing: bool, mask: Mask = "none") -> float:
        """Activations of a forward pass until its backward pass: all blocks', or with checkpointing their inputs
        and one block's; and the last normalisation's."""
        tokens, blocks = rows * length, self.shape.num_hidden_layers
        block = self.layer(length, path, mask)
        if checkpointing:
            block, blocks = block + blocks * self.shape.hidden_size * self.wide, 1
        ends = self.shape.hidden_size * (self.size + self.wide if path == "plain" else self.wide + SINGLE)
        shared = length * self.size if path == "library" and mask == "packed" else 0
        return tokens * (blocks * block + ends + shared) + self.cast

    def passing(self, rows: int, length: int, path: Path, *, merged: bool = False) -> float:
        """What a forward pass without gradient has at once: in one block, beside its input, the wider of attention
        and MLP."""
        s = self.shape
        hidden, queries, keys, wide = s.hidden_size, s.queries, s.keys, s.intermediate_size
        apart = 1 if self.lora and not merged and (path == "library" or self.quantization != "none") else 0
        ends = 2 * hidden * self.wide / self.size
        mlp = ends + (3 + apart) * wide
        scores = 2 * s.num_attention_heads * length if path == "plain" and self.written_out(length) else 0
        attention = ends + (3 + apart) * queries + 4 * keys + scores
        return rows * length * self.size * max(mlp, attention) + self.unpacked + self.cast

    def returning(self, rows: int, length: int, path: Path) -> float:
        """What the backward pass has at once in one block beside what was kept: gradients of the block's output and
        of the MLP's wide tensors, of which ours has three at once and the library's pass two; or, where scores are
        written out, three of them beside the gradients of queries, keys and values, when what the MLP kept is gone.
        """
        s = self.shape
        most = s.hidden_size + s.intermediate_size * (3 if path == "plain" else 2)
        if path == "plain" and self.written_out(length):
            attention = 3 * s.num_attention_heads * length + 2 * (s.queries + s.keys + s.hidden_size)
            most = max(most, attention - 2 * s.intermediate_size)
        return rows * length * self.size * most + self.unpacked

    def cache(self, rows: int, length: int) -> float:
        """Keys and values of all blocks."""
        return rows * length * 2 * self.shape.num_hidden_layers * self.shape.keys * self.size

    def chunk(self, positions: int, wanted: int | None = None) -> int:
        """Positions whose logits exist at once (`stages.models.logprobs.positions_at_once`)."""
        room = 2 ** (20 if self.device == "cpu" else 26) // self.shape.vocab_size
        return min(positions, wanted or max(256, room))

    def logits(self, positions: int, copies: float) -> float:
        """`copies` float32 tensors over the vocabulary, and one in the model's own precision if that is another."""
        own = self.size if self.size < SINGLE else 0
        return positions * self.shape.vocab_size * (copies * SINGLE + own)


def _group(name: str) -> str:
    """Layers with one group read one tensor."""
    part = name.rpartition(".")[2].removesuffix("_proj")
    return {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}.get(part, part)
