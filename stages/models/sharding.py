"""A full fine-tune's weights, gradients and optimizer moments, divided among the processes of a run.

Of each parameter a process keeps its part, a DTensor (ZeRO stage 3: Rajbhandari et al. 2020, arXiv:1910.02054;
FSDP: Zhao et al. 2023, arXiv:2304.11277). In training a weight is gathered where a module reads it, and the
gradient of what was gathered is summed over the processes and scattered as soon as it is known; both are steps of
autograd, as in SimpleFSDP (Zhang et al. 2024, arXiv:2411.00284). Then every process must make the same passes, as
many of them. Where processes do different things, as in decoding, `Shards.whole` gathers a model once for all of
it.

PyTorch's `fully_shard` gathers in hooks around the calls of modules: `stages.models.fast.plain` calls no layer, and
how often a language-model head is called depends on how many tokens a process has.
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
    """The parameters of some modules, divided among all processes, in place and onto `device`. Names stay.

    Raises `StageError` for a mixture of experts: which weights it reads, and with that what processes would wait
    for, depends on the tokens.
    """

    def __init__(self, *modules: nn.Module, device: str) -> None:
        if any("experts" in name for module in modules for name, _ in module.named_modules()):
            raise StageError("a mixture of experts cannot be sharded", where="sharding", hint="set it to none")
        self._mesh = init_device_mesh(device, (dist.get_world_size(),))
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._whole = False
        made: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
        for root in modules:
            # A layer's weights are read once a pass, and anew when it is recomputed. What stands outside of the
            # layers may be read for every chunk of logits, of which processes have unequal numbers.
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
                    if parameter not in made:
                        made[parameter] = self._divided(parameter)
                        made[parameter].reread = id(module) not in layered  # type: ignore[attr-defined]
                    module._parameters[name] = made[parameter]
                    self._places.append((module, name, made[parameter]))
                if names:
                    kind: Any = type(module)
                    module.__class__ = _gathering(kind, names)

    def _divided(self, parameter: nn.Parameter) -> nn.Parameter:
        shape = parameter.shape
        # Along the longest dimension, that no process goes without.
        along: Placement = Shard(max(range(len(shape)), key=shape.__getitem__)) if len(shape) else Replicate()
        own = divide(parameter.detach(), self._mesh, (along,))
        return nn.Parameter(own, requires_grad=parameter.requires_grad)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(dict.fromkeys(parameter for _, _, parameter in self._places))

    @contextlib.contextmanager
    def whole(self, *, changes: bool = False) -> Iterator[None]:
        """The modules with all of their weights, a copy that every process must come for; inside, none waits for
        another. `changes`: what is done to the weights is kept. Inside itself it does nothing."""
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
        """Makes the modules whole again, for good. Every process must ask."""
        self.forget()
        learns = {parameter: parameter.requires_grad for parameter in self.parameters}
        self._set({p: nn.Parameter(gathered(p), requires_grad=learn) for p, learn in learns.items()})
        self._places = []

    def _set(self, now: dict[nn.Parameter, nn.Parameter]) -> None:
        for module, name, parameter in self._places:
            module._parameters[name] = now[parameter]

    def forget(self) -> None:
        """Drops what a pass that was given up had gathered."""
        for parameter in self.parameters:
            parameter.kept = None  # type: ignore[attr-defined]


def divide(tensor: Tensor, mesh: Any, placements: Any) -> DTensor:
    """This process's part of a tensor that every process has, in memory of its own."""
    part = distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None).to_local().clone()
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.contiguous().stride()
    )


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, detached; every process must ask for it. What is not divided comes back as it is."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _copied(parameter: Any) -> Tensor:
    """As `gathered`, in memory of its own even where nothing had to be gathered."""
    whole, part = gathered(parameter), parameter.to_local()
    return whole.clone() if whole.data_ptr() == part.data_ptr() else whole


@functools.cache
def _gathering(kind: Any, names: tuple[str, ...]) -> type:
    """A module's class whose parameters are gathered as they are read."""

    def reads(name: str) -> property:
        return property(lambda module: _read(module._parameters[name]))

    return type(kind.__name__, (kind,), {"__module__": kind.__module__} | {name: reads(name) for name in names})


def _read(parameter: Any) -> Tensor:
    if not isinstance(parameter, DTensor):
        whole: Tensor = parameter
        return whole
    kept: Tensor | None = getattr(parameter, "kept", None)
    if kept is not None:
        return kept
    whole = parameter.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
    if whole.requires_grad and parameter.reread:  # type: ignore[attr-defined]

        def done(gradient: Tensor) -> None:
            parameter.kept = None  # type: ignore[attr-defined]

        parameter.kept = whole  # type: ignore[attr-defined]
        whole.register_hook(done)
    return whole


# --- Optimizers ---


def whole_states(optimizer: torch.optim.Optimizer) -> None:
    """From now on, if what it steps is divided, its `state_dict` is that of an optimizer of whole parameters, on
    the CPU of rank 0 (elsewhere empty; every process must ask), and what it loads is such a one."""
    if any(isinstance(parameter, DTensor) for parameter in _steps(optimizer)):
        optimizer.register_state_dict_post_hook(_gather)
        optimizer.register_load_state_dict_pre_hook(_scatter)


def _steps(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gather(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    first = dist.get_rank() == 0
    found: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            whole = gathered(value).cpu() if isinstance(value, Tensor) else value
            if first:
                found.setdefault(index, {})[name] = whole
    return state | {"state": found}


def _scatter(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    steps = _steps(optimizer)
    found: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        parameter = steps[index]
        found[index] = {
            name: divide(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            if isinstance(parameter, DTensor) and name != "step" and value.shape == parameter.shape
            else value
            for name, value in values.items()
        }
    return state | {"state": found}
