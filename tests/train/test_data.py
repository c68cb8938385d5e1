"""Ranks read their own samples and no others, and reading ahead changes nothing but the time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megalm.config import Config
from megalm.dataset import Cursor, TokenStream
from megalm.engine.base import MicroBatch
from megalm.testing import run_distributed
from tests.train.runs import GLOBAL_BATCH, MICRO_BATCH, SEQUENCE, TP2, run_config
from tests.worlds import in_world


class Listener(TokenStream):
    """Remembers which samples were read."""

    def __init__(self, config: Config, name: str = "train") -> None:
        source = getattr(config.data, name)[0]
        super().__init__([(source.path, 1.0)], config.batch.seq_length, config.run.seed)
        self.read: list[int] = []

    def batch(self, positions):
        self.read += positions.tolist()
        return super().batch(positions)


def tokens_of(microbatches: list[MicroBatch]) -> np.ndarray:
    return torch.cat([microbatch.tokens_BS for microbatch in microbatches]).numpy()


def read_steps(config: Config, steps: int, prefetch: int) -> tuple[list[int], list[np.ndarray], list[dict]]:
    """Samples read and tokens given in so many steps, after which the cursor goes back to sample 5 past 16 to 29."""
    from megalm.parallel.layout import create_layout
    from megalm.train.data import TrainingData

    config.data.prefetch = prefetch
    stream = Listener(config)
    data = TrainingData(config, create_layout(config.parallel), stream)
    batches, cursors = [], []
    for half in range(2):
        for _ in range(steps):
            batches.append(tokens_of(data.next()))
            cursors.append(data.cursor.to_json())
        if half == 0:
            data.move_to(Cursor(5, [(16, 30)]))
    return stream.read, batches, cursors


@pytest.mark.parametrize("prefetch", [1, 3])
def test_reading_ahead_gives_the_same_batches_also_after_a_move(data: Path, prefetch: int) -> None:
    config = run_config(Path("unused"), data)
    in_line, ahead = (run_distributed(read_steps, 1, config, 4, n)[0] for n in (0, prefetch))
    assert all(np.array_equal(a, b) for a, b in zip(in_line[1], ahead[1], strict=True))
    assert in_line[2] == ahead[2]
    assert in_line[2][-1]["next_sample"] == 5 + 4 * GLOBAL_BATCH + 14
    moved = [n for n in range(5, 51) if not 16 <= n < 30]
    assert in_line[0] == [*range(4 * GLOBAL_BATCH), *moved]
    assert in_line[0][:GLOBAL_BATCH] == ahead[0][:GLOBAL_BATCH]


def test_data_parallel_ranks_share_the_samples_and_read_none_twice(data: Path) -> None:
    config = run_config(Path("unused"), data)
    alone = run_distributed(read_steps, 1, config, 3, 0)[0]
    first, second = run_distributed(read_steps, 2, config, 3, 0)
    assert sorted(first[0] + second[0]) == sorted(alone[0])
    assert len(first[0]) == len(second[0])
    assert not set(first[0][: 3 * GLOBAL_BATCH // 2]) & set(second[0][: 3 * GLOBAL_BATCH // 2])
    for whole, *parts in zip(alone[1], first[1], second[1], strict=True):
        microbatches = [part.reshape(-1, MICRO_BATCH, SEQUENCE) for part in parts]
        assert np.array_equal(np.stack(microbatches, axis=1).reshape(whole.shape), whole)


def test_tensor_parallel_ranks_read_the_same_samples(data: Path) -> None:
    first, second = run_distributed(read_steps, 2, run_config(Path("unused"), data, TP2), 2, 0)
    assert first[0] == second[0]


def test_moving_does_not_change_the_given_cursor(data: Path) -> None:
    check_cursor_is_kept(data=data)


@in_world(1)
def check_cursor_is_kept(data: Path) -> None:
    from megalm.parallel.layout import create_layout
    from megalm.train.data import TrainingData

    for prefetch in (0, 2):
        config = run_config(Path("unused"), data, f"data.prefetch={prefetch}")
        batches, cursor = TrainingData(config, create_layout(config.parallel), Listener(config)), Cursor(8)
        batches.move_to(cursor)
        batches.next()
        assert (cursor.next_sample, batches.cursor.next_sample) == (8, 16)


@in_world(2)
def test_validation_reads_the_same_first_samples_each_time(data: Path) -> None:
    from megalm.parallel.layout import create_layout
    from megalm.train.data import ValidationData

    config = run_config(Path("unused"), data, "train.eval_batches=2")
    layout, stream = create_layout(config.parallel), Listener(config, "valid")
    validation = ValidationData(config, layout, stream)
    first, second = ([tokens_of(batch) for batch in validation] for _ in range(2))
    assert len(first) == 2 and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    mine = sorted(set(stream.read))
    assert len(stream.read) == 2 * len(mine) == 2 * GLOBAL_BATCH
    assert mine == [n for n in range(2 * GLOBAL_BATCH) if n // MICRO_BATCH % 2 == layout.dp_rank]


@in_world(1)
def test_validation_takes_no_sample_twice(data: Path) -> None:
    from megalm.parallel.layout import create_layout
    from megalm.train.data import ValidationData

    config = run_config(Path("unused"), data, "train.eval_batches=1000")
    stream = Listener(config, "valid")
    validation = ValidationData(config, create_layout(config.parallel), stream)
    assert len(list(validation)) == validation.batches == int(stream.windows.sum()) // GLOBAL_BATCH > 1
    assert len(set(stream.read)) == len(stream.read)


@in_world(1)
def test_validation_stops_before_the_small_source_of_a_blend_comes_again(data: Path) -> None:
    from megalm.parallel.layout import create_layout
    from megalm.train.data import ValidationData, open_stream

    small, large = (f"{{path: {data / name}, weight: 0.5}}" for name in ("valid", "train"))
    config = run_config(Path("unused"), data, "train.eval_batches=1000", f"data.valid=[{small}, {large}]")
    stream = open_stream(config, config.data.valid, None)
    batches = ValidationData(config, create_layout(config.parallel), stream).batches
    fewest, most = sorted(int(windows) for windows in stream.windows)
    # half of the samples are the small source's, give or take what a random order brings
    assert 1 < batches * GLOBAL_BATCH < 2.6 * fewest < fewest + most
