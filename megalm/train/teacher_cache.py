"""A teacher's largest logits for each sample of a run, on disk: files of 64 samples, each complete or not there.

A file is a pure function of the teacher, the data, the seed and its number, so that whoever writes it writes the same; a
directory belongs to one such combination. Sample numbers are what samples are found by everywhere (`dataset.stream`), and
a teacher's logits depend on the whole window that they are in, which a place in the text alone would not tell.
"""

import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from megalm import atomic
from megalm.checkpoint import find_checkpoint
from megalm.config.schema import Config
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.sidecar import read_sidecar
from megalm.dataset.stream import TokenStream
from megalm.engine.base import MicroBatch, split_samples
from megalm.errors import UserError
from megalm.model.distillation import HiddenTeacher
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout
from megalm.train.frozen import tokenizer_of_data
from megalm.train.teacher import Teacher

KIND = "megalm teacher cache"
SAMPLES_A_FILE = 64
OPEN_FILES = 8


@dataclass
class TeacherCache:
    """The directory, what it is made of, and how many samples of it a run may ask for."""

    folder: Path
    made_of: dict[str, Any]
    seq_length: int
    top_k: int
    dtype: np.dtype[Any]
    samples: int
    _open: OrderedDict[int, NDArray[Any]] = field(default_factory=OrderedDict)

    def path(self, number: int) -> Path:
        """The file of samples 64 x number and following."""
        return self.folder / f"samples_{number:08d}.npy"

    def rows(self, number: int) -> int:
        """Samples in that file."""
        return min(SAMPLES_A_FILE, self.samples - number * SAMPLES_A_FILE)

    def missing(self, layout: Layout) -> list[int]:
        """Numbers of the files still to be written, as rank 0 sees it. Collective."""
        numbers = range(-(-self.samples // SAMPLES_A_FILE))
        found = [[n for n in numbers if not self.path(n).exists()] if layout.rank == 0 else []]
        dist.broadcast_object_list(found, device=layout.device)
        return found[0]

    def read(self, samples_B: NDArray[np.int64]) -> NDArray[Any]:
        """(B, S, K) pairs of `id` and `logit`, the largest logit being 0; UserError for a sample that is not there."""
        numbers, rows = np.divmod(samples_B, SAMPLES_A_FILE)
        return np.stack([self._file(n)[row] for n, row in zip(numbers.tolist(), rows.tolist(), strict=True)])

    def write(self, number: int, ids_BSK: Tensor, logits_BSK: Tensor) -> None:
        """Make the file of that number in one step."""
        content = np.empty(ids_BSK.shape, self.dtype)
        content["id"], content["logit"] = ids_BSK.numpy(), logits_BSK.numpy()
        with atomic.open_atomic(self.path(number)) as file:
            np.save(file, content)

    def _file(self, number: int) -> NDArray[Any]:
        if number not in self._open:
            path = self.path(number)
            try:
                content = np.load(path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                raise UserError(
                    f"{path} is missing: the run asks for sample {number * SAMPLES_A_FILE} and following; start it with "
                    "distill.teacher to have it written"
                ) from None
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is damaged ({error}): delete it to have it written again") from None
            expected = (self.rows(number), self.seq_length, self.top_k)
            if content.shape != expected or content.dtype != self.dtype:
                raise UserError(
                    f"{path} holds {content.shape} of {content.dtype}, expected {expected} of {self.dtype}: delete it to "
                    "have it written again"
                )
            self._open[number] = content
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return self._open[number]


class CachedStream:
    """Samples of a stream with the teacher's logits beside them."""

    def __init__(self, stream: TokenStream | PackStream, cache: TeacherCache) -> None:
        self.stream, self.cache = stream, cache
        self.samples_in_budget = stream.samples_in_budget
        self.in_full = stream.in_full

    def batch(self, positions: NDArray[np.int64]) -> SimpleNamespace:
        """See SampleStream."""
        found = self.cache.read(np.asarray(positions, np.int64))
        return SimpleNamespace(
            **vars(self.stream.batch(positions)),
            teacher_ids_BSK=found["id"].astype(np.int32),
            teacher_logits_BSK=np.ascontiguousarray(found["logit"]),
        )

    def samples_before_repeats(self) -> int:
        """See SampleStream."""
        return self.stream.samples_before_repeats()


def open_cache(config: Config, samples_in_budget: int | None) -> TeacherCache:
    """The cache that `config` names, there or not. UserError where it belongs to another teacher, data or settings."""
    settings, model = config.distill, config.model
    assert settings.cache is not None and model.vocab_size is not None
    if settings.cache_top_k > model.vocab_size:
        raise UserError(
            f"distill.cache_top_k {settings.cache_top_k} exceeds the vocabulary of {model.vocab_size}: lower it"
        )
    # as many steps more as rollbacks may pass over
    spare = config.train.max_nonfinite_steps * config.train.max_rollbacks
    samples = (config.train.steps + spare) * config.batch.global_batch_size
    samples += -samples % SAMPLES_A_FILE  # the last file serves a longer run, too
    if samples_in_budget is not None:
        samples = min(samples, samples_in_budget)
    folder, made_of = Path(settings.cache), _made_of(config)
    _compare(folder, made_of)
    number = "<u2" if model.vocab_size <= 1 << 16 else "<u4"
    logit = {"fp16": "<f2", "fp32": "<f4"}[settings.cache_dtype]
    dtype = np.dtype([("id", number), ("logit", logit)])
    return TeacherCache(folder, made_of, config.batch.seq_length, settings.cache_top_k, dtype, samples)


def fill_cache(stream: CachedStream, missing: list[int], teacher: Teacher, rows: int) -> None:
    """Write the files of these numbers, shared out over the data-parallel ranks. Collective.

    rows: samples of a forward pass.
    """
    cache, layout = stream.cache, teacher.engine.layout
    if layout.rank == 0:
        atomic.write_text(cache.folder / "cache.json", json.dumps(cache.made_of, indent=1))
    writes = layout.is_last_stage and layout.tp_rank == layout.cp_rank == 0
    for start in range(0, len(missing), layout.dp_size):
        # as many files a rank, so that none leaves the others alone in a collective: at the end some do one again
        mine = start + layout.dp_rank
        number = missing[min(mine, len(missing) - 1)]
        found = _top_k_of_file(stream, number, teacher, rows)
        if writes and mine < len(missing):
            cache.write(number, *found)
    dist.barrier()


def _top_k_of_file(stream: CachedStream, number: int, teacher: Teacher, rows: int) -> tuple[Tensor, Tensor]:
    """(ids, logits), each (samples, S, K) on the CPU; empty on other stages than the last."""
    cache, layout = stream.cache, teacher.engine.layout
    count = cache.rows(number)
    samples = number * SAMPLES_A_FILE + np.arange(count)
    # passes of the same shape: the last one goes on with the first samples
    filled = np.resize(samples, -(-count // rows) * rows)
    microbatches = split_samples(stream.stream.batch(filled), layout, rows)

    def collect(output: Tensor, microbatch: MicroBatch) -> tuple[Tensor, Tensor]:
        model = teacher.engine.chunks[-1]
        assert isinstance(model, GPT)
        logits = teacher.last_hidden(output, microbatch).logits()
        found = _top_k(logits, cache.top_k, model)
        length, batch = microbatch.tokens_BS.shape[1], len(microbatch.tokens_BS)
        ids_BSK, logits_BSK = (part.view(length, batch, -1).transpose(0, 1) for part in found)
        return _whole(ids_BSK, microbatch, layout).cpu(), _whole(logits_BSK, microbatch, layout).cpu()

    parts = teacher.engine.forward(microbatches, teacher.run, collect)
    if not parts:
        return torch.empty(0), torch.empty(0)
    ids, logits = zip(*parts, strict=True)
    return torch.cat(ids)[:count], torch.cat(logits)[:count]


def _top_k(teacher: HiddenTeacher, k: int, model: GPT) -> tuple[Tensor, Tensor]:
    """(ids, logits) of the `k` largest logits of each token over all columns, each (T, K), less the largest of them."""
    group, parts = model.pg_collection.tp, []
    for start in range(0, len(teacher.hidden_TH), model.chunk_tokens):
        logits_TV = teacher(slice(start, start + model.chunk_tokens)).float()
        logits_TK, column_TK = logits_TV.topk(min(k, logits_TV.shape[1]))
        short = k - logits_TK.shape[1]
        logits_TK = torch.nn.functional.pad(logits_TK, (0, short), value=-torch.inf)
        ids_TK = torch.nn.functional.pad(column_TK + model.first_column, (0, short))
        if group.size() > 1:
            logits_TK, ids_TK = (torch.cat(_gather(part, group), 1) for part in (logits_TK, ids_TK))
            logits_TK, place_TK = logits_TK.topk(k)
            ids_TK = ids_TK.gather(1, place_TK)
        parts.append((ids_TK, logits_TK - logits_TK[:, :1]))
    ids, logits = zip(*parts, strict=True)
    return torch.cat(ids), torch.cat(logits)


def _whole(part_BSK: Tensor, microbatch: MicroBatch, layout: Layout) -> Tensor:
    """Whole sequences of what context-parallel ranks hold parts of."""
    if microbatch.context is None:
        return part_BSK
    group = layout.groups.cp
    parts = _gather(part_BSK, group)
    places = _gather(microbatch.context.order(part_BSK.device), group)
    whole_BSK = part_BSK.new_empty(len(part_BSK), microbatch.context.length, part_BSK.shape[2])
    for order_S, part in zip(places, parts, strict=True):
        whole_BSK[:, order_S] = part
    return whole_BSK


def _gather(part: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    part = part.contiguous()
    parts = [torch.empty_like(part) for _ in range(group.size())]
    dist.all_gather(parts, part, group=group)
    return parts


def _made_of(config: Config) -> dict[str, Any]:
    """What the content of the files hangs on; the teacher's part is None where the run names none."""
    settings, sources = config.distill, config.data.train
    made_of: dict[str, Any] = {
        "kind": KIND,
        "teacher": None,
        "teacher_dtype": None,
        "tokenizer": tokenizer_of_data(config),
        "data": [(read_sidecar(source.path) or {}).get("bin_sha256") or source.path for source in sources],
        "shares": [source.model_dump(exclude={"path"}, exclude_none=True) for source in sources],
        "seed": config.run.seed,
        "seq_length": config.batch.seq_length,
        "reset_at_document_end": config.data.reset_at_document_end,
        "packing": config.data.packing,
        "vocab_size": config.model.vocab_size,
        "top_k": settings.cache_top_k,
        "dtype": settings.cache_dtype,
    }
    if settings.teacher is not None:
        manifest = find_checkpoint(settings.teacher) / "manifest.json"
        made_of["teacher"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        made_of["teacher_dtype"] = settings.teacher_dtype or config.precision.dtype
    return made_of


def _compare(folder: Path, made_of: dict[str, Any]) -> None:
    path = folder / "cache.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict) or before.get("kind") != KIND:
        raise UserError(f"{path} is no record of cached logits: choose another distill.cache")
    for name, value in made_of.items():
        if name in ("teacher", "teacher_dtype") and value is None:
            continue
        if before.get(name) != value:
            raise UserError(
                f"{folder} holds logits made with {name} {before.get(name)}, this run has {value}: choose another "
                "distill.cache"
            )
