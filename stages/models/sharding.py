"""Shards models over the processes of a run, with PyTorch's FSDP2 (Zhao et al. 2023, arXiv:2304.11277).

Each process stores its part of every parameter, gradient and optimizer moment. In training, a layer's weights are
gathered before its forward and its backward pass, and gradients are summed into the parts after its backward pass.
All of this happens in hooks around modules' forward calls, so every process must make the same passes in the same
number, through the modules. Where processes diverge, as in sampling, `whole` gathers a model once.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline.errors import StageError
from stages.models.distributed import World
from stages.models.heads import ScalarHead
from stages.models.passes import TRUNK
from stages.models.precision import COMPUTE

Mesh = DeviceMesh
"""The processes and the kind of device that hold the parts."""


def mesh_of(device: str) -> Mesh:
    """The mesh of all processes of the run."""
    return init_device_mesh(device, (World().size,))


def shard(root: Any, mesh: Mesh, *, offload: bool = False) -> None:
    """Shards a module's parameters in place: a unit per layer, and one for everything outside the layers.

    A fully trained model that computes in bfloat16 under autocast is gathered in bfloat16; its gradients are summed
    in float32. Frozen and trained parameters may share a unit.

    Args:
        root: the module whose `forward` the caller calls. Language models also get the method `passes.TRUNK`.
        offload: keeps the parts, gradients and moments in host memory.

    Raises `StageError` for a mixture of experts: which weights get gradients depends on the tokens, so processes
    would wait for different collectives.
    """
    if any("experts" in name for name, _ in root.named_modules()):
        raise StageError("a mixture of experts cannot be sharded", where="sharding", hint="set sharding: none")
    frozen = any(not p.requires_grad for p in root.parameters()) and any(p.requires_grad for p in root.parameters())
    compute = None if frozen else next((getattr(m, COMPUTE) for m in root.modules() if hasattr(m, COMPUTE)), None)
    place: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy(mesh.device_type == "cuda") if offload else OffloadPolicy(),
    }
    policy = place | {
        "mp_policy": MixedPrecisionPolicy(compute, torch.float32 if compute else None, cast_forward_inputs=False)
    }
    for head in (module for module in root.modules() if isinstance(module, ScalarHead) and module is not root):
        fully_shard(head, **place)
    for layer in _layers(root):
        fully_shard(layer, **policy)
    fully_shard(root, **policy)
    for unit in _units(root):
        # Losses are divided by global counts, so gradients are summed. (gloo only sums.)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    if hasattr(root, "get_decoder"):

        def trunk(**inputs: Any) -> Any:
            output = root.get_decoder()(**inputs)
            if output.last_hidden_state._is_view():  # FSDP2's hooks would be lost if it was changed in place
                output.last_hidden_state = output.last_hidden_state.clone()
            return output

        setattr(root, TRUNK, trunk)
        register_fsdp_forward_method(root, TRUNK)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost `ModuleList`s."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


def _units(root: nn.Module) -> list[Any]:
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def sharded_parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """The module's parameters by name; the parts, if it is sharded. (After a pass without gradients, some weights
    stay gathered until the next one.)"""
    for unit in _units(root):
        unit.reshard()
    return dict(root.named_parameters())


@contextlib.contextmanager
def whole(root: nn.Module) -> Iterator[None]:
    """Gathers all of a module's weights for the duration of the context. Every process must enter and leave it;
    inside, no process waits for another, and weights must not change. A no-op if the module is not sharded."""
    units = _units(root)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            # The root's weights stay gathered from its forward to its backward pass: the output layer is called
            # in between, once per chunk of logits.
            unit.set_reshard_after_forward(unit is not root, recurse=False)
            unit.reshard()


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, detached. Every process must call it. One that is not sharded is returned unchanged."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_state(module: nn.Module, part: str = "") -> dict[str, Tensor]:
    """The module's state dict with whole tensors, on the CPU. Every process must call it; only rank 0 gets it, and
    the others an empty one.

    Args:
        part: only tensors with this in their names.
    """
    state, writes = {}, World().rank == 0
    for name, tensor in module.state_dict().items():
        if part in name:
            full = gathered(tensor)
            if writes:
                state[name] = full.cpu()
    return state


def as_part_of(like: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of `tensor`, which every process holds whole, if `like` is sharded."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict`, which also accepts the whole moments of sharded parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            name: as_part_of(parameters[index], value) if getattr(value, "ndim", 0) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": moments})


class Twin:
    """A sharded copy of a module. Until `restore`, the original is without weights.

    FSDP2 cannot be undone in place, and stages use their models as plain modules after training.
    """

    def __init__(self, original: nn.Module, mesh: Mesh, *, offload: bool = False) -> None:
        self._original = original
        self.module = copy.deepcopy(original, {id(p): p for p in original.parameters()})
        shard(self.module, mesh, offload=offload)
        for parameter in original.parameters():
            parameter.data = parameter.data.new_empty(0)

    def restore(self) -> None:
        """Gathers the weights into the original. Every process must call it."""
        parts = sharded_parameters(self.module)
        for name, parameter in self._original.named_parameters():
            parameter.data = gathered(parts[name]).to(parameter.device)
