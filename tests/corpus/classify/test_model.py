"""The file of a classifier: plain safetensors, the same scores after loading, and strangers' files refused in one line."""

import json
import struct

import numpy as np
import pytest

from megalm.corpus.classify.features import FeatureSettings
from megalm.corpus.classify.model import Classifier
from megalm.corpus.classify.train import TrainSettings, train_classifier
from megalm.corpus.words import Split
from megalm.errors import UserError
from tests.corpus.classify.texts import labelled, write

BITS = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    settings = TrainSettings(features=FeatureSettings(bucket_bits=BITS))
    train_classifier([write(folder / "l.jsonl", labelled(80))], folder / "m.safetensors", settings)
    return folder / "m.safetensors"


def parts(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def pack(header: object, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def changed(header: dict, **fields: object) -> dict:
    """The header with other values in the description; those of None are taken out."""
    description = json.loads(header["__metadata__"]["megalm.classifier"]) | fields
    kept = {name: value for name, value in description.items() if value is not None}
    return header | {"__metadata__": {"megalm.classifier": json.dumps(kept)}}


def test_safetensors_reads_the_file_and_saving_again_gives_the_same_bytes(path, tmp_path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        assert sorted(file.keys()) == ["bias", "table"]
        table, bias = file.get_tensor("table"), file.get_tensor("bias")
        description = json.loads(file.metadata()["megalm.classifier"])
    assert table.shape == (1 << BITS, 2) and bias.shape == (1,) and description["labels"] == ["bad", "good"]
    classifier = Classifier.load(path)
    classifier.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_score_is_the_formula(path):
    classifier = Classifier.load(path)
    from megalm.corpus.classify.features import count_ngrams, plain_text

    header, rest = parts(path)
    table = np.frombuffer(rest[:-4], "<f4").reshape(1 << BITS, 2).astype(np.float64)
    (bias,) = np.frombuffer(rest[-4:], "<f4")
    tokens = Split("The cheap prize, and an unseen word: a mountain of evidence").tokens
    counts = count_ngrams(plain_text(tokens), classifier.description.features)
    logit = float(bias)
    for part in (slice(None, counts.border), slice(counts.border, None)):
        values = counts.values[part] * table[counts.buckets[part], 0]
        logit += (values * table[counts.buckets[part], 1]).sum() / np.sqrt((values**2).sum())
    assert classifier.score(tokens, "good") == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert classifier.score(tokens, "bad") == pytest.approx(1 / (1 + np.exp(logit)), abs=1e-5)
    empty = classifier.score([], "good")
    assert empty == pytest.approx(1 / (1 + np.exp(-bias)), abs=1e-5)
    assert header["table"]["data_offsets"] == [0, 8 << BITS]


def test_the_weights_are_mapped_and_not_read_into_memory(path):
    assert isinstance(Classifier.load(path)._table_BL.base, np.memmap)


@pytest.mark.parametrize("case", [
    "empty", "text", "pickle", "huge header", "not json", "deep json", "list", "no description", "other tensors",
    "unknown key", "newer", "one label", "threshold", "too many buckets", "cut", "too long", "nan", "zip",
])  # fmt: skip
def test_files_that_are_no_classifier_are_refused_in_one_line(path, tmp_path, case):
    header, rest = parts(path)
    bad = {
        "empty": b"",
        "text": b"hello, this is not a model at all\n" * 9,
        "pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "huge header": struct.pack("<Q", 1 << 60) + b"{}",
        "not json": pack(b'{"a": ', rest),
        "deep json": pack(b"[" * 500_000, rest),
        "list": pack([1], rest),
        "no description": pack({"__metadata__": {"format": "pt"}} | {"table": header["table"]}, rest),
        "other tensors": pack(header | {"more": header["bias"]}, rest),
        "unknown key": pack(changed(header, code="import os"), rest),
        "newer": pack(changed(header, version=2), rest),
        "one label": pack(changed(header, labels=["good"]), rest),
        "threshold": pack(changed(header, thresholds={"bad": 0.5, "good": 7}), rest),
        "too many buckets": pack(changed(header, features={"bucket_bits": 60}), rest),
        "cut": pack(header, rest[:-8]),
        "too long": pack(header, rest + b"    "),
        "nan": pack(header, rest[:-4] + struct.pack("<f", float("nan"))),
        "zip": b"PK\x03\x04" + bytes(100),
    }
    file = tmp_path / "bad.safetensors"
    file.write_bytes(bad[case])
    with pytest.raises(UserError, match="is no classifier") as error:
        Classifier.load(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_path_that_is_no_file_is_named(tmp_path):
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="does not exist"):
            Classifier.load(missing)


def test_labels_are_chosen_by_name(path):
    classifier = Classifier.load(path)
    assert classifier.choose_label(None) == "good" and classifier.choose_label("bad") == "bad"
    with pytest.raises(UserError, match="no label 'god'; choose one of bad, good"):
        classifier.choose_label("god")
