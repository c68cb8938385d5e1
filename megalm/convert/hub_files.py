"""The weights in a directory of Hugging Face's: read one by one, written in files of bounded size."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megalm import atomic
from megalm.convert.families.base import Family
from megalm.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_SINGLE, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# names of the first BERTs, converted from TensorFlow
_OLD_SPELLING = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


class HubTensors:
    """The tensors of a directory by the names that its family's rules use, each read when it is asked for.

    Raises UserError where files are missing, damaged, or pickles of more than tensors.
    """

    def __init__(self, folder: Path, family: Family) -> None:
        self.folder = folder
        self.family = family
        self.file_of = _files(folder)
        self._opened: tuple[Path | None, Any] = (None, None)
        self._unused = set(self.file_of)

    def read(self, name: str) -> Tensor:
        """One tensor; the file that it is in stays open until one of another file is asked for."""
        return self._get(name, lambda source, found: source.get_tensor(found))

    def outline(self, name: str) -> Tensor:
        """The same without numbers, on torch's meta device."""
        return self._get(name, _outline).to("meta")

    def _get(self, name: str, from_safetensors: Callable[[Any, str], Tensor]) -> Tensor:
        found = next((spelling for spelling in self._spellings(name) if spelling in self.file_of), None)
        if found is None:
            raise UserError(
                f"{self.folder} has no tensor {name}: its weights are not those of {self.family.architecture}"
            )
        self._unused.discard(found)
        path = self.file_of[found]
        if self._opened[0] != path:
            self._opened = (path, _open(path))
        source = self._opened[1]
        try:
            return source[found] if isinstance(source, dict) else from_safetensors(source, found)
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{path}: {found} cannot be read ({error}); download the file again") from None

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return any(spelling in self.file_of for spelling in self._spellings(name))

    def unused(self) -> list[str]:
        """Names of tensors that were not read and hold weights."""
        return sorted(name for name in self._unused if not name.endswith(self.family.ignored))

    def _spellings(self, name: str) -> Iterator[str]:
        for spelling in (name, name.removeprefix(self.family.prefix)):
            yield spelling
            for new, old in _OLD_SPELLING.items():
                if spelling.endswith(new):
                    yield spelling.removesuffix(new) + old


def _files(folder: Path) -> dict[str, Path]:
    """The file that each tensor is in."""
    for single, index in ((SINGLE, INDEX), (OLD_SINGLE, OLD_INDEX)):
        if (folder / index).is_file():
            return _indexed(folder, index)
        if (folder / single).is_file():
            return dict.fromkeys(_names(folder / single), folder / single)
    raise UserError(
        f"{folder} holds no weights ({SINGLE}, {INDEX}, {OLD_SINGLE} or {OLD_INDEX}); name a directory of Hugging Face's"
    )


def _indexed(folder: Path, index: str) -> dict[str, Path]:
    try:
        table = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in table.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / index}: not an index of weights ({error!r}); download it again") from None
    for file in set(files.values()):
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"{folder / index} names the file {file}, which is not beside it")
    return {name: folder / file for name, file in files.items()}


def _open(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safe_open(path, "pt")
        # weights_only: a pickle that would do more than make tensors is refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: not a file of tensors ({reason}); download it again") from None


def _outline(source: Any, name: str) -> Tensor:
    part = source.get_slice(name)
    return torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()], device="meta")


def _names(path: Path) -> list[str]:
    return list(_open(path).keys())


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], file_bytes: int) -> None:
    """Write named tensors into files of about `file_bytes`, which is what is in memory at a time.

    One file is model.safetensors; several are numbered, with an index beside them.
    """
    parts: list[Path] = []
    held: dict[str, Tensor] = {}
    held_bytes = total = 0
    table: dict[str, int] = {}

    def flush() -> None:
        path = folder / f"part-{len(parts)}"
        save_file(held, path, metadata={"format": "pt"})
        parts.append(path)
        held.clear()

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > file_bytes:
            flush()
            held_bytes = 0
        held[name] = tensor.contiguous()
        table[name] = len(parts)
        held_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    _name(folder, parts, table, total)


def _name(folder: Path, parts: list[Path], table: dict[str, int], total: int) -> None:
    if len(parts) == 1:
        parts[0].rename(folder / SINGLE)
        return
    names = [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    for part, name in zip(parts, names, strict=True):
        part.rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[part] for name, part in sorted(table.items())},
    }
    atomic.write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
