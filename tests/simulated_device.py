"""A simulated accelerator, `sim`: runs the project's device code on machines that have no GPU.

Tensors on `sim` compute on the CPU but imitate CUDA tensors where programs tend to fail:

- An operation on tensors of two devices raises, except those that CUDA allows: copies, a host scalar in a pointwise
  operation, and a device tensor indexed by a host tensor.
- A device tensor has no `numpy()`.
- float64 on the device raises. CUDA has it, but MPS does not.
- Host synchronisations are counted by source line: reading a value (`item`, `tolist`, `if tensor`), operations
  whose output shape depends on data (`nonzero`, boolean indices, `masked_select`, `unique`), and copies between
  host and device.

Every refusal is also recorded in `refused`, because a caller may catch the exception.

A device can be registered only once per process and changes what `torch.accelerator` reports, so tests that need it
run in a separate process:

    python tests/simulated_run.py REPORT.json run eval --recipe tiny.yaml     # the command line
    SIMULATED_DEVICE=1 python -m pytest tests/device                          # its tests
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME, CPU = "sim", torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]

aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten._copy_from, aten._copy_from_and_resize}
INDEXING = {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_}
SCALARS = {aten.fill_, aten.masked_fill, aten.masked_fill_, aten.lift_fresh}
"""Operations that take a host scalar although they are not tagged as pointwise."""
WAITING = {
    aten._local_scalar_dense: "item",
    aten.equal: "equal",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique: "unique",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.bincount: "bincount",
    aten.multinomial: "multinomial",
}
"""Operations that wait for the device, and the name they are counted under."""

syncs: Counter[tuple[str, str]] = Counter()
"""Host synchronisations so far, by (kind, source line)."""
refused: list[str] = []
"""Refused operations so far, with source lines."""


class DeviceTensor(Tensor):
    """A tensor on `sim`. Its data is in `host`, a CPU tensor that only this file uses."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool = False) -> DeviceTensor:
        if host.dtype in (torch.float64, torch.complex128):
            refuse(f"{host.dtype} on the device")
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        tensor.host = host
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, *args, **(kwargs or {}))

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.host})"

    # For a real tensor C++ implements these.

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def tolist(self) -> Any:
        _count("tolist")
        return self.host.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        refuse("numpy() of a device tensor", TypeError)

    __array__ = numpy

    def __getitem__(self, index: Any) -> Any:
        return torch.Tensor.__getitem__(self, _lists_as_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        torch.Tensor.__setitem__(self, _lists_as_tensors(index), value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Loads on the CPU, as with `map_location="cpu"`; the caller has to move it.
        return self.host.detach().clone().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        tensor = DeviceTensor(self.host.detach().clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            tensor._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = tensor
        return tensor

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = value.host


def _lists_as_tensors(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_lists_as_tensors(i) for i in index)
    return torch.tensor(index) if isinstance(index, list) else index


def refuse(what: str, kind: type[Exception] = RuntimeError) -> NoReturn:
    """Records a refused operation and raises `kind`."""
    refused.append(f"{what} at {_site()}")
    raise kind(f"simulated device: {what}")


@contextlib.contextmanager
def counting() -> Iterator[Counter[tuple[str, str]]]:
    """Yields a counter of the block's synchronisations, which is filled when the block ends."""
    before, counts = Counter(syncs), Counter[tuple[str, str]]()
    yield counts
    counts.update(Counter(syncs) - before)


def _count(kind: str) -> None:
    syncs[kind, _site()] += 1


def _site() -> str:
    """The innermost running source line of the project."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}/") and "/.venv/" not in path and path != __file__:
            return f"{path[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the project"


# --- Running an operation -----------------------------------------------------------------------------------------


def _call(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs an ATen operation that takes or returns device tensors."""
    packet = func.overloadpacket
    here: list[DeviceTensor] = []
    elsewhere: list[Tensor] = []
    host_args = [_on_host(value, here, elsewhere) for value in args]
    host_kwargs = {name: _on_host(value, here, elsewhere) for name, value in kwargs.items()}
    if packet in COPIES:
        return _copy(func, args, kwargs, host_args, host_kwargs)
    if elsewhere:
        _check_devices(func, args, here, elsewhere)
    if packet in WAITING:
        _count(WAITING[packet])
    if packet in INDEXING:
        _count_indices(args[1])
    if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
        _count("repeat_interleave without output_size")
    return _on_device(func(*host_args, **host_kwargs), here)


def _on_host(value: Any, here: list[DeviceTensor], elsewhere: list[Tensor]) -> Any:
    """Converts an argument for the CPU and adds its tensors to one of the two lists."""
    if isinstance(value, DeviceTensor):
        here.append(value)
        return value.host
    if isinstance(value, Tensor):
        elsewhere.append(value)
    elif isinstance(value, list | tuple):
        return [_on_host(item, here, elsewhere) for item in value]
    elif isinstance(value, torch.device) and value.type == NAME:
        return CPU
    return value


def _on_device(result: Any, here: list[DeviceTensor]) -> Any:
    """Converts a result to device tensors. Results of in-place operations are the argument itself."""
    if isinstance(result, Tensor):
        for argument in here:
            if argument.host is result:
                return argument
        return DeviceTensor(result)
    if isinstance(result, list | tuple):
        return [_on_device(item, here) for item in result]
    return result


def _check_devices(func: Any, args: Any, here: list[Any], elsewhere: list[Tensor]) -> None:
    packet = func.overloadpacket
    indexing = packet in INDEXING and isinstance(args[0], DeviceTensor)
    if indexing:
        indices = {id(x) for x in args[1]}
        elsewhere = [x for x in elsewhere if id(x) not in indices]
    scalars = indexing or torch.Tag.pointwise in func.tags or packet in SCALARS
    if func._schema.is_mutable and any(x is args[0] for x in elsewhere):
        scalars = False  # a device does not write into a host scalar
    if any(x.dim() or not scalars for x in elsewhere):
        shapes = [f"{x.device}{tuple(x.shape)}" for x in (*here, *elsewhere)]
        refuse(f"{packet.__name__}: all tensors must be on the same device, found {', '.join(shapes)}")


def _count_indices(indices: Any) -> None:
    for index in indices:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
            _count("boolean index")
        elif isinstance(index, Tensor) and not isinstance(index, DeviceTensor):
            _count("host to device")


def _copy(func: Any, args: Any, kwargs: Any, host_args: Any, host_kwargs: Any) -> Any:
    """Copies between devices, within the device, or to another dtype."""
    result = func(*host_args, **host_kwargs)
    if func.overloadpacket is not aten._to_copy:  # (destination, source)
        target, source = args[:2]
        if isinstance(target, DeviceTensor) != isinstance(source, DeviceTensor):
            _count("host to device" if isinstance(target, DeviceTensor) else "device to host")
        return target
    from_device, device = isinstance(args[0], DeviceTensor), kwargs.get("device")
    to_device = from_device if device is None else torch.device(device).type == NAME
    if from_device != to_device:
        _count("host to device" if to_device else "device to host")
    return DeviceTensor(result) if to_device else result


# --- The backend --------------------------------------------------------------------------------------------------

FACTORIES = (
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "randperm",
    "eye",
    "eye.m",
    "tril_indices",
    "triu_indices",
)
"""Operations that make a tensor by resizing an empty one, which a wrapper cannot follow."""

AUTOCAST = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "scaled_dot_product_attention")
"""Operations that autocast runs in its dtype; the others keep the dtype of their inputs."""

_safetensors_load_file = safetensors.torch.load_file
_registered: list[Any] = []  # a registration lasts as long as its object


class _Module:
    """The interface that PyTorch requires of `torch.sim`."""

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def device(self, index: Any) -> Any:
        return contextlib.nullcontext()

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = 0) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = 0) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def synchronize(self, device: Any = None) -> None:
        _count("synchronize")

    def empty_cache(self) -> None:
        pass


