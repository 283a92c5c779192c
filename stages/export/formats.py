"""The formats of an exported policy: writes each, and loads it as a user would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.stage import Artifact, Progress
from stages.export import checkpoints, gguf_file
from stages.export.modelfile import modelfile
from stages.models.loading import dtype_of
from stages.models.quantization import qat
from stages.models.text import Codec

GRIDS: dict[str, str] = {
    "nf4": "nf4",
    "torchao_int2": "int2-g32",
    "torchao_int3": "int3-g32",
    "torchao_int4": "int4-g32",
    "gguf_q8_0": "q8_0",
    "gguf_q4_0": "q4_0",
}
"""Format -> the grid of quantisation-aware training that it stores exactly."""

QUANTISED = {*GRIDS, *checkpoints.TORCHAO}
"""Formats that quantise the linear layers of the blocks."""


@dataclass(frozen=True)
class Files:
    """The files of an exported policy: merged safetensors at the top of a folder, where `from_pretrained` and the
    Hub expect them, and each other format in a subfolder of its name, with the tokenizer.

    Attributes:
        folder: the output folder.
        scratch: for float32 checkpoints that other libraries quantise.
        dtype: the dtype of merged safetensors, and of the unquantised weights in nf4 and torchao checkpoints.
        temperature: written into Modelfiles.
        name: the model's name, written into GGUF files.
        progress: as `RunContext.progress`.
    """

    folder: Path
    scratch: Path
    codec: Codec
    dtype: str
    device: str
    temperature: float
    name: str
    progress: Callable[..., AbstractContextManager[Progress]]

    def write(self, formats: Sequence[str], base: Artifact, policy: Artifact, grid: str | None) -> Iterator[str]:
        """Writes the formats, and yields the name of each when it is written. Raises `StageError` if one cannot
        store this model.

        After quantisation-aware training on `grid`, a format that stores this grid is quantised from the unrounded
        weights, as in training. Other formats are written from the rounded weights, which are the trained model.
        """
        if "adapter" in formats:
            folder = self.of("adapter")
            folder.mkdir()
            checkpoints.save_adapter_beside_base(base, policy, folder, self.device, self.codec.stop_ids)
            self.codec.tokenizer.save_pretrained(folder)
            yield "adapter"
        merged = [name for name in formats if name != "adapter"]
        if not merged:
            return
        model = checkpoints.merged_policy(base, policy, self.device)
        model.generation_config.eos_token_id = sorted(self.codec.stop_ids)
        model.generation_config.pad_token_id = self.codec.pad_id
        for name in merged:
            if name in checkpoints.BLOCKS:
                checkpoints.check(model, name)
            elif name.startswith("gguf"):
                gguf_file.check(model)
        on_grid = [name for name in merged if grid is not None and GRIDS.get(name) == grid]
        # safetensors last: writing them casts the model to `dtype`.
        others = sorted(set(merged) - set(on_grid), key=lambda name: (name == "safetensors", formats.index(name)))
        for group in (on_grid, others):
            if group is others:
                qat.settle(model)
            source = self.scratch / ("rounded" if group is others else "latent")
            if any(name in checkpoints.BLOCKS for name in group):
                model.save_pretrained(source)
            for name in group:
                self._write(name, model, source)
                yield name

    def _write(self, name: str, model: Any, source: Path) -> None:
        """Writes one format of the merged model. `source` holds it as a float32 checkpoint for formats that need
        one."""
        folder = self.of(name)
        folder.mkdir(exist_ok=True)
        if name.startswith("gguf"):
            path, kind = self.gguf(name), name.removeprefix("gguf_")
            with self.progress(name, total=sum(1 for _ in gguf_file.tensors(model))) as bar:
                gguf_file.write(model, self.codec, path, kind, name=self.name, on_tensor=bar.advance)
            (folder / "Modelfile").write_text(modelfile(self.codec, path.name, self.temperature), encoding="utf-8")
            return
        if name == "nf4":
            checkpoints.save_nf4(source, folder, self.dtype)
        elif name in checkpoints.TORCHAO:
            checkpoints.save_torchao(source, folder, name, self.dtype)
        else:
            model.to(dtype_of(self.dtype, "cpu")).save_pretrained(folder)
        self.codec.tokenizer.save_pretrained(folder)

    def reload(self, name: str, base: Artifact) -> Any:
        """Loads a written format as a user would, with plain transformers; a GGUF file is dequantised."""
        if name == "adapter":
            return checkpoints.reload_adapter(self.of(name), base, self.device)
        if name.startswith("gguf"):
            return gguf_file.reload(self.gguf(name), self.device)
        return checkpoints.reload(self.of(name), self.device)

    def of(self, name: str) -> Path:
        """The folder of a format."""
        return self.folder if name == "safetensors" else self.folder / name

    def gguf(self, name: str) -> Path:
        return self.of(name) / f"model-{name.removeprefix('gguf_')}.gguf"

    def sizes(self, name: str) -> dict[str, int]:
        """Size in bytes of each of a format's files, by path relative to `folder`. For safetensors, those at the
        top."""
        folder = self.of(name)
        files = folder.iterdir() if folder == self.folder else folder.rglob("*")
        return {file.relative_to(self.folder).as_posix(): file.stat().st_size for file in files if file.is_file()}
