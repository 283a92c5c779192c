"""One backbone, four roles.

`ActorBank` holds one frozen backbone that carries a LoRA adapter a role; `FullBank` holds a whole model a role, for
full fine-tuning. Both are used in one way only:

    with bank.active("policy", train=True) as actor:
        loss = f(actor.hidden(ids))
        loss.backward()

Three properties of peft make the rule "activate, forward, backward, then switch" (measured with 0.21):
`set_adapter` flips `requires_grad`, so that a backward after a switch gives the first adapter no gradient, in
silence; gradient checkpointing recomputes with whatever adapter is active *then*; and a switch through peft costs
50 times what routing by each layer's active adapter does. So `requires_grad` is set once, routes are changed by
attribute, and a gradient that arrives under another route than its forward had is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.errors import StageError
from stages.models.actor import Actor
from stages.models.fast.linear import FastLoRA, merged, speed_up
from stages.models.heads import ScalarHead
from stages.models.quantization import qat
from stages.models.sharding import Shards, gathered
from stages.training.distributed import World

BASE = "base"
"""The role of the bare backbone, no adapter active."""


class Bank(nn.Module, ABC):
    """What both kinds share. Subclasses say which modules a role has and how it is made active.

    Attributes:
        heads: scalar heads by role.
        trainable: the roles that learn.
        roles: all that can be made active.
        sharded: whether its parameters are divided among the processes. Then all of them call its methods, and in
            training make equally many passes.
    """

    roles: tuple[str, ...]
    sharded = False

    def __init__(self, heads: Mapping[str, ScalarHead], trainable: Sequence[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.trainable = frozenset(trainable)
        self._role: str | None = None
        self._actors: dict[str, Actor] = {}
        self._rounded: dict[str, list[qat.Quantised]] = {}
        self._lora: list[FastLoRA] = []

    @contextlib.contextmanager
    def active(self, role: str, *, train: bool = False, decode: bool = False) -> Iterator[Actor]:
        """The only way in. Without `train` no gradient is recorded. With `decode` adapters may be merged into
        copies of their weights for the time. Roles do not nest."""
        if self._role is not None:
            raise RuntimeError(f"role {role!r} inside role {self._role!r}: roles do not nest")
        if train and role not in self.trainable:
            raise RuntimeError(f"role {role!r} is frozen")
        self._role = role
        try:
            # Who only reads does it at a pace of its own, as in decoding.
            read = contextlib.nullcontext() if train else self.whole(role)
            with read, self._routed(role) as lm:
                # All of it is in one mode: to walk it each time would cost a small model a twentieth of its step.
                if lm.training != train:
                    lm.train(train)
                if role not in self._actors:
                    head = self.heads[role] if role in self.heads else None  # noqa: SIM401 (a ModuleDict has no get)
                    self._actors[role] = Actor(lm, head, self._route)  # type: ignore[arg-type]
                    self._rounded[role] = qat.quantised(lm)
                faster = merged(self._lora) if decode else contextlib.nullcontext()
                rounded = qat.kept(self._rounded[role])
                with torch.enable_grad() if train else torch.no_grad(), faster, rounded:
                    yield self._actors[role]
        finally:
            self._role = None

    def whole(self, role: str, *, changes: bool = False) -> contextlib.AbstractContextManager[None]:
        """Inside it a sharded role has all of its weights on every process; of another one it does nothing.
        `changes`: what is done to them there is kept."""
        return contextlib.nullcontext()

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """A role's own parameters, scalar head included; without what it shares with others."""
        return list(self._own(role).values())

    def _own(self, role: str) -> dict[str, nn.Parameter]:
        own = {f"model.{name}": p for name, p in self._named_parameters(role).items()}
        if role in self.heads:
            own |= {f"head.{name}": p for name, p in self.heads[role].named_parameters()}
        return own

    def state_of(self, role: str) -> dict[str, Tensor]:
        """A role's own tensors by name, on the CPU, for a checkpoint. Those of a sharded role are whole, and on
        rank 0 only: elsewhere there are none."""
        state = {}
        for name, parameter in self._own(role).items():
            tensor = gathered(parameter).cpu()
            if not self.sharded or World().rank == 0:
                state[name] = tensor.clone()
        return state

    def load_state_of(self, role: str, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_of`. Raises `StageError` when the names or shapes differ."""
        with torch.no_grad(), self.whole(role, changes=True):
            own = self._own(role)
            if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in state.items()}:
                raise StageError(
                    f"the checkpoint of role {role!r} has other parameters than the model",
                    hint="start the stage afresh, with --fresh",
                )
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def checksum(self, role: str) -> str:
        """SHA-256 of a role's own parameters: equal sums mean equal weights."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self._own(role).items()):
            digest.update(name.encode())
            digest.update(gathered(parameter).cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def _routed(self, role: str) -> contextlib.AbstractContextManager[PreTrainedModel]:
        """Makes a role's model the one that computes."""

    @abstractmethod
    def _route(self) -> Any:
        """What is active now, to be compared between forward and backward."""

    @abstractmethod
    def _named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's own parameters, by names that are the same for every role."""


class ActorBank(Bank):
    """LoRA adapters on one frozen backbone.

    Args:
        model: a peft model that holds an adapter named after each role.
        heads: scalar heads by role.
        trainable: the roles that learn; all else is frozen, once.
    """

    def __init__(self, model: PeftModel, heads: Mapping[str, ScalarHead], trainable: Sequence[str]) -> None:
        super().__init__(heads, trainable)
        self.model = model
        self.roles = tuple(model.peft_config)
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for role in self.roles:
            learns = role in self.trainable
            for parameter in self._named_parameters(role).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(learns)
        for role, head in self.heads.items():
            head.requires_grad_(role in self.trainable)
        self._switch(None)
        qat.adapt(model)
        self._lora = speed_up(model)
        self.eval()

    @contextlib.contextmanager
    def _routed(self, role: str) -> Iterator[PreTrainedModel]:
        if role != BASE and role not in self.roles:
            raise RuntimeError(f"no adapter {role!r}; there are {', '.join(self.roles)}")
        self._switch(None if role == BASE else role)
        try:
            yield self.model.get_base_model()  # type: ignore[misc]
        finally:
            self._switch(None)

    def _switch(self, adapter: str | None) -> None:
        # peft's own set_adapter would also flip requires_grad, and take 50 times as long.
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            layer._active_adapter = [] if adapter is None else [adapter]

    def _route(self) -> Any:
        return {(layer._disable_adapters, *layer._active_adapter) for layer in self._layers}

    def _named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """By names without the adapter's, so that roles can be compared and copied."""
        mark = f".{role}."
        return {n.replace(mark, "."): p for n, p in self.model.named_parameters() if "lora_" in n and mark in n}


class FullBank(Bank):
    """A whole model a role, for full fine-tuning.

    Args:
        models: causal LMs by role, no two the same object.
        heads: scalar heads by role.
        trainable: the roles that learn.
    """

    def __init__(
        self, models: Mapping[str, PreTrainedModel], heads: Mapping[str, ScalarHead], trainable: Sequence[str]
    ) -> None:
        super().__init__(heads, trainable)
        self.models = nn.ModuleDict(models)
        self.roles = tuple(models)
        for role, model in self.models.items():
            model.requires_grad_(role in self.trainable)
            speed_up(model)
        for role, head in self.heads.items():
            head.requires_grad_(role in self.trainable)
        self._shards: dict[str, Shards] = {}
        self.eval()

    def shard(self, device: str) -> None:
        """Divides every role among the processes, onto `device` (`stages.models.sharding`)."""
        self.sharded = True
        for role, model in self.models.items():
            heads = [self.heads[role]] if role in self.heads else []
            self._shards[role] = Shards(model, *heads, device=device)

    def whole(self, role: str, *, changes: bool = False) -> contextlib.AbstractContextManager[None]:
        return self._shards[role].whole(changes=changes) if self.sharded else contextlib.nullcontext()

    @contextlib.contextmanager
    def _routed(self, role: str) -> Iterator[PreTrainedModel]:
        yield self.models[role]  # type: ignore[misc]

    def _route(self) -> Any:
        return None  # each role has weights of its own: no route can be wrong

    def _named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        return dict(self.models[role].named_parameters())


def disable_dropout(model: nn.Module) -> None:
    """PPO's ratio compares one policy with itself a few steps later: dropout would be noise in it (Huang et al.
    2024, arXiv:2403.17031, detail 3.2). Sets every dropout's probability to zero, those included that attention
    layers keep as a number (`attention_dropout`) and pass to a function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def checkpoint_activations(model: nn.Module) -> None:
    """Recomputes activations in the backward pass instead of keeping them (`ppo.gradient_checkpointing`)."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            # transformers is renaming it: the old name warns, and the oldest versions know no other.
            name = "activation_checkpointing_enable"
            enable = getattr(module, name, None) or module.gradient_checkpointing_enable
            enable({"use_reentrant": False})
