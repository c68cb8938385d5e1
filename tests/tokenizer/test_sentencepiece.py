"""SentencePiece models: the ids of the library, whether it encodes itself or a tokenizer.json does."""

import json
import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.huggingface import HuggingFaceTokenizer
from megalm.tokenizer.sentencepiece import model_to_json, read_model
from tests.tokenizer.kinds import (
    CONVERTED,
    PLAIN,
    SENTENCEPIECE,
    TEXT,
    sentencepiece_model,
    texts,
    train_sentencepiece,
    write_model,
)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_ids_are_those_of_the_library(tmp_path, kind):
    tokenizer = load_tokenizer(write_model(kind, tmp_path))
    assert isinstance(tokenizer, HuggingFaceTokenizer) == (kind in CONVERTED)
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(sentencepiece_model(kind))
    assert tokenizer.vocab_size == library.get_piece_size()

    @settings(max_examples=200)
    @given(texts())
    def check(text):
        expected = library.encode(text)
        assert tokenizer.encode(text) == expected
        assert tokenizer.encode_ragged([text])[0].tolist() == expected

    check()
    assert tokenizer.encode(TEXT) == library.encode(TEXT)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_texts_decode_as_by_the_library(tmp_path, kind):
    tokenizer = load_tokenizer(write_model(kind, tmp_path))
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(sentencepiece_model(kind))
    for text in (
        " The quick",
        "  two  spaces ",
        "fox jumping",
        "东 \t 東京\n" if tokenizer.lossless else "東京",
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == library.decode(ids)


@pytest.mark.parametrize("kind", CONVERTED)
def test_runs_of_spaces_of_any_length_are_merged_alike(tmp_path, kind):
    tokenizer = load_tokenizer(write_model(kind, tmp_path))
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(sentencepiece_model(kind))
    for length in range(100):
        for text in (" " * length, "fox" + " " * length, " " * length + "fox", "fox" + " " * length + "fox"):
            assert tokenizer.encode(text) == library.encode(text)


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": True},
        {**PLAIN, "user_defined_symbols": ["fox"]},
        {**PLAIN, "model_type": "unigram"},
        {**PLAIN, "model_type": "char"},
        {**PLAIN, "model_type": "word"},
    ],
)
def test_models_that_do_more_to_a_text_stay_in_their_library(tmp_path, options):
    (tmp_path / "m.model").write_bytes(train_sentencepiece(**{"model_type": "bpe", **options}))
    assert model_to_json(read_model(tmp_path / "m.model")) is None


def test_pieces_of_one_score_keep_a_model_in_its_library(tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    file = write_model("llama", tmp_path)
    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    normal = [piece for piece in model.pieces if piece.type == 1 and len(piece.piece) > 1]
    normal[0].score = normal[1].score
    file.write_bytes(model.SerializeToString())
    assert not isinstance(load_tokenizer(file), HuggingFaceTokenizer)


def test_what_is_special_is_never_the_product_of_a_merge(tmp_path):
    """A library that merges by the vocabulary alone makes `</s>` of `</` and `s>`."""
    from sentencepiece import sentencepiece_model_pb2

    file = write_model("llama", tmp_path)
    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    replaced = [piece for piece in model.pieces if piece.type == 1 and len(piece.piece) == 2][:2]
    replaced[0].piece, replaced[1].piece = "</", "s>"
    file.write_bytes(model.SerializeToString())
    tokenizer = load_tokenizer(file)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.eod_id not in tokenizer.encode("a</s>")
    assert tokenizer.eod_id not in tokenizer.encode_ragged(["a</s>"])[0]


@pytest.mark.parametrize("kind", ["llama", "unigram nfkc"])
def test_special_tokens_that_hugging_face_adds_follow_the_pieces(tmp_path, kind):
    file = write_model(kind, tmp_path)
    size = load_tokenizer(file).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": size}))
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.token_id("<pad>"), tokenizer.vocab_size) == (size, size + 1)
    assert tokenizer.decode([size]) == "<pad>"
    assert size not in tokenizer.encode("a <pad>")


def test_an_added_token_that_a_text_can_hold_needs_a_tokenizer_json(tmp_path):
    write_model("unigram nfkc", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<tool>": 900}')
    with pytest.raises(UserError, match="'<tool>' is added to a SentencePiece model and not special"):
        load_tokenizer(tmp_path)


def test_hashes_tell_models_apart(tmp_path):
    hashes = {load_tokenizer(write_model(kind, tmp_path / kind)).hash for kind in SENTENCEPIECE}
    assert len(hashes) == len(SENTENCEPIECE)
    again = load_tokenizer(tmp_path / "unigram nfkc").hash
    assert again in hashes


def test_models_that_mark_the_ends_of_words_are_refused(tmp_path):
    (tmp_path / "m.model").write_bytes(train_sentencepiece(treat_whitespace_as_suffix=True))
    with pytest.raises(UserError, match="treat_whitespace_as_suffix"):
        load_tokenizer(tmp_path)


def test_without_the_library_its_package_is_named(tmp_path, monkeypatch):
    file = write_model("llama", tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        load_tokenizer(file)


@settings(max_examples=60)
@given(st.data())
def test_damaged_models_are_refused_in_one_line_or_work(tmp_path_factory, data):
    model = bytearray(sentencepiece_model("llama"))
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    file.write_bytes(model[: data.draw(st.integers(0, len(model)))])
    try:
        tokenizer = load_tokenizer(file, eod_token="</s>")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        ids = tokenizer.encode(TEXT)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        tokenizer.decode(ids)
