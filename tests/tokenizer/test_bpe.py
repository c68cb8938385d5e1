"""Training: what the vocabulary holds, that text survives, and that mistakes are named."""

import gzip
import json
import random
from pathlib import Path

import pytest
import zstandard

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe

WORDS = "the quick brown fox jumps over a lazy dog while café naïve 東京 мир 😀 goes on".split()


def make_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 30))) for _ in range(count)]


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("source") / "a.jsonl", make_texts(200))


def test_vocabulary_has_the_size_asked_for_with_eod_first_and_all_bytes(source, tmp_path):
    tokenizer = train_bpe([source], 300, tmp_path / "t", special_tokens=["<|user|>"])
    assert tokenizer.vocab_size == 300
    assert tokenizer.eod_id == 0
    content = json.loads((tmp_path / "t" / "tokenizer.json").read_text("utf-8"))
    assert content["model"]["vocab"]["<|user|>"] == 1
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    assert tokenizer.decode(tokenizer.encode(every_character)) == every_character


def test_frequent_words_become_one_token(source, tmp_path):
    tokenizer = train_bpe([source], 400, tmp_path / "t")
    assert len(tokenizer.encode(" quick")) == 1
    assert len(tokenizer.encode(" kciuq")) > 1


def test_special_tokens_in_a_text_are_text(source, tmp_path):
    tokenizer = train_bpe([source], 300, tmp_path / "t")
    text = "stop <|endoftext|> here"
    assert tokenizer.eod_id not in tokenizer.encode(text)
    assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.eod_id]) == "<|endoftext|>"


def test_equal_inputs_give_equal_files_however_they_are_packed(source, tmp_path):
    data = source.read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    frames = data[: len(data) // 2], data[len(data) // 2 :]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.ZstdCompressor().compress(f) for f in frames))
    texts = [json.loads(line)["text"] for line in data.decode().split("\n") if line]
    (tmp_path / "a.txt").write_text("\n".join(texts), "utf-8")
    train_bpe([source], 320, tmp_path / "plain")
    expected = (tmp_path / "plain" / "tokenizer.json").read_bytes()
    for name, sample_by in [("a.jsonl.gz", "document"), ("a.jsonl.zst", "document"), ("a.txt", "line")]:
        train_bpe([tmp_path / name], 320, tmp_path / name[-3:], sample_by=sample_by)
        assert (tmp_path / name[-3:] / "tokenizer.json").read_bytes() == expected


def test_sample_bytes_takes_the_first_documents_of_every_input(tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", ["alpha " * 10] * 10 + ["omega " * 10] * 1000)
    second = write_jsonl(tmp_path / "b.jsonl", ["gamma " * 10] * 1010)
    tokenizer = train_bpe([first, second], 400, tmp_path / "t", sample_bytes=1000)
    assert len(tokenizer.encode(" alpha")) == len(tokenizer.encode(" gamma")) == 1
    assert len(tokenizer.encode(" omega")) > 1


def test_small_text_gives_a_smaller_vocabulary_and_says_so(tmp_path, caplog):
    tokenizer = train_bpe([write_jsonl(tmp_path / "a.jsonl", ["ab ab"])], 1000, tmp_path / "t")
    assert 257 < tokenizer.vocab_size < 1000
    assert "1000 asked for" in caplog.text


def test_another_text_key(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", make_texts(50), key="content")
    assert train_bpe([source], 300, tmp_path / "t", text_key="content").vocab_size == 300


def test_trained_again_in_place_the_metadata_fits(source, tmp_path):
    train_bpe([source], 300, tmp_path / "t")
    again = train_bpe([source], 310, tmp_path / "t", overwrite=True)
    assert load_tokenizer(tmp_path / "t").hash == again.hash


def test_user_errors(source, tmp_path):
    with pytest.raises(UserError, match="at least 258"):
        train_bpe([source], 257, tmp_path / "t", special_tokens=["<a>"])
    with pytest.raises(UserError, match="no text under 'body' .found keys text"):
        train_bpe([source], 300, tmp_path / "t", text_key="body")
    with pytest.raises(UserError, match="sample_by is 'word'"):
        train_bpe([source], 300, tmp_path / "t", sample_by="word")
    with pytest.raises(UserError, match="special token is empty"):
        train_bpe([source], 300, tmp_path / "t", special_tokens=[""])
    with pytest.raises(UserError, match="sample_bytes is -1"):
        train_bpe([source], 300, tmp_path / "t", sample_bytes=-1)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="no text in .*empty.txt"):
        train_bpe([tmp_path / "empty.txt"], 300, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_tokenizer_that_is_there_is_not_replaced_unasked(source, tmp_path):
    before = train_bpe([source], 300, tmp_path / "t")
    with pytest.raises(UserError, match="--overwrite"):
        train_bpe([source], 310, tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").hash == before.hash


def test_text_that_is_not_unicode_is_refused(source, tmp_path):
    tokenizer = train_bpe([source], 300, tmp_path / "t")
    with pytest.raises(UserError, match="not UTF-8"):
        tokenizer.encode("caf\udce9")
