"""The reference's log-probabilities of all answers of a dataset, in a file that is named after all they hang on."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import Tensor

from megalm import atomic
from megalm.config.schema import Config, DataSource
from megalm.dataset.preference_stream import PreferenceStream
from megalm.dataset.sidecar import read_sidecar
from megalm.engine.base import split_samples
from megalm.parallel.layout import Layout
from megalm.train.frozen import find_frozen
from megalm.train.reference import REFERENCE, Reference

AT_ONCE = 64
"""Documents that a data-parallel rank reads together."""


def cache_files(config: Config, sources: list[DataSource]) -> list[Path] | None:
    """The file of each source, there or not; None where the run has no cache."""
    settings = config.dpo
    path = settings.reference or config.run.load
    if settings.cache is None or path is None:
        return None
    manifest = find_frozen(path, REFERENCE) / "manifest.json"
    made_of = {
        "reference": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "dtype": config.precision.dtype,
        "seq_length": config.batch.seq_length,
        "too_long": settings.too_long,
    }
    if config.lora.quantize_base != "none" and settings.reference is None:
        # the reference is the model that is trained, less its adapters
        made_of["quantized"] = [config.lora.quantize_base, config.lora.quantize_group_size]
    files = []
    for source in sources:
        sidecar = read_sidecar(source.path) or {}
        of_data = [sidecar.get(name) for name in ("bin_sha256", "idx_sha256", "mask_sha256")]
        key = json.dumps({**made_of, "data": of_data}, sort_keys=True).encode()
        digest = hashlib.blake2b(key, digest_size=12).hexdigest()
        files.append(Path(settings.cache) / f"{Path(source.path).name}_{digest}.npy")
    return files


def missing_files(files: list[Path], layout: Layout) -> list[int]:
    """Which of `files` are still to be written, as rank 0 sees it. Collective."""
    found = [[number for number, path in enumerate(files) if not path.exists()] if layout.rank == 0 else []]
    dist.broadcast_object_list(found, device=layout.device)
    return found[0]


def fill_cache(
    stream: PreferenceStream, files: list[Path], missing: list[int], reference: Reference, samples: int
) -> None:
    """Write the files of these sources of `stream`, the work shared out over the data-parallel ranks. Collective.

    samples: of a forward pass. A file holds (documents, answers), float64, NaN where a document is left out as too long.
    """
    layout = reference.engine.layout
    for source in missing:
        documents = stream.documents[source]
        found: dict[int, list[float]] = {}
        for start in range(0, len(documents), AT_ONCE * layout.dp_size):
            # as many passes of the same shape on each rank: at the end some do some documents again
            mine = np.arange(start + layout.dp_rank * AT_ONCE, start + (layout.dp_rank + 1) * AT_ONCE)
            mine = documents[np.resize(mine % len(documents), -(-AT_ONCE // samples) * samples)]
            batch = stream.of_documents(source, mine)
            parts = reference.logprobs(split_samples(batch, layout, samples))
            found |= _by_document(mine.tolist(), parts, stream.rows_per_sample)
        everything: list[dict[int, list[float]]] = [{}] * layout.world_size
        dist.all_gather_object(everything, found)
        if layout.rank == 0:
            content = np.full((stream.datasets[source].num_documents, stream.rows_per_sample), np.nan)
            for part in everything:
                for document, logprobs in part.items():
                    content[document] = logprobs
            with atomic.open_atomic(files[source]) as file:
                np.save(file, content)
    dist.barrier()


def _by_document(documents: list[int], parts: list[Tensor], rows: int) -> dict[int, list[float]]:
    """The answers' log-probabilities; none on other stages than the last."""
    flat = [number for part in parts for number in part.double().tolist()]
    return {
        document: flat[place * rows : (place + 1) * rows] for place, document in enumerate(documents) if parts
    }