def install() -> str:
    """Registers the device once per process, before peft is imported. Returns its name."""
    if not _registered:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        anything, operations = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        anything.fallback(_call, "PrivateUse1")
        anything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in AUTOCAST:
            operations.impl(name, partial(_autocast, getattr(aten, name)), "AutocastPrivateUse1")
        for name in FACTORIES:
            packet, _, overload = name.partition(".")
            func = getattr(getattr(aten, packet), overload or "default")
            operations.impl(name, partial(_call, func), "PrivateUse1")
        safetensors.torch.load_file = _load_file  # type: ignore[assignment]
        torch.__future__.set_swap_module_params_on_conversion(True)  # so that tied weights stay tied in `to`
        torch.inference_mode = _no_grad  # type: ignore[assignment, misc]
        _device_constructors()  # PyTorch's own list, cached before two of its functions are replaced
        torch.tensor, torch.as_tensor = _made_on_host(torch.tensor), _made_on_host(torch.as_tensor)
        _registered.extend([anything, operations])
    return NAME


def _autocast(packet: Any, *args: Any, **kwargs: Any) -> Any:
    dtype = torch.get_autocast_dtype(NAME)

    def narrow(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    with torch.autocast(NAME, enabled=False):
        return packet(*map(narrow, args), **{name: narrow(value) for name, value in kwargs.items()})


def _no_grad(mode: bool = True) -> Any:
    """PyTorch cannot make inference tensors of wrapper subclasses."""
    return torch.no_grad() if mode else contextlib.nullcontext()


def _load_file(filename: Any, device: Any = "cpu", **options: Any) -> dict[str, Tensor]:
    """safetensors only accepts real devices."""
    return {name: tensor.to(device) for name, tensor in _safetensors_load_file(filename, **options).items()}


def _made_on_host(make: Any) -> Any:
    """`torch.tensor` copies to a device below the level that a backend in Python can see."""

    @wraps(make)
    def make_on_host(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.get("device")
        if device is None or torch.device(device).type != NAME or isinstance(data, Tensor):
            return make(data, *args, **kwargs)
        on_host = make(data, *args, **(kwargs | {"device": "cpu"}))
        return on_host.detach().to(device).requires_grad_(on_host.requires_grad)

    return make_on_host
