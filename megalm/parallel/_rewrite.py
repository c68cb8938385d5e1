"""Compiles Megatron-Core's source so that what it places on a GPU lands on the CPU, without touching `torch` or the installed files."""

import ast
import bisect
import contextlib
import gc
import marshal
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from megalm.parallel import _cpu_device

# The name under which every rewritten module sees `_cpu_device`.
CPU_DEVICE = "_megalm_cpu_device"

# `Tensor.type()` is compared with these names where the optimizer sorts parameters by precision and clips gradients.
TENSOR_TYPE_NAMES = {
    f"torch.cuda.{kind}": f"torch.{kind}"
    for kind in ("FloatTensor", "HalfTensor", "BFloat16Tensor", "DoubleTensor")
}

# A file without any of these has nothing to rewrite and is imported the ordinary way, from its cached byte code.
TARGETS = re.compile(rb"\.cuda\b|['\"]cuda['\"]|torch\.cuda\.|\bpin_memory\b")

# What rewritten byte code is kept under, beside the package's own in `__pycache__`, which other programs import.
CACHE = "megalm"
_RULES = source_hash(Path(__file__).read_bytes())


class CpuRewriter(ast.NodeTransformer):
    """Rewrites a module's syntax tree where `lines` (numbers from 1, ascending) say; `counts` tells how often each rule applied."""

    def __init__(self, lines: Sequence[int]) -> None:
        self.lines = lines
        self.counts: Counter[str] = Counter()

    def visit(self, node: ast.AST) -> Any:
        """Pass over what stands on none of the lines: nearly all of a file."""
        end = getattr(node, "end_lineno", None)
        if end is not None:
            following = bisect.bisect_left(self.lines, node.lineno)  # type: ignore[attr-defined]
            if following == len(self.lines) or self.lines[following] > end:
                return node
        return super().visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """`torch.cuda` -> `_cpu_device`: streams, events, the current device, the RNG state."""
        self.generic_visit(node)
        if node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch":
            self.counts["torch.cuda"] += 1
            return ast.copy_location(ast.Name(CPU_DEVICE, node.ctx), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """`x.cuda(...)` -> `x` and `x.pin_memory(...)` -> `x`: methods of tensors and modules that raise without a GPU."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("cuda", "pin_memory"):
            self.counts[f".{node.func.attr}()"] += 1
            return node.func.value
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        """`pin_memory=True` -> `pin_memory=False`: pinning memory raises without a GPU."""
        self.generic_visit(node)
        if node.arg == "pin_memory" and isinstance(node.value, ast.Constant) and node.value.value is True:
            self.counts["pin_memory="] += 1
            node.value = ast.copy_location(ast.Constant(False), node.value)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """`'cuda'` -> `'cpu'` (devices, autocast) and `'torch.cuda.FloatTensor'` -> `'torch.FloatTensor'` (type checks)."""
        if node.value == "cuda":
            self.counts["'cuda'"] += 1
            return ast.copy_location(ast.Constant("cpu"), node)
        if isinstance(node.value, str) and node.value in TENSOR_TYPE_NAMES:
            self.counts["'torch.cuda.*Tensor'"] += 1
            return ast.copy_location(ast.Constant(TENSOR_TYPE_NAMES[node.value]), node)
        return node


def rewrite(source: bytes, path: str) -> tuple[CodeType, Counter[str]]:
    """Compile `source` for the CPU; line numbers stay those of the file at `path`. Returns the code and the rewrites by rule."""
    rewriter = CpuRewriter([n for n, line in enumerate(source.splitlines(), start=1) if TARGETS.search(line)])
    with _paused_garbage_collector():
        tree = rewriter.visit(ast.parse(source, path))
        return compile(tree, path, "exec", dont_inherit=True), rewriter.counts


def _read(file: str, key: bytes) -> tuple[CodeType, Counter[str]] | None:
    """What `rewrite` gave for this key, if the file has it."""
    try:
        found, code, counts = marshal.loads(Path(file).read_bytes())
    except (OSError, EOFError, ValueError, TypeError):
        return None
    return (code, Counter(counts)) if found == key else None


@contextlib.contextmanager
def _paused_garbage_collector() -> Iterator[None]:
    """Syntax trees are many small objects: collecting while they are made would double the time an import takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class CpuLoader(SourceFileLoader):
    """Loads one Megatron-Core module for the CPU.

    `on_rewrite(fullname, counts)` is told how often each rule applied to its source, `on_run(module)` that the module has run.
    """

    def __init__(
        self,
        fullname: str,
        path: str,
        on_rewrite: Callable[[str, Counter[str]], None],
        on_run: Callable[[ModuleType], None],
    ) -> None:
        super().__init__(fullname, path)
        self._on_rewrite = on_rewrite
        self._on_run = on_run

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        if not TARGETS.search(source):
            return super().get_code(fullname)
        key = MAGIC_NUMBER + _RULES + source_hash(source) + path.encode()
        kept = cache_from_source(path, optimization=CACHE)
        found = _read(kept, key)
        if found is None:
            found = rewrite(source, path)
            if (
                not sys.dont_write_bytecode
            ):  # as Python's own: whole or not at all, and no matter where it cannot be
                self.set_data(kept, marshal.dumps((key, found[0], dict(found[1]))))
        self._on_rewrite(fullname, found[1])
        return found[0]

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, CPU_DEVICE, _cpu_device)
        super().exec_module(module)
        self._on_run(module)
