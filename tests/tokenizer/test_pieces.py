"""Bytes survive tokenizers that can hold them, streams join to the decoded text, all ways to encode agree."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalm.errors import UserError
from megalm.tokenizer.huggingface import HuggingFaceTokenizer
from tests.tokenizer.kinds import (
    DOCUMENTS,
    EOD,
    KINDS,
    NASTY,
    TEXT,
    byte_level,
    document,
    texts,
    tokenizer_of,
)

LOSSLESS = [kind for kind in KINDS if tokenizer_of(kind).lossless]
LOSSY = [kind for kind in KINDS if kind not in LOSSLESS]
DATA = st.lists(st.one_of(st.binary(max_size=4), st.sampled_from(NASTY).map(str.encode)), max_size=30).map(
    b"".join
)


def test_tokenizers_with_all_bytes_are_lossless_and_the_others_are_not():
    assert LOSSY == ["word piece", "unigram", "bpe plain", "unigram nfkc"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_any_bytes_come_back(kind):
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=60)
    @given(DATA)
    def check(data):
        ids = tokenizer.encode_bytes(data)
        assert tokenizer.decode_bytes(ids) == data
        assert tokenizer.decode(ids) == data.decode("utf-8", "replace")

    check()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_bytes_of_a_text_that_survives_are_encoded_as_the_text(kind):
    tokenizer = tokenizer_of(kind)
    text = "quick brown fox, the lazy dog."
    assert tokenizer.encode_bytes(text.encode()) == tokenizer.encode(text)


def test_only_what_would_be_lost_is_written_byte_by_byte():
    tokenizer = tokenizer_of("llama")
    words = "the quick brown fox " * 50
    ids = tokenizer.encode_bytes(f"{words}▁\ufffd{words}".encode() + b"\xff")
    assert len(ids) < 2 * len(tokenizer.encode(words)) + 64


@pytest.mark.parametrize("kind", LOSSY)
def test_bytes_that_are_no_text_are_refused_without_tokens_for_them(kind):
    tokenizer = tokenizer_of(kind)
    assert tokenizer.encode_bytes(b"the fox") == tokenizer.encode("the fox")
    with pytest.raises(UserError, match="byte 4 of the data is not UTF-8"):
        tokenizer.encode_bytes(b"the \xff")


@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_to_encode_agree(kind):
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=40)
    @given(st.lists(texts(), max_size=4))
    def check(batch):
        rows = [tokenizer.encode(text) for text in batch]
        assert tokenizer.encode_batch(batch) == rows
        ids_T, counts = tokenizer.encode_ragged(batch)
        assert (ids_T.dtype, counts.dtype) == (np.uint32, np.int64)
        assert ids_T.tolist() == [i for row in rows for i in row]
        assert counts.tolist() == [len(row) for row in rows]
        for text, row in zip(batch, rows, strict=True):
            ids, spans = tokenizer.encode_with_offsets(text)
            assert ids == row
            assert all(0 <= start <= stop <= len(text) for start, stop in spans)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_alone_has_the_ids_that_it_has_in_a_batch(kind):
    tokenizer = tokenizer_of(kind)
    text = TEXT * (120_000 // len(TEXT))
    assert (
        tokenizer.encode(text) == tokenizer.encode_batch([text])[0] == tokenizer.encode_with_offsets(text)[0]
    )


@pytest.mark.parametrize("kind", ["gpt2", "pattern 2", "llama", "unigram plain"])
def test_offsets_name_the_characters_that_a_token_stands_for(kind):
    tokenizer = tokenizer_of(kind)
    text = " The fox, zwölf 東京 猫 ☃😀 end"
    ids, spans = tokenizer.encode_with_offsets(text)
    covered = [set() for _ in text]
    for i, (start, stop) in zip(ids, spans, strict=True):
        piece = tokenizer.token_bytes(i)
        try:
            assert piece.decode().strip() == text[start:stop].strip()
        except UnicodeDecodeError:  # part of a character
            assert piece in text[start:stop].encode()
            assert stop - start >= 1
        for at in range(start, stop):
            covered[at].add(i)
    assert all(covered)


def test_offsets_keep_the_space_before_a_word_whatever_the_file_says_of_them():
    content = json.loads(document("gpt2"))
    content["post_processor"] = {**content["pre_tokenizer"], "trim_offsets": True}
    text = "the quick"
    _, spans = HuggingFaceTokenizer(json.dumps(content), EOD).encode_with_offsets(text)
    assert [at for start, stop in spans for at in range(start, stop)] == list(range(len(text)))


def test_added_tokens_are_spelled_as_they_are():
    backend = byte_level()
    backend.add_special_tokens(["<é Ġ>"])
    tokenizer = HuggingFaceTokenizer(backend.to_str(), EOD)
    i = tokenizer.token_id("<é Ġ>")
    assert tokenizer.decode([i]) == "<é Ġ>"
    assert tokenizer.token_bytes(i) == "<é Ġ>".encode()


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_ids_of_texts_decode_as_by_the_library(kind):
    tokenizer = tokenizer_of(kind)

    @settings(max_examples=60)
    @given(texts())
    def check(text):
        if text.startswith((" ", "▁")) and tokenizer._pieces.strips_space:
            text = "x" + text  # of several spaces in front, one decoder of the library drops all
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer._decode_words(ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_joins_to_the_decoded_text_and_splits_no_character(kind):
    tokenizer = tokenizer_of(kind)
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)

    @settings(max_examples=60)
    @given(st.one_of(ids, texts().map(tokenizer.encode)))
    def check(ids):
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)

    check()
    ids = tokenizer.encode(TEXT)
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > len(tokenizer.decode(ids)) // 6, "text is held back"


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_stream_goes_on_from_where_it_was_copied_and_leaves_the_other_alone(kind):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode(TEXT)
    other = ids[::-1]
    stream, shown = tokenizer.stream(), ""
    for count, token in enumerate(ids):
        copied = stream.copy()
        rest = "".join(map(copied.push, other[:6])) + copied.finish()
        assert shown + rest == tokenizer.decode(ids[:count] + other[:6])
        shown += stream.push(token)
    assert shown + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "word piece"])
def test_a_stream_holds_no_more_than_an_open_character(kind):
    tokenizer = tokenizer_of(kind)
    token = tokenizer.encode_bytes(b"\x80")[-1] if tokenizer.lossless else tokenizer.token_id("[UNK]")
    stream = tokenizer.stream()
    pieces = [stream.push(token) for _ in range(1000)]
    assert len("".join(pieces)) >= 996


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_no_part_of_what_a_text_gives(kind):
    tokenizer = tokenizer_of(kind)
    specials = {token: i for token, i in tokenizer.special_tokens.items() if token not in ("<unk>", "[UNK]")}
    assert specials[next(token for token, i in specials.items() if i == tokenizer.eod_id)] == tokenizer.eod_id
    for token, i in specials.items():
        assert tokenizer.token_bytes(i) == token.encode()
        assert tokenizer.token_id(token) == i
        for text in (token, f"a {token} b", f"{token}{token}"):
            assert not set(tokenizer.encode(text)) & set(specials.values())
            assert not set(tokenizer.encode_ragged([text])[0].tolist()) & set(specials.values())


@pytest.mark.parametrize("kind", KINDS)
def test_halves_of_surrogate_pairs_are_refused_by_all_ways_to_encode(kind):
    tokenizer = tokenizer_of(kind)
    for encode in (
        tokenizer.encode,
        tokenizer.encode_with_offsets,
        lambda text: tokenizer.encode_batch(["a", text]),
        lambda text: tokenizer.encode_ragged(["a", text]),
    ):
        with pytest.raises(UserError, match=r"not UTF-8 \(character 3\)"):
            encode("caf\udce9")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "word piece", "unigram nfkc"])
def test_an_id_outside_the_vocabulary_is_refused(kind):
    tokenizer = tokenizer_of(kind)
    for decode in (tokenizer.decode, tokenizer.decode_bytes, lambda ids: tokenizer.token_bytes(ids[0])):
        for wrong in (-1, tokenizer.vocab_size):
            with pytest.raises(UserError, match=f"id {wrong} is outside the vocabulary"):
                decode([wrong])
