"""Runs a function in several processes that form a group: over gloo, and over NCCL between GPUs."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def spawn(count: int, work: Callable[..., None], *arguments: Any, device: str = "cpu") -> None:
    """Calls `work(*arguments)`, a function of a module, in `count` processes. Raises if it fails in one."""
    mp.spawn(_join, args=(count, free_port(), device, work, arguments), nprocs=count)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _join(
    rank: int, count: int, port: int, device: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    work(*arguments)
    dist.barrier()
    dist.destroy_process_group()
