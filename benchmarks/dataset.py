"""Times reading training samples beside Megatron-Core's GPTDataset: samples a second, and until the first batch.

Both read the same token file, turn by turn in one process, and give batches of torch tensors (tokens, labels, loss
mask, positions). "First batch" counts from opening the files, with an empty index cache: Megatron-Core builds its
document, sample and shuffle index for the asked-for epochs there. Figures are medians of the rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.dataset import IndexedDataset, IndexedDatasetWriter, TokenStream, order
from megalm.dataset.indexed import HEADER, MAGIC
from megalm.parallel import cpu

SEED = 1234
VOCAB_SIZE = 32_000
MEAN_DOCUMENT = 700
TRILLION = 10**12

Batches = Callable[[int], list[torch.Tensor]]


class EodOnly:
    """What GPTDataset asks of a tokenizer."""

    vocab_size = VOCAB_SIZE
    eod = 0
    unique_identifiers = {"class": "none"}  # noqa: RUF012


def main() -> None:
    arguments = parse_arguments()
    cpu.install()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        prefix = (
            find_dataset(arguments.data) if arguments.data else make_dataset(Path(folder), arguments.tokens)
        )
        openers: dict[str, Callable[[Path], Batches]] = {
            "megalm": lambda cache: open_megalm(prefix, arguments),
            "megatron-core": lambda cache: open_megatron(prefix, arguments, cache),
        }
        open_megatron(prefix, arguments, Path(folder) / "warm")(
            0
        )  # imports and page cache are not what is timed
        open_megalm(prefix, arguments)(0)
        timings: dict[str, list[tuple[float, float]]] = {name: [] for name in openers}
        for round_number in range(arguments.rounds):
            for name, opener in openers.items():
                cache = Path(folder) / f"cache{round_number}"
                timings[name].append(time_reader(lambda c=cache, o=opener: o(c), arguments))
        report(prefix, arguments, timings, time_trillion(Path(folder), arguments))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="folder with a .bin/.idx (its largest is read); else random tokens"
    )
    parser.add_argument("--tokens", type=int, default=50_000_000, help="tokens of the made data")
    parser.add_argument("--epochs", type=int, default=2, help="epochs that the run would take")
    parser.add_argument("--seq-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=400, help="batches a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def find_dataset(folder: Path) -> Path:
    indices = sorted(folder.glob("*.idx"), key=lambda path: path.with_suffix(".bin").stat().st_size)
    if not indices:
        raise SystemExit(f"no .idx in {folder}; give the folder of a token dataset")
    return indices[-1].with_suffix("")


def make_dataset(folder: Path, tokens: int) -> Path:
    rng = np.random.default_rng(SEED)
    with IndexedDatasetWriter(folder / "data", np.dtype("<u2")) as writer:
        while writer.num_tokens < tokens:
            lengths = 1 + rng.exponential(MEAN_DOCUMENT, 10_000).astype(np.int64)
            writer.add_documents(rng.integers(1, VOCAB_SIZE, lengths.sum(), np.uint16), lengths)
    return folder / "data"


def open_megalm(prefix: Path, arguments: argparse.Namespace) -> Batches:
    order._locate_block.cache_clear()  # as in a fresh process
    stream = TokenStream([(prefix, 1.0)], arguments.seq_length, SEED)

    def read(first: int) -> list[torch.Tensor]:
        batch = stream.batch(np.arange(first, first + arguments.batch_size))
        arrays = batch.tokens_BS, batch.labels_BS, batch.loss_mask_BS, batch.positions_BS
        return [torch.from_numpy(array) for array in arrays]

    return read


def open_megatron(prefix: Path, arguments: argparse.Namespace, cache: Path) -> Batches:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=arguments.seq_length,
        split="1,0,0",
        blend=([str(prefix)], None),
        path_to_cache=str(cache),
        tokenizer=EodOnly(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    low_level = GPTDataset.build_low_level_dataset(str(prefix), config)
    indices = np.arange(GPTDataset.numel_low_level_dataset(low_level), dtype=np.int32)
    samples = arguments.epochs * (IndexedDataset(prefix).num_tokens // arguments.seq_length)
    dataset = GPTDataset(low_level, str(prefix), indices, samples, Split.train, config)

    def read(first: int) -> list[torch.Tensor]:
        rows = [dataset[i % samples] for i in range(first, first + arguments.batch_size)]
        return [
            torch.stack([row[name] for row in rows])
            for name in ("tokens", "labels", "loss_mask", "position_ids")
        ]

    return read


def time_reader(opener: Callable[[], Batches], arguments: argparse.Namespace) -> tuple[float, float]:
    """Return seconds until the first batch, and samples a second after it."""
    start = time.perf_counter()
    read = opener()
    read(0)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for batch in range(1, arguments.batches + 1):
        read(batch * arguments.batch_size)
    return first, arguments.batches * arguments.batch_size / (time.perf_counter() - start)


def time_trillion(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and traced memory until megalm's first batch from sparse files of 10^12 tokens."""
    documents, prefix = 1000, folder / "trillion"
    length = TRILLION // documents
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(2 * TRILLION)
    with open(f"{prefix}.idx", "wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, documents, documents + 1))
        file.write(np.full(documents, length, "<i4").tobytes())
        file.write((np.arange(documents, dtype="<i8") * 2 * length).tobytes())
        file.write(np.arange(documents + 1, dtype="<i8").tobytes())

    def first_batch() -> None:
        stream = TokenStream([(prefix, 1.0)], arguments.seq_length, SEED, reset_at_document_end=True)
        stream.batch(np.arange(arguments.batch_size))

    start = time.perf_counter()
    first_batch()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    first_batch()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"first_batch_s": seconds, "peak_mib": peak / 2**20}


def report(
    prefix: Path,
    arguments: argparse.Namespace,
    timings: dict[str, list[tuple[float, float]]],
    trillion: dict[str, float],
) -> None:
    dataset = IndexedDataset(prefix)
    medians = {
        name: {
            "first_batch_s": statistics.median(first for first, _ in rounds),
            "samples_per_s": statistics.median(rate for _, rate in rounds),
        }
        for name, rounds in timings.items()
    }
    ours, theirs = medians["megalm"], medians["megatron-core"]
    result: dict[str, Any] = {
        "tokens": dataset.num_tokens,
        "documents": dataset.num_documents,
        **{
            name: vars(arguments)[name]
            for name in ("epochs", "seq_length", "batch_size", "batches", "rounds")
        },
        "readers": medians,
        "ratio_samples_per_s": ours["samples_per_s"] / theirs["samples_per_s"],
        "ratio_first_batch": theirs["first_batch_s"] / ours["first_batch_s"],
        "trillion_tokens": trillion,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{dataset.num_tokens:,} tokens, {dataset.num_documents:,} documents; {arguments.epochs} epochs")
    print(f"batches of {arguments.batch_size} x {arguments.seq_length}; medians of {arguments.rounds} rounds")
    for name, figures in medians.items():
        rate, first = figures["samples_per_s"], figures["first_batch_s"]
        print(f"{name:>14}: {rate:9,.0f} samples/s   first batch after {first * 1000:9.2f} ms")
    print(
        f"megalm reads {result['ratio_samples_per_s']:.2f}x as fast, starts {result['ratio_first_batch']:.0f}x sooner"
    )
    print(
        f"10^12 tokens: first batch after {trillion['first_batch_s'] * 1000:.1f} ms, "
        f"{trillion['peak_mib']:.2f} MiB of memory"
    )


if __name__ == "__main__":
    main()
