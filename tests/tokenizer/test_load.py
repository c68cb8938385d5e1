"""Opening saved tokenizers: ours, Hugging Face's, and damaged ones."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("some words to learn, and some more words to learn\n" * 20)
    train_bpe([tmp_path / "a.txt"], 280, tmp_path / "trained")
    return tmp_path / "trained"


def rewrite(path: Path, change) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_directory_and_file_open_alike(trained):
    by_directory, by_file = load_tokenizer(trained), load_tokenizer(trained / "tokenizer.json")
    assert by_directory.hash == by_file.hash
    assert by_directory.encode("words to learn") == by_file.encode("words to learn")
    assert json.loads((trained / "megalm.json").read_text()) == {
        "kind": "bpe",
        "eod_token": "<|endoftext|>",
        "hash": by_file.hash,
    }


def test_ids_equal_those_of_the_library(trained):
    text = "Some unknown words — to learn 😀\n\n  twice"
    backend = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    assert load_tokenizer(trained).encode(text) == backend.encode(text).ids


def test_plain_hugging_face_file_with_truncation_padding_and_bos(trained):
    (trained / "megalm.json").unlink()
    plain = load_tokenizer(trained)
    backend = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.save(str(trained / "tokenizer.json"))
    other = load_tokenizer(trained)
    text = "more words to learn, far beyond four"
    assert other.encode(text) == other.encode_batch([text, "x"])[0] == plain.encode(text)
    assert other.hash == plain.hash


def test_hash_tells_vocabularies_apart_and_not_ways_to_write_them(trained):
    (trained / "megalm.json").unlink()
    before = load_tokenizer(trained).hash
    rewrite(
        trained / "tokenizer.json",
        lambda c: c["model"].update(merges=[" ".join(m) for m in c["model"]["merges"]]),
    )
    assert load_tokenizer(trained).hash == before
    rewrite(trained / "tokenizer.json", lambda c: c["model"]["merges"].pop())
    assert load_tokenizer(trained).hash != before


def test_end_token_comes_from_argument_then_config_then_common_names(tmp_path):
    def save(*words: str) -> None:
        vocab = {word: number for number, word in enumerate(words)}
        tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=words[0])).save(
            str(tmp_path / "tokenizer.json")
        )

    save("a", "<end>", "</s>")
    assert load_tokenizer(tmp_path).eod_id == 2
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    assert load_tokenizer(tmp_path).eod_id == 1
    assert load_tokenizer(tmp_path, eod_token="a").eod_id == 0
    with pytest.raises(UserError, match="no token 'b'"):
        load_tokenizer(tmp_path, eod_token="b")
    (tmp_path / "tokenizer_config.json").unlink()
    save("a", "b")
    with pytest.raises(UserError, match="names no token to end documents"):
        load_tokenizer(tmp_path)


def test_vocab_size_is_above_every_id_even_with_holes(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 9}, unk_token="a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).vocab_size == 10


def test_missing_damaged_and_changed_files_are_named(trained, tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nothing")
    rewrite(trained / "tokenizer.json", lambda c: c["model"]["merges"].pop())
    with pytest.raises(UserError, match="was changed after"):
        load_tokenizer(trained)
    (trained / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match="not a readable"):
        load_tokenizer(trained)


def test_an_id_outside_the_vocabulary_is_an_error(trained):
    with pytest.raises(UserError, match="id 280 is outside"):
        load_tokenizer(trained).decode([280])


TEXT = "Hé llo 😀👩‍👩‍👧 wörld 東京\u2028 x \ufffd y <|endoftext|>"


def test_stream_joins_to_the_decoded_text_and_splits_no_character(trained):
    tokenizer = load_tokenizer(trained)
    ids = [*tokenizer.encode(TEXT), tokenizer.eod_id, *tokenizer.encode("end")]
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    pieces = [piece.replace("\ufffd", "", TEXT.count("\ufffd")) for piece in pieces]
    assert "\ufffd" not in "".join(pieces)
    assert sum(bool(piece) for piece in pieces) > len(TEXT) // 2, "text is held back"


def test_stream_shows_broken_characters_as_decode_does(trained):
    tokenizer = load_tokenizer(trained)
    smile = tokenizer.encode("😀")
    for ids in (smile[:2], smile[:3] + tokenizer.encode("ab"), smile[1:] + smile[:1] + smile):
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_stream_keeps_the_spaces_of_tokenizers_that_mark_word_begins(tmp_path):
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {word: number for number, word in enumerate(["</s>", "▁", "▁a", "b", *bytes_])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = [2, 3, 2, *(4 + byte for byte in "é😀".encode()), 2, 3]
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids) == "ab aé😀 ab"
