"""Tokenizers side by side: the table's figures, where two differ, and that the picture shows the bars."""

import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from megalm.errors import UserError
from megalm.tokenizer import compare, load_tokenizer
from megalm.tokenizer.compare import COLOURS, comparison, differences, write_plot
from megalm.tokenizer.report import CorpusReport, Measure, measure_corpus
from megalm.tokenizer.vocabulary import read_vocabulary
from tests.tokenizer.small_tokenizers import save

KINDS = ("byte-level", "metaspace", "wordpiece")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {kind: load_tokenizer(save(tmp_path_factory.mktemp(kind), kind)) for kind in KINDS}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    documents = [{"text": "The sea is wide.", "lang": "en"}, {"text": "東京は", "lang": "ja"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def test_rows_hold_size_embedding_and_measures(tokenizers, source):
    some = list(tokenizers.values())
    rows = comparison(KINDS, some, measure_corpus(some, [source], by=["lang"]), hidden_size=64)
    for row, tokenizer, kind in zip(rows, some, KINDS, strict=True):
        assert row["tokenizer"] == kind and row["vocab_size"] == tokenizer.vocab_size
        assert row["embedding_parameters"] == 64 * tokenizer.vocab_size
        english, japanese = (len(tokenizer.encode(text)) for text in ("The sea is wide.", "東京は"))
        assert row["tokens"] == english + japanese and row["bytes_per_token"] == 25 / (english + japanese)
        assert row["groups"]["lang"]["en"]["bytes_per_token"] == 16 / english
        assert row["groups"]["lang"]["ja"]["fertility"] == japanese / 3


def test_differences_are_the_pieces_between_common_cuts(tokenizers):
    pair = tokenizers["byte-level"], tokenizers["wordpiece"]
    text = "The sea, unquestionably"
    found = differences(*pair, text)
    assert found and all(
        text[d.start : d.stop] == "".join(d.pieces[0]) == "".join(d.pieces[1]) for d in found
    )
    assert all(d.pieces[0] != d.pieces[1] for d in found)
    assert found[0].start >= 3, "the first word is one piece in both"
    assert differences(pair[0], pair[0], text) == []


def test_a_space_that_a_tokenizer_puts_in_front_is_no_cut(tokenizers):
    _, offsets = tokenizers["metaspace"].encode_with_offsets("The sea")
    assert offsets[0] == (0, 1) and offsets[1][0] == 0, "the space takes the place of the first letter"
    assert 1 not in compare._cuts(tokenizers["metaspace"], "The sea")


@settings(max_examples=50)
@given(st.text(st.sampled_from("the sea isx東 \n"), max_size=30))
def test_differences_leave_equal_pieces_out_and_lose_nothing(tokenizers, text):
    first, second = tokenizers["byte-level"], tokenizers["metaspace"]
    found = differences(first, second, text)
    for tokenizer, side in ((first, 0), (second, 1)):
        cuts = {stop for _, stop in tokenizer.encode_with_offsets(text)[1]}
        for d in found:
            ends = np.cumsum([len(piece) for piece in d.pieces[side]]) + d.start
            assert ends[-1] == d.stop and set(ends.tolist()) - {len(text)} <= cuts
    assert all(a.stop <= b.start for a, b in itertools.pairwise(found))


def made_report(tokenizer, measures: dict[str, Measure]) -> CorpusReport:
    total = Measure()
    for measure in measures.values():
        total.add([getattr(measure, name) for name in measure.__dataclass_fields__])
    return CorpusReport(read_vocabulary(tokenizer), total, {"lang": measures})


def bar_length(picture: np.ndarray, colour: str) -> int:
    """From the first to the last column of a colour below the legend."""
    below = picture[picture.shape[0] // 5 :]
    columns = np.flatnonzero((np.abs(below[..., :3] - to_rgb(colour)).max(-1) < 0.02).any(0))
    return int(columns[-1] - columns[0])


def label_pixels(picture: np.ndarray) -> int:
    """Pixels of labels so far to the right that only a long label at a bar of full length reaches there."""
    return bar_pixels(picture[:, int(0.9 * picture.shape[1]) :], "#334155")


def bar_pixels(picture: np.ndarray, colour: str) -> int:
    return int((np.abs(picture[..., :3] - to_rgb(colour)).max(-1) < 0.02).sum())


def test_picture_has_bars_of_each_tokenizer_of_the_right_length(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    reports = [
        made_report(tokenizer, {"en": Measure(1, 400, tokens=100), "de": Measure(1, 300, tokens=100)}),
        made_report(tokenizer, {"en": Measure(1, 400, tokens=200), "de": Measure(1, 300, tokens=200)}),
    ]
    write_plot(tmp_path / "p.png", ["one", "two"], reports, "lang")
    picture = imread(tmp_path / "p.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 1000
    lengths = [bar_length(picture, colour) for colour in COLOURS[:2]]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.05)
    assert bar_pixels(picture, COLOURS[2]) == 0
    write_plot(tmp_path / "p.svg", ["one", "two"], reports, "lang")
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


def test_bars_of_mostly_unknown_text_do_not_squeeze_the_others(tokenizers, tmp_path):
    tokenizer = tokenizers["wordpiece"]
    known = Measure(1, 400, tokens=100, unknown=10)
    unknown = Measure(1, 9000, tokens=100, unknown=64)
    reports = [
        made_report(tokenizer, {"en": known, "th": unknown}),
        made_report(tokenizer, {"en": known, "th": known}),
    ]
    assert compare._limit([known, unknown, None]) == 4.0
    assert compare._limit([unknown]) == 90.0
    assert compare._label(unknown) == "90.00 (64% unknown)" and compare._label(known) == "4.00"
    write_plot(tmp_path / "p.png", ["one", "two"], reports, "lang")
    picture = imread(tmp_path / "p.png")
    assert bar_length(picture, COLOURS[0]) > picture.shape[1] / 2
    assert label_pixels(picture) > 0, "the label of the long bar is in the picture"
    reports[0] = reports[1]
    write_plot(tmp_path / "q.png", ["one", "two"], reports, "lang")
    assert label_pixels(imread(tmp_path / "q.png")) == 0


def test_groups_that_one_tokenizer_lacks_and_no_groups_are_drawn(tokenizers, tmp_path):
    reports = [made_report(tokenizers["wordpiece"], {"en": Measure(1, 4, tokens=1)})]
    picture = io.BytesIO(
        compare._draw(["one"], [("all", [None]), ("en", [Measure(1, 4, tokens=2)])], "lang", "png")
    )
    assert bar_pixels(imread(picture), COLOURS[0]) > 100
    write_plot(tmp_path / "p.png", ["one"], reports, None)
    assert bar_pixels(imread(tmp_path / "p.png"), COLOURS[0]) > 100


def test_only_known_kinds_of_pictures_are_written(tokenizers, tmp_path):
    with pytest.raises(UserError, match=re.escape("ends in '.bmp'; name a file in .png or .svg")):
        write_plot(tmp_path / "p.bmp", [], [], None)
