"""Optimizer steps of a Hugging Face `Trainer` that depend on neither micro-batch size nor number of processes.

A step covers the same examples with the same weights, however they are divided. accelerate's sharding instead fills
an epoch's last batch with examples from the start of the epoch, and averages over processes regardless of the
number of examples on each.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.trainer import utils as trl_utils

from pipeline.errors import StageError
from stages.models.distributed import World
from stages.models.microbatch import MicroBatch
from stages.models.precision import computing, precision_of
from stages.training.loss_scale import LossScale, needs_loss_scale
from stages.training.sharded import ShardedTrainer


class GlobalBatches(Sampler[list[int]]):
    """Yields this process's share of each optimizer step's examples, as indices. A share may be empty.

    The random order equals that of accelerate's `SeedableRandomSampler`.
    """

    def __init__(
        self,
        count: int,
        size: int,
        seed: int,
        world: World,
        *,
        lengths: Sequence[int] | None,
        shuffle: bool,
        drop: bool,
    ) -> None:
        self.count, self.size, self.seed, self.world = count, size, seed, world
        self.lengths, self.shuffle, self.drop, self.epoch = lengths, shuffle, drop, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.size if self.drop else -(-self.count // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.lengths is not None:
            order = list(LengthGroupedSampler(self.size, lengths=list(self.lengths), generator=generator))
        elif self.shuffle:
            order = torch.randperm(self.count, generator=generator).tolist()
        else:
            order = list(range(self.count))
        for step in range(len(self)):
            chosen = order[step * self.size : (step + 1) * self.size]
            yield [chosen[i] for i in self.world.mine(len(chosen)).tolist()]


class _Loader(DataLoader[Any]):
    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class GlobalBatchTrainer(ShardedTrainer):
    """A Trainer whose steps are over `GlobalBatches`. A second base class may specialise the Trainer.

    Attributes:
        micro: the micro-batch size. Must be set before training.
        scale: the loss scale, active for a model with float16 weights.
    """

    micro: MicroBatch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.world = World()
        if self.accelerator.num_processes != self.world.size:
            raise StageError(
                f"the stage runs on {self.world.size} processes, but the trainer uses "
                f"{self.accelerator.num_processes}",
                hint="report this with the recipe",
            )
        # No DDP: it averages gradients and cannot undo a micro-batch. `training_step` sums them once per step.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        model: Any = self.model
        self.scale, backward = LossScale(needs_loss_scale(model)), self.accelerator.backward
        self.accelerator.backward = lambda loss, **kwargs: backward(self.scale(loss), **kwargs)

    # --- The examples of a step ---

    def get_train_dataloader(self) -> DataLoader[Any]:
        dataset: Any = self.train_dataset
        if hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset, description="training")
        args, strategy = self.args, self.args.train_sampling_strategy
        if strategy not in ("random", "sequential", "group_by_length"):
            raise StageError(
                f"train_sampling_strategy: {strategy} is not supported",
                hint="use random, sequential or group_by_length",
            )
        batches = GlobalBatches(
            len(dataset),
            args.per_device_train_batch_size,
            args.seed if args.data_seed is None else args.data_seed,
            self.world,
            lengths=[self.length(row) for row in dataset] if strategy == "group_by_length" else None,
            shuffle=strategy == "random",
            drop=args.dataloader_drop_last,
        )
        return _Loader(
            dataset,
            batch_sampler=batches,
            collate_fn=list,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            in_order=args.dataloader_in_order,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """All held-out examples on every process: accelerate's sharding would change their weights."""
        self.accelerator.prepare = lambda loader: loader
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            del self.accelerator.prepare

    def length(self, example: Any) -> int:
        """Tokens of an example."""
        return len(example["input_ids"])

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        examples = next(epoch_iterator)
        return [examples], self.world.sum(self.count(examples).to(device))

    def count(self, examples: list[Any]) -> Tensor:
        """The number that a step's loss is divided by: here the number of labels."""
        if not examples:
            return torch.tensor(0.0)
        labels = self._get_num_items_in_batch([self.data_collator(examples)], torch.device("cpu"))
        return torch.as_tensor(labels).float()

    # --- The step ---

    def autocast_smart_context_manager(
        self, cache_enabled: bool | None = True
    ) -> contextlib.AbstractContextManager[Any]:
        """The context of every forward pass: the model's precision instead of accelerate's."""
        return computing(self.model)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Computes the gradients of a step over all micro-batches and processes. Returns its loss."""
        unwrapped: Any = self.model  # `model` may be wrapped
        assert self.optimizer is not None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        def work(size: int | None) -> Tensor:
            total = torch.zeros((), device=self.args.device)
            for start in range(0, len(inputs), size or len(inputs)):
                part = self.data_collator(inputs[start : start + (size or len(inputs))])
                total += super(GlobalBatchTrainer, self).training_step(unwrapped, part, num_items_in_batch)
            return total

        def undo() -> None:
            for parameter in parameters:
                parameter.grad = None

        # Sharded parameters need the same number of passes on every process.
        passes = -(-len(inputs) // (self.micro.size or max(1, len(inputs))))
        most = passes if self.mesh is None else self.world.most(passes)
        loss = self.micro.run(work, len(inputs), undo) if inputs else torch.zeros((), device=self.args.device)
        for _ in range(passes, most):
            unwrapped.train()
            output = self.idle(unwrapped)
            output.backward(torch.zeros_like(output))
        self.world.sum_gradients(parameters)
        self._unscale(parameters)
        return self.world.sum(loss)

    def idle(self, model: Any) -> Tensor:
        """A dummy forward pass through all trainable weights, for a process that has run out of examples."""
        raise NotImplementedError

    def _unscale(self, parameters: list[torch.nn.Parameter]) -> None:
        """Divides the gradients by the loss scale. If one overflowed, removes all gradients, which makes the
        optimizer step a no-op."""
        if not self.scale.active:
            return
        self.scale.unscale_(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = bool(norm.isfinite())
        if self.scale.skips(finite):
            for parameter in parameters:
                parameter.grad = None
        elif not finite:
            raise StageError(
                f"the gradient is {float(norm)} at step {self.state.global_step + 1}",
                hint="lower trainer.learning_rate, or use base.dtype: float32",
            )

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    # --- State that is not in transformers' checkpoints ---

    def running_state(self) -> dict[str, Any]:
        """Running sums of logged metrics, the micro-batch size and the loss scale, as JSON values."""
        return {
            "loss": float(self._tr_loss),
            "total_loss": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
            "micro_batch": self.micro.state_dict(),
            "loss_scale": self.scale.state_dict(),
        }

    def load_running_state(self, state: dict[str, Any]) -> None:
        self._tr_loss.fill_(state["loss"])
        self._total_loss_scalar = state["total_loss"]
        self._globalstep_last_logged = state["logged_at"]
        self._initial_global_step = 0  # the mean loss covers the whole training, not only the part since resuming
        self.micro.load_state_dict(state["micro_batch"])
        if "loss_scale" in state:  # missing from checkpoints of earlier versions
            self.scale.load_state_dict(state["loss_scale"])


class TrlTrainer(GlobalBatchTrainer):
    """A `GlobalBatchTrainer` with one of trl's trainers as the second base class, whose metrics also cover whole
    steps."""

    _metrics: Any
    _total_train_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Without Triton, trl's fused head scores all positions instead of those with labels, to keep shapes
        # constant for compilers. On a CPU nothing is compiled, and prompts are most of a batch.
        trl_utils._use_triton = lambda device: device.type in ("cpu", "cuda", "xpu")  # type: ignore[attr-defined]

    def idle(self, model: Any) -> Tensor:
        ids = torch.zeros((1, 2), dtype=torch.long, device=self.args.device)
        # trl's patch of `forward`, without this argument, calls the model that the sharded one is a copy of.
        loss: Tensor = model(input_ids=ids, labels=ids, fused_lm_head=True).loss
        return loss

    @contextlib.contextmanager
    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.args.device.type == "cpu" and precision_of(self.model) == torch.bfloat16:
                # The backward pass of the CPU's flash attention is slower than plain products in bfloat16.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(super().autocast_smart_context_manager(cache_enabled))
            yield

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        # trl gathers metrics in every pass, but processes may make different numbers of passes: `log` gathers.
        self.accelerator.gather_for_metrics = self.accelerator.gather = lambda values: values
        before = self._total_train_tokens
        loss = super().training_step(model, inputs, num_items_in_batch)
        del self.accelerator.gather_for_metrics, self.accelerator.gather
        tokens = torch.tensor(self._total_train_tokens - before)
        self._total_train_tokens = before + int(self.world.sum(tokens))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        model: Any = self.model
        if model.training and self.world.size > 1:
            # A process without examples since the last log has no metrics.
            by_process = self.world.together([dict(self._metrics["train"])], self.world.size)
            for name in {name for metrics in by_process for name in metrics}:
                self._metrics["train"][name] = [
                    number for metrics in by_process for number in metrics.get(name, [])
                ]
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        super().log(logs, start_time)

    def running_state(self) -> dict[str, Any]:
        state = {"metrics": self._metrics["train"], "tokens": self._total_train_tokens}
        return super().running_state() | state

    def load_running_state(self, state: dict[str, Any]) -> None:
        super().load_running_state(state)
        self._metrics["train"].update(state["metrics"])
        self._total_train_tokens = state["tokens"]
