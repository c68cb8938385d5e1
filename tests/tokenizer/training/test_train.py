"""Training as a whole: what is refused, what is left behind, and that a failure leaves nothing."""

import json
from pathlib import Path

import pytest

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_tokenizer
from megalm.tokenizer.training import merges


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("some words to learn, and some more words to learn; 12 Words\n" * 20)
    return path


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bpee"}, "kind is 'bpee'; choose one of bpe, unigram"),
        ({"vocab_size": None}, "kind bpe needs a vocabulary size"),
        ({"vocab_size": 256}, "vocab_size is 256, but 256 bytes and 1 special tokens need at least 257"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000; at most"),
        ({"kind": "unigram", "vocab_size": 200}, "vocab_size is 200, but a character and the bytes"),
        (
            {"kind": "unigram", "vocab_size": 262},
            "sentencepiece cannot train this: Vocabulary size is smaller",
        ),
        ({"kind": "wordpiece", "vocab_size": 20}, "vocab_size is 20, but .* characters .* need at least"),
        ({"kind": "character", "vocab_size": 20}, "vocab_size is 20, but 256 bytes"),
        ({"pretokenizer": "gpt5"}, "pretokenizer of kind bpe is 'gpt5'; choose one of gpt2, gpt4"),
        ({"kind": "byte", "pretokenizer": "gpt2"}, "kind byte has no pretokenizer to choose"),
        ({"normalizers": ["nfx"]}, "normalizer of kind bpe is 'nfx'; choose one of nfc"),
        ({"kind": "byte", "normalizers": ["nfc"]}, "kind byte has no normalizer to choose"),
        ({"kind": "unigram", "normalizers": ["lowercase"]}, "cannot normalize by lowercase"),
        ({"kind": "wordpiece", "normalizers": ["none"]}, "WordPiece takes one normalizer"),
        ({"chat_tokens": "chat"}, "chat_tokens is 'chat'; choose one of chatml"),
        ({"special_tokens": ["a\nb"]}, "holds a line end"),
        ({"special_tokens": ["\udce9"]}, "no UTF-8"),
        ({"special_tokens": [" "]}, "special token is empty"),
        ({"min_count": 0}, "min_count is 0"),
        ({"min_count": 1000}, "min_count is 1000, but the most frequent word occurs"),
        ({"ties": "coin"}, "ties is 'coin'"),
        ({"kind": "unigram", "character_coverage": 0.9}, "SentencePiece takes 0.98 to 1"),
        ({"kind": "wordpiece", "character_coverage": 0.0}, "character_coverage is 0;"),
        ({"character_coverage": 0.9}, "character_coverage plays no part in kind bpe; .* choose unigram"),
        ({"byte_fallback": False}, "byte_fallback plays no part in kind bpe; .* sentencepiece-bpe"),
        ({"kind": "wordpiece", "ties": "bytes"}, "ties plays no part in kind wordpiece; .* choose bpe"),
        ({"kind": "byte", "min_count": 2}, "min_count plays no part in kind byte"),
        ({"workers": 0}, "workers is 0"),
        ({"max_words": 0}, "max_words is 0"),
        ({"sample_bytes": 0}, "sample_bytes is 0"),
    ],
)
def test_mistakes_are_named_in_a_line_and_leave_nothing(source, tmp_path, options, message):
    before = everything(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        train_tokenizer([source], tmp_path / "sub" / "t", **{"vocab_size": 300, **options})
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("text", ["", "\n", "\n\r\n"])
@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "word"])
def test_inputs_without_words_are_refused(tmp_path, kind, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match="no text in .*a.txt"):
        train_tokenizer([tmp_path / "a.txt"], tmp_path / "t", kind, 300)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "word", "character"])
def test_hostile_texts_train(tmp_path, kind):
    lines = ["a" * 20_000, "\u0301" * 5000, "\x00\t\x00 \u2585 \ufffe <unk> ▁▁", " " * 3000, "end"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    size = None if kind in ("word", "character") else 400
    options = {"character_coverage": 1} if kind in ("unigram", "wordpiece") else {}
    tokenizer = train_tokenizer([tmp_path / "a.jsonl"], tmp_path / "t", kind, size, **options)
    assert tokenizer.encode("end")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("there", [False, True])
def test_an_interrupted_training_leaves_what_was_there(source, tmp_path, monkeypatch, error, there):
    if there:
        before = train_tokenizer([source], tmp_path / "sub" / "t", "bpe", 290)

    def interrupted(*_):
        raise error

    monkeypatch.setattr(merges.MergeLearner, "learn", interrupted)
    files = everything(tmp_path)
    with pytest.raises(error):
        train_tokenizer([source], tmp_path / "sub" / "t", "bpe", 300, overwrite=True)
    assert everything(tmp_path) == files
    if there:
        assert load_tokenizer(tmp_path / "sub" / "t").hash == before.hash


def test_a_tokenizer_replaces_one_of_another_kind_whole(source, tmp_path):
    train_tokenizer([source], tmp_path / "t", "wordpiece", 60)
    assert everything(tmp_path / "t") == {
        "vocab.txt",
        "tokenizer_config.json",
        "tokenizer.json",
        "megalm.json",
    }
    with pytest.raises(UserError, match="holds a tokenizer.*--overwrite"):
        train_tokenizer([source], tmp_path / "t", "unigram", 300)
    (tmp_path / "t" / "vocab.json").write_text("{}")
    (tmp_path / "t" / "merges.txt").write_text("")
    unigram = train_tokenizer([source], tmp_path / "t", "unigram", 300, overwrite=True)
    assert everything(tmp_path / "t") == {"tokenizer.model", "megalm.json"}
    assert load_tokenizer(tmp_path / "t").hash == unigram.hash
    train_tokenizer([source], tmp_path / "t", "bpe", 300, overwrite=True)
    assert everything(tmp_path / "t") == {"tokenizer.json", "megalm.json"}
    assert json.loads((tmp_path / "t" / "megalm.json").read_text())["kind"] == "bpe"


def test_rare_words_beyond_the_bound_are_left_out_and_said(source, tmp_path, caplog):
    train_tokenizer([source], tmp_path / "t", "word", max_words=3)
    assert load_tokenizer(tmp_path / "t").vocab_size == 2 + 3
    assert "the 3 most frequent of 10 distinct words" in caplog.text


@pytest.mark.slow
def test_a_vocabulary_of_two_hundred_thousand(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"{i:07d}{i * 7919 % 10007:04d}" for i in range(100_000)))
    tokenizer = train_tokenizer([tmp_path / "a.txt"], tmp_path / "t", "bpe", 200_000)
    assert tokenizer.vocab_size == 200_000
    assert tokenizer.decode(tokenizer.encode("0000123 9")) == "0000123 9"


def test_progress_is_shown_only_where_asked_for(source, tmp_path, capsys):
    train_tokenizer([source], tmp_path / "a", "bpe", 300)
    assert capsys.readouterr() == ("", "")
    train_tokenizer([source], tmp_path / "b", "bpe", 300, progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "merge" in shown.err
