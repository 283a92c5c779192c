"""Scalar heads, which turn a backbone into a reward or value model. Float32, and not managed by peft."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import StageError
from stages.models.precision import without_autocast


class ScalarHead(nn.Linear):
    """(..., H) hidden states -> (...) float32 scalars, under autocast too."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)
        # Stiennon et al. 2020 (arXiv:2009.01325), appendix B.1: outputs start small at any width.
        nn.init.normal_(self.weight, std=1 / (hidden_size + 1) ** 0.5)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with without_autocast(hidden):
            # Not a view: if a view was changed in place, a sharded head would get no gradient.
            return super().forward(hidden.float()).squeeze(-1).clone()

    def rescale_(self, mean: float, std: float) -> None:
        """Changes the head in place so that its output becomes `(output - mean) / std`."""
        with torch.no_grad():
            self.weight /= std
            self.bias.sub_(mean).div_(std)

    def save(self, path: Path) -> None:
        save_file({name: p.detach().cpu().contiguous() for name, p in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> ScalarHead:
        """Loads a head written by `save`. Raises `StageError` when the file is damaged."""
        try:
            state = load_file(path)
            head = cls(state["weight"].shape[1])
            head.load_state_dict(state)
        except Exception as error:
            raise StageError(
                f"the head cannot be loaded: {error}", where=str(path), hint="rerun the stage that wrote it"
            ) from error
        return head


def at_last_token(values_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """The values (B, ...) at each row's last token, from right-padded rows (B, T, ...) and their lengths (B,)."""
    return values_BT[torch.arange(len(lengths_B), device=values_BT.device), lengths_B - 1]
