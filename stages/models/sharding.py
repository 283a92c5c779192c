"""Shards the weights, gradients and optimizer moments of full fine-tuning over the processes of a run.

Each process keeps its shard of every parameter as a DTensor (ZeRO stage 3: Rajbhandari et al. 2020,
arXiv:1910.02054; FSDP: Zhao et al. 2023, arXiv:2304.11277). In training, a weight is gathered when a module reads
it, and its gradient is reduce-scattered as soon as it is known. Both are autograd operations, as in SimpleFSDP
(Zhang et al. 2024, arXiv:2411.00284), so every process must make the same passes in the same number. Where
processes diverge, as in decoding, `Shards.whole` gathers a model once for the duration.

PyTorch's `fully_shard` does not work here: it gathers in hooks around module calls, but `stages.models.fast.plain`
does not call the layers, and the number of calls of the language-model head depends on a process's tokens.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from pipeline.errors import StageError


class Shards:
    """Shards the parameters of modules over all processes, in place and on `device`. Parameter names do not change.

    Raises `StageError` for a mixture of experts: the weights that it reads depend on the tokens, so processes would
    wait for different collectives.
    """

    def __init__(self, *modules: nn.Module, device: str) -> None:
        if any("experts" in name for module in modules for name, _ in module.named_modules()):
            raise StageError("a mixture of experts cannot be sharded", where="sharding", hint="set sharding: none")
        self._mesh = init_device_mesh(device, (dist.get_world_size(),))
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._whole = False
        sharded: dict[nn.Parameter, nn.Parameter] = {}  # by original, so that tied weights stay tied
        for root in modules:
            # A layer's weights are read once per pass, and again when it is recomputed. Weights outside the layers
            # may be read once per chunk of logits, and processes have different numbers of chunks.
            layered = {
                id(module)
                for stack in root.modules()
                if isinstance(stack, nn.ModuleList)
                for module in stack.modules()
            }
            for module in root.modules():
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else buffer.to(device)
                names = tuple(name for name, parameter in module._parameters.items() if parameter is not None)
                for name in names:
                    parameter = module._parameters[name]
                    assert parameter is not None
                    if parameter not in sharded:
                        sharded[parameter] = self._sharded(parameter)
                        sharded[parameter].reread = id(module) not in layered  # type: ignore[attr-defined]
                    module._parameters[name] = sharded[parameter]
                    self._places.append((module, name, sharded[parameter]))
                if names:
                    kind: Any = type(module)
                    module.__class__ = _gathering(kind, names)

    def _sharded(self, parameter: nn.Parameter) -> nn.Parameter:
        shape = parameter.shape
        # The longest dimension, so that no process gets an empty shard.
        along: Placement = Shard(max(range(len(shape)), key=shape.__getitem__)) if len(shape) else Replicate()
        shard = divide(parameter.detach(), self._mesh, (along,))
        return nn.Parameter(shard, requires_grad=parameter.requires_grad)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(dict.fromkeys(parameter for _, _, parameter in self._places))

    @contextlib.contextmanager
    def whole(self, *, changes: bool = False) -> Iterator[None]:
        """Gathers full copies of the weights for the duration of the context. Every process must enter and leave
        it; inside, no process waits for another. Nested uses are no-ops.

        Args:
            changes: writes changes to the gathered weights back to the shards.
        """
        if self._whole:
            yield
            return
        self.forget()
        copies = {
            parameter: nn.Parameter(_copied(parameter), requires_grad=parameter.requires_grad)
            for parameter in self.parameters
        }
        self._set(copies)
        self._whole = True
        try:
            yield
            if changes:
                with torch.no_grad():
                    for parameter, copy in copies.items():
                        parameter.copy_(divide(copy, parameter.device_mesh, parameter.placements))  # type: ignore
        finally:
            self._whole = False
            self._set({parameter: parameter for parameter in copies})

    def release(self) -> None:
        """Gathers the parameters permanently. Every process must call it."""
        self.forget()
        self._set({p: nn.Parameter(gathered(p), requires_grad=p.requires_grad) for p in self.parameters})
        self._places = []

    def _set(self, replacements: dict[nn.Parameter, nn.Parameter]) -> None:
        for module, name, parameter in self._places:
            module._parameters[name] = replacements[parameter]

    def forget(self) -> None:
        """Frees the weights gathered by an aborted pass."""
        for parameter in self.parameters:
            parameter.kept = None  # type: ignore[attr-defined]


def divide(tensor: Tensor, mesh: Any, placements: Any) -> DTensor:
    """This process's shard, as a copy, of a tensor that every process holds in full."""
    part = distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None).to_local().clone()
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.contiguous().stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    """The full tensor, detached. Every process must call it. A tensor that is not sharded is returned unchanged."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _copied(parameter: Any) -> Tensor:
    """As `gathered`, but never shares memory with the shard."""
    full, shard = gathered(parameter), parameter.to_local()
    return full.clone() if full.data_ptr() == shard.data_ptr() else full


@functools.cache
def _gathering(kind: Any, names: tuple[str, ...]) -> type:
    """A subclass of a module's class whose parameters are gathered on access."""

    def reads(name: str) -> property:
        return property(lambda module: _read(module._parameters[name]))

    return type(kind.__name__, (kind,), {"__module__": kind.__module__} | {name: reads(name) for name in names})


def _read(parameter: Any) -> Tensor:
    if not isinstance(parameter, DTensor):
        unsharded: Tensor = parameter
        return unsharded
    kept: Tensor | None = getattr(parameter, "kept", None)
    if kept is not None:
        return kept
    full: Tensor = parameter.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    if full.requires_grad and parameter.reread:  # type: ignore[attr-defined]

        def release(gradient: Tensor) -> None:
            parameter.kept = None  # type: ignore[attr-defined]

        parameter.kept = full  # type: ignore[attr-defined]
        full.register_hook(release)
    return full


# --- Optimizers ---


def whole_states(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimizer of sharded parameters save and load the state of an unsharded one. A no-op for others.

    `state_dict` then returns the gathered state on the CPU of rank 0, and no state on other ranks. Every process
    must call it. `load_state_dict` expects the gathered state on every process.
    """
    if any(isinstance(parameter, DTensor) for parameter in _parameters(optimizer)):
        optimizer.register_state_dict_post_hook(_gather)
        optimizer.register_load_state_dict_pre_hook(_scatter)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gather(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    is_first = dist.get_rank() == 0
    full_state: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            full = gathered(value).cpu() if isinstance(value, Tensor) else value
            if is_first:
                full_state.setdefault(index, {})[name] = full
    return state | {"state": full_state}


def _scatter(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = _parameters(optimizer)
    shards: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        parameter = parameters[index]
        shards[index] = {
            name: divide(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            if isinstance(parameter, DTensor) and name != "step" and value.shape == parameter.shape
            else value
            for name, value in values.items()
        }
    return state | {"state": shards}
