"""Reads files that torch pickled without running anything that a stranger may have put into them."""

import pickle
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megalm.errors import UserError

_STORAGE = re.compile(r"(\w*Storage)")
_ALLOWED = {
    "collections": {"OrderedDict"},
    "argparse": {"Namespace"},
    "builtins": {"set", "frozenset", "slice", "complex", "bytearray"},
    "torch": {"Size", "device", *(n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype))},
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.nn.parameter": {"Parameter"},
}


class Unknown:
    """Stands for an object of a class that is no part of a checkpoint's tensors and settings; it does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> "Unknown":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """What a pickle calls to fill a list."""

    def extend(self, values: Any) -> None:
        """The same for several."""


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain containers; whatever else a file names becomes `Unknown`."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()) or (
            module in ("torch", "torch.storage") and _STORAGE.fullmatch(name)
        ):
            return super().find_class(module, name)
        return Unknown


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE: Any = types.SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="megalm.convert.torch_files")


def load_safely(path: Path, what: str) -> Any:
    """The content of a file that torch saved: tensors (mapped, not read), containers, numbers, strings and settings.

    Objects of any other class become `Unknown`. Raises UserError, with `what` the file should be, if it cannot be read.
    """
    read: Callable[..., Any] = torch.load
    for mapped in (True, False):  # files in torch's form before 1.6 cannot be mapped
        try:
            return read(path, map_location="cpu", weights_only=False, mmap=mapped, pickle_module=_PICKLE)
        except Exception as error:
            failure = error
    reason = str(failure).strip().partition("\n")[0]
    raise UserError(f"{path}: not {what} ({reason}); use another checkpoint") from None
