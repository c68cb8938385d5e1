"""Training on packed documents and on blends with budgets, end to end; damaged token files are refused."""

import re
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDatasetWriter
from megalm.dataset.opening import open_text
from megalm.testing import RankError
from tests.train.runs import (
    GLOBAL_BATCH,
    PP2,
    SEQUENCE,
    events,
    run_config,
    step_lines,
    train_in_world,
    write_tokens,
)
from tests.train.test_run import refusal

PACKED = "data.packing=cut"


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of which the first half does not count, under the names of `write_tokens`."""
    directory: Path = tmp_path_factory.mktemp("masked")
    random = np.random.default_rng(0)
    for name in ("train", "valid"):
        with IndexedDatasetWriter(directory / name, np.dtype("<u2"), masked=True) as writer:
            for length in random.integers(4, 50, 200).tolist():
                ids = (np.arange(length) * 5 + random.integers(97)) % 97
                counts = (np.arange(length) >= length // 2).astype(np.uint8)
                writer.add_documents(ids, np.array([length]), counts=counts)
    return directory


def test_a_run_on_packs_learns_and_gives_the_same_losses_under_another_layout(
    tmp_path: Path, masked: Path
) -> None:
    layouts = {"one": (1, ()), "pp": (2, (PP2,))}
    for name, (world, overrides) in layouts.items():
        train_in_world(world, run_config(tmp_path / name, masked, PACKED, *overrides))
    lines = {name: step_lines(tmp_path / name) for name in layouts}
    losses = {name: [line["loss"] for line in lines[name]] for name in layouts}
    assert losses["one"] == pytest.approx(losses["pp"], rel=1e-5)
    (told,) = (event for event in events(tmp_path / "one") if "padding" in event)
    assert re.search(r"train: \d+ packs of 32 tokens, \d\.\d\d% padding, 0 of 200 documents left out", told)
    assert losses["one"][-1] < losses["one"][0] - 0.3

    config = run_config(tmp_path, masked, PACKED)
    stream = open_text(config, config.data.train, None)
    batches = [stream.batch(step * GLOBAL_BATCH + np.arange(GLOBAL_BATCH)) for step in range(8)]
    assert [line["weight"] for line in lines["one"]] == [batch.loss_mask_BS.sum() for batch in batches]
    assert 0.3 < np.mean([batch.loss_mask_BS.mean() for batch in batches]) < 0.7


def test_validation_of_packs_reads_each_once(tmp_path: Path, masked: Path) -> None:
    settings = (PACKED, "train.eval_interval=4", "train.eval_batches=1000", "train.exit_after_steps=4")
    train_in_world(1, run_config(tmp_path, masked, *settings))
    assert len(step_lines(tmp_path)) == 4


def test_budgets_that_end_before_the_run_are_refused_and_those_that_do_not_are_used_up(
    tmp_path: Path, data: Path
) -> None:
    half = 4 * GLOBAL_BATCH * SEQUENCE
    told = []
    for tokens in (half - 1, half):
        blend = f"[{{path: {data}/train, tokens: {half}}}, {{path: {data}/valid, tokens: {tokens}}}]"
        try:
            train_in_world(1, run_config(tmp_path, data, f"data.train={blend}"))
        except RankError as error:
            told.append(str(error))
    assert len(told) == 1 and len(step_lines(tmp_path)) == 8
    assert "train.steps 8 x batch.global_batch_size 8 = 64 samples" in told[0]
    assert "come to 63: set train.steps to 7" in told[0]
    assert not any("budgets" in event for event in events(tmp_path))
    blend = f"[{{path: {data}/train, tokens: {3 * half}}}]"
    config = run_config(tmp_path / "more", data, f"data.train={blend}", "train.exit_after_steps=1")
    train_in_world(1, config)
    assert "train.steps 8 take 64 of the 96 samples that the budgets in data.train come to" in events(
        tmp_path / "more"
    )


@pytest.mark.parametrize(
    ("suffix", "place", "overrides", "message"),
    [
        (".bin", None, (), r"train.bin is cut short: .* document \d+ of 500 is the first that is not whole"),
        (
            ".idx",
            None,
            (),
            r"train.idx is cut short: .* the border of document 500 is the first entry missing",
        ),
        (".idx", 34 + 500 * 12 + 8, (), r"train.idx: document \d begins at sequence"),
        (".idx", 34 + 500 * 4 + 800, (), r"train.idx: sequence 100 \(document 100\) begins at byte"),
        (".bin", 50, ("data.verify=true",), r"train.bin: document \d \(bytes .*\) has CRC-32 "),
        (".crc", 20, ("data.verify=true",), "train.bin: document 1 .* by the .crc"),
    ],
)
def test_damaged_token_files_are_refused_in_one_line(
    tmp_path: Path, suffix: str, place: int | None, overrides: tuple[str, ...], message: str
) -> None:
    data = write_tokens(tmp_path)
    path = tmp_path / f"train{suffix}"
    whole = path.read_bytes()
    path.write_bytes(
        whole[:-1] if place is None else whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    )
    said = refusal(run_config(tmp_path / "run", data, *overrides))
    assert re.search(message, said), said
