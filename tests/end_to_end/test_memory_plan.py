"""The memory plan's byte counts match the tensors of real models."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import tiny
import torch

from pipeline.config.base import ArchitectureConfig
from pipeline.config.sft import LoRAConfig
from pipeline.errors import StageError
from pipeline.memory.architecture import Architecture
from pipeline.memory.components import PlannedModel
from pipeline.memory.flops import ModelCost
from stages.base.stage import _compare
from stages.models.adapters import causal_lm, float32_trainables, new_adapter
from stages.models.fast import plain
from stages.models.fast.linear import speed_up
from stages.models.fast.plain import PlainDecoder
from stages.models.loading import load_causal_lm
from stages.models.precision import COMPUTE, compute_in, computing
from stages.ppo.cost import shape_of

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LORA = LoRAConfig(r=4)
ROWS = 2


def model(layers: int, lora: bool, dtype: torch.dtype) -> Any:
    """`dtype` is that of the weights; with full fine-tuning, that of the products of float32 weights."""
    lm: Any = tiny.lm(num_hidden_layers=layers, initializer_range=0.02, **SHAPE)
    if not lora and dtype != torch.float32:
        compute_in(lm, dtype)
    elif lora:
        lm.to(dtype)
        lm.requires_grad_(False)
        lm = new_adapter(lm, LORA)
        float32_trainables(lm)
    return lm


def saved_bytes(network: Any, length: int, path: str, mask: str) -> int:
    """Bytes of the storages that autograd saves during a forward pass."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    lm = causal_lm(network)
    ids = torch.randint(3, SHAPE["vocab_size"], (ROWS, length))
    attention_mask: Any = None
    if mask == "padded":
        attention_mask = torch.ones(ROWS, length, dtype=torch.long)
        attention_mask[0, -3:] = 0
    elif mask == "packed":
        attention_mask = torch.zeros(ROWS, 1, length, length, dtype=getattr(lm, COMPUTE, lm.dtype))
    decoder = None
    recomputed = plain._recomputed

    def also_packed(product: torch.Tensor, again: Any) -> Any:
        """PyTorch calls only the innermost of nested hooks."""
        hooks = recomputed(product, again)

        def both(tensor: torch.Tensor) -> Any:
            saved = hooks.pack_hook(tensor)
            return pack(saved) if isinstance(saved, torch.Tensor) else saved

        return torch.autograd.graph.saved_tensors_hooks(both, hooks.unpack_hook)

    if path == "plain":
        speed_up(network)
        decoder = PlainDecoder(lm)
    lm.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        pytest.MonkeyPatch.context() as patch,
        contextlib.ExitStack() as stack,
    ):
        patch.setattr(plain, "_recomputed", also_packed)
        stack.enter_context(computing(lm))
        if decoder is not None:
            decoder.hidden(ids)
        else:
            lm.get_decoder()(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    return sum(seen.values())


@pytest.mark.parametrize(
    ("lora", "dtype"),
    [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32), (False, torch.bfloat16)],
    ids=["lora", "lora in 16 bits", "full", "full under autocast"],
)
@pytest.mark.parametrize(
    ("path", "mask", "length"),
    [
        ("plain", "none", 200),
        ("plain", "none", 60),
        ("library", "none", 100),
        ("library", "padded", 100),
        ("library", "packed", 100),
    ],
)
def test_planned_activations_of_a_block(path: Any, mask: Any, length: int, lora: bool, dtype: torch.dtype) -> None:
    single, double = (saved_bytes(model(layers, lora, dtype), length, path, mask) for layers in (1, 2))
    architecture = Architecture.from_config({**SHAPE, "num_hidden_layers": 1})
    mixed = not lora and dtype != torch.float32
    planned = PlannedModel(architecture, "cpu", dtype.itemsize, "none", LORA if lora else None, mixed)
    expected = planned.layer(length, path, mask) * ROWS * length + planned.cast
    assert expected == pytest.approx(double - single, rel=1e-6)


def test_planned_activations_of_a_block_in_four_bits(tmp_path: Any) -> None:
    """Fast LoRA layers save one input in its original precision."""
    counts = []
    for layers in (1, 2):
        lm = tiny.lm(num_hidden_layers=layers, initializer_range=0.02, **{**SHAPE, "intermediate_size": 192})
        lm.save_pretrained(tmp_path / str(layers))
        loaded: Any = load_causal_lm(str(tmp_path / str(layers)), "cpu", dtype="bfloat16", quantization="nf4")
        loaded = new_adapter(loaded, LORA)
        float32_trainables(loaded)
        counts.append(saved_bytes(loaded, 60, "plain", "none"))
    shape = Architecture.from_config({**SHAPE, "intermediate_size": 192, "num_hidden_layers": 1})
    planned = PlannedModel(shape, "cpu", 2, "nf4", LORA)
    assert planned.layer(60, "plain") * ROWS * 60 == pytest.approx(counts[1] - counts[0], rel=0.02)


def test_planned_bytes_of_four_bit_weights(tmp_path: Any) -> None:
    lm = tiny.lm(num_hidden_layers=2, **{**SHAPE, "hidden_size": 256, "intermediate_size": 512})
    lm.save_pretrained(tmp_path)
    loaded = load_causal_lm(str(tmp_path), "cpu", dtype="float32", quantization="nf4")
    resident = sum(p.nbytes for p in loaded.parameters())
    for parameter in loaded.parameters():
        if hasattr(parameter, "quant_state"):
            state = parameter.quant_state
            resident += state.absmax.nbytes + state.state2.absmax.nbytes
    planned = PlannedModel(Architecture.from_config(lm.config.to_dict()), "cpu", 4, "nf4", None)
    assert planned.weights == pytest.approx(resident, rel=0.002)


def test_planned_bytes_of_adapters_and_cache() -> None:
    bank = tiny.lora_bank()
    config = bank.model.get_base_model().config.to_dict()
    planned = PlannedModel(Architecture.from_config(config), "cpu", 4, "none", LoRAConfig(r=2))
    adapter = [p for n, p in bank.model.named_parameters() if ".policy." in n]
    assert planned.adapter == sum(p.nbytes for p in adapter)
    with bank.active("policy") as actor:
        cache: Any = actor.decode(torch.ones(3, 5, dtype=torch.long), torch.ones(3, 5), 7)._cache  # type: ignore[attr-defined]
    assert planned.cache(3, 12) == sum(t.nbytes for t in [*cache.keys, *cache.values])


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.mlp\.(up|down)_proj"])
def test_lora_targets_match_pefts(targets: Any) -> None:
    lora = LoRAConfig(r=3, target_modules=targets)
    lm = new_adapter(tiny.lm(), lora)
    trainable = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    assert Architecture.from_config(tiny.lm().config.to_dict()).lora(3, targets) == trainable


def test_flops_from_a_config_match_the_modules() -> None:
    """The shape read from a config equals the shape read from the modules."""
    for lm in (tiny.lm(), tiny.lm(tie_word_embeddings=True)):
        assert ModelCost.of(Architecture.from_config(lm.config.to_dict())) == shape_of(lm)


def test_a_declared_architecture_must_match_the_model() -> None:
    config = tiny.lm().config
    names = set(vars(ArchitectureConfig(**{**SHAPE_OF, "vocab_size": 1}))) - {"head_dim"}
    sizes = {name: getattr(config, name) for name in names}
    _compare(ArchitectureConfig(**sizes), config)
    with pytest.raises(StageError, match="hidden_size"):
        _compare(ArchitectureConfig(**{**sizes, "hidden_size": 17}), config)


SHAPE_OF: dict[str, Any] = {
    "vocab_size": 1,
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
