"""The models of PPO's roles: one frozen backbone with one LoRA adapter per role, or one full model per role.

`ActorBank` holds the backbone with adapters; `FullBank` holds full models, for full fine-tuning. Both are used the
same way:

    with bank.active("policy", train=True) as actor:
        loss = f(actor.hidden(ids))
        loss.backward()

The order is always: activate, forward, backward, then switch. Three properties of peft (0.21) require it:

- `set_adapter` changes `requires_grad`. A backward after a switch silently gives the first adapter no gradient.
- Gradient checkpointing recomputes with the adapter that is active during the backward pass.
- A switch through peft takes 50 times as long as setting each layer's active adapter.

So `requires_grad` is set once, adapters are switched by attribute, and a backward pass under a different adapter
than its forward pass raises an error.
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

from pipeline import invocation
from pipeline.errors import StageError
from stages.models.actor import Actor
from stages.models.fast.linear import FastLoRA, merged, speed_up
from stages.models.heads import ScalarHead
from stages.models.quantization import qat
from stages.models.sharding import Mesh, as_part_of, gathered, shard, whole

BASE = "base"
"""The role of the bare backbone, with no adapter active."""


class Bank(nn.Module, ABC):
    """Base class of both banks. Subclasses define a role's modules and how the role is activated.

    Attributes:
        heads: scalar heads by role.
        trainable: the roles that are trained.
        roles: the roles that can be activated.
        mesh: the processes that the parameters are sharded over; None: each process holds all of them. If sharded,
            every process must call the methods, and in training every process must make the same number of passes.
    """

    roles: tuple[str, ...]
    mesh: Mesh | None = None

    def __init__(self, heads: Mapping[str, ScalarHead], trainable: Sequence[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.trainable = frozenset(trainable)
        self._role: str | None = None
        self._actors: dict[str, Actor] = {}
        self._quantised: dict[str, list[qat.Quantised]] = {}
        self._lora: list[FastLoRA] = []
        self._whole: set[nn.Module] = set()

    @contextlib.contextmanager
    def active(self, role: str, *, train: bool = False, decode: bool = False) -> Iterator[Actor]:
        """Activates a role and yields its actor.

        Args:
            train: records gradients. Without it the context runs under `no_grad`.
            decode: lets adapters be merged into copies of the weights inside the context.

        Raises `RuntimeError` when a role is already active, or when `train` is set for a frozen role.
        """
        if self._role is not None:
            raise RuntimeError(f"role {role!r} activated inside role {self._role!r}: roles do not nest")
        if train and role not in self.trainable:
            raise RuntimeError(f"role {role!r} is frozen")
        self._role = role
        try:
            if role not in self._actors:
                self._actors[role] = self._actor(role)
            actor = self._actors[role]
            # Read-only callers, such as decoding, do not synchronise: they use gathered weights.
            unsharded = contextlib.nullcontext() if train else self.whole(role)
            with unsharded, self._routed(role) as lm:
                # All modules share one mode. Calling `train` every time would cost a small model 5 % of its step.
                if lm.training != train:
                    lm.train(train)
                merging = merged(self._lora) if decode else contextlib.nullcontext()
                rounded_once = qat.kept(self._quantised[role])
                with torch.enable_grad() if train else torch.no_grad(), merging, rounded_once:
                    yield actor.through_modules() if train and self.mesh else actor
        finally:
            self._role = None

    @property
    def role(self) -> str | None:
        """The role that is active, if any."""
        return self._role

    def _actor(self, role: str) -> Actor:
        head = self.heads[role] if role in self.heads else None  # noqa: SIM401 (a ModuleDict has no get)
        with self.whole(role), self._routed(role) as lm:
            self._quantised[role] = qat.quantised(lm)
            return Actor(lm, head, self._route)  # type: ignore[arg-type]

    def shard(self, mesh: Mesh, *, offload: bool = False) -> None:
        """Shards all roles (`stages.models.sharding`). They cannot be moved to another device after that."""
        self.mesh = mesh
        for module in [*dict.fromkeys(map(self._lm_of, self.roles)), *self.heads.values()]:
            shard(module, mesh, offload=offload)

    @contextlib.contextmanager
    def whole(self, role: str) -> Iterator[None]:
        """Gathers a sharded role's weights on every process for the duration of the context, which may be nested.
        Weights must not change in it. A no-op if the bank is not sharded."""
        with contextlib.ExitStack() as stack:
            modules = [self._lm_of(role), *([self.heads[role]] if role in self.heads else [])]
            opened = [module for module in modules if self.mesh and module not in self._whole]
            self._whole.update(opened)
            stack.callback(self._whole.difference_update, opened)
            for module in opened:
                stack.enter_context(whole(module))
            yield

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """A role's parameters with its scalar head, without those that roles share."""
        return list(self._role_parameters(role).values())

    def _role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        parameters = {f"model.{name}": p for name, p in self._named_parameters(role).items()}
        if role in self.heads:
            parameters |= {f"head.{name}": p for name, p in self.heads[role].named_parameters()}
        return parameters

    def state_of(self, role: str) -> dict[str, Tensor]:
        """A role's parameters by name, for a checkpoint: copies on the CPU or, of a sharded role, the parts."""
        if self.mesh:
            return {name: parameter.detach() for name, parameter in self._role_parameters(role).items()}
        return {name: parameter.detach().cpu().clone() for name, parameter in self._role_parameters(role).items()}

    def load_state_of(self, role: str, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_of`; also accepts whole tensors for a sharded role. Raises `StageError` when the
        names or shapes differ."""
        parameters = self._role_parameters(role)
        if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in state.items()}:
            raise StageError(
                f"the checkpoint of role {role!r} has other parameters than the model",
                hint=f"start the stage again: `{invocation.stage_again('--fresh')}`",
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(as_part_of(parameter, state[name]))

    def checksum(self, role: str) -> str:
        """SHA-256 of a role's parameters. Equal checksums mean equal weights."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self._role_parameters(role).items()):
            digest.update(name.encode())
            digest.update(gathered(parameter).cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @abstractmethod
    def _lm_of(self, role: str) -> PreTrainedModel:
        """The causal LM that holds a role's weights."""

    @abstractmethod
    def _routed(self, role: str) -> contextlib.AbstractContextManager[PreTrainedModel]:
        """Activates a role's model and yields its causal LM."""

    @abstractmethod
    def _route(self) -> Any:
        """What is active now, for comparison between the forward and the backward pass."""

    @abstractmethod
    def _named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's parameters without its head, under names that do not depend on the role."""


class ActorBank(Bank):
    """LoRA adapters on one frozen backbone.

    Args:
        model: a peft model with one adapter per role, named after it.
        heads: scalar heads by role.
        trainable: the roles to train. All other parameters are frozen.
    """

    def __init__(self, model: PeftModel, heads: Mapping[str, ScalarHead], trainable: Sequence[str]) -> None:
        super().__init__(heads, trainable)
        self.model = model
        self.roles = tuple(model.peft_config)
        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for role in self.roles:
            trainable_role = role in self.trainable
            for parameter in self._named_parameters(role).values():
                parameter.data = parameter.data.float()
                parameter.requires_grad_(trainable_role)
        for role, head in self.heads.items():
            head.requires_grad_(role in self.trainable)
        self._switch(None)
        qat.adapt(model)
        self._lora = speed_up(model)
        self.eval()

    def _lm_of(self, role: str) -> PreTrainedModel:
        return self.model.get_base_model()  # type: ignore[return-value]

    @contextlib.contextmanager
    def _routed(self, role: str) -> Iterator[PreTrainedModel]:
        if role != BASE and role not in self.roles:
            raise RuntimeError(f"no adapter {role!r}; there are {', '.join(self.roles)}")
        self._switch(None if role == BASE else role)
        try:
            yield self._lm_of(role)
        finally:
            self._switch(None)

    def _switch(self, adapter: str | None) -> None:
        # peft's set_adapter would also change requires_grad, and take 50 times as long.
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            layer._active_adapter = [] if adapter is None else [adapter]

    def _route(self) -> Any:
        return {(layer._disable_adapters, *layer._active_adapter) for layer in self._layers}

    def _named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        # Names without the adapter's, so that roles can be compared and copied.
        infix = f".{role}."
        return {n.replace(infix, "."): p for n, p in self.model.named_parameters() if "lora_" in n and infix in n}


class FullBank(Bank):
    """One full model per role, for full fine-tuning.

    Args:
        models: causal LMs by role, each a distinct object.
        heads: scalar heads by role.
        trainable: the roles to train.
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
        self.eval()

    def _lm_of(self, role: str) -> PreTrainedModel:
        return self.models[role]  # type: ignore[return-value]

    @contextlib.contextmanager
    def _routed(self, role: str) -> Iterator[PreTrainedModel]:
        yield self._lm_of(role)

    def _route(self) -> Any:
        return None  # roles share no weights, so no route can be wrong

    def _named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        return dict(self.models[role].named_parameters())


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout probability to zero, including those that attention layers keep as a number
    (`attention_dropout`) and pass to a function.

    PPO's ratio compares a policy with itself a few steps later: dropout would add noise to it (Huang et al. 2024,
    arXiv:2403.17031, detail 3.2).
    """
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
            # transformers renames this method: new versions warn about the old name, older ones lack the new one.
            name = "activation_checkpointing_enable"
            enable = getattr(module, name, None) or module.gradient_checkpointing_enable
            enable({"use_reentrant": False})
