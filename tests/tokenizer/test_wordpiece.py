"""BERT's `vocab.txt`, and what masked language modelling asks of a tokenizer."""

import json
from pathlib import Path

import pytest
import tokenizers
from transformers import BertTokenizerFast

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.wordpiece import masking_vocabulary

TEXT = "The quick brown fox, isn't it? Café naïveté 東京 jumps over lazy dogs; jumping jumped."


def train_vocabulary(directory: Path, lowercase: bool = True) -> Path:
    """A small WordPiece vocabulary, as `vocab.txt`."""
    directory.mkdir(exist_ok=True)
    trained = tokenizers.BertWordPieceTokenizer(lowercase=lowercase)
    trained.train_from_iterator([TEXT] * 20, vocab_size=150, min_frequency=1, show_progress=False)
    trained.save_model(str(directory))
    return directory / "vocab.txt"


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_equal_those_of_hugging_face(tmp_path, lowercase):
    file = train_vocabulary(tmp_path, lowercase)
    expected = BertTokenizerFast.from_pretrained(tmp_path, do_lower_case=lowercase)
    for path in (tmp_path, file):
        found = load_tokenizer(path)
        assert found.encode(TEXT) == expected(TEXT, add_special_tokens=False)["input_ids"]
        assert found.vocab_size == expected.vocab_size
        assert found.eod_id == expected.sep_token_id


def test_case_is_what_the_configuration_beside_says(tmp_path):
    train_vocabulary(tmp_path, lowercase=False)
    cased = load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    uncased = load_tokenizer(tmp_path / "vocab.txt")
    assert cased.encode("The") != uncased.encode("The") == cased.encode("the")
    assert cased.hash != uncased.hash


def test_special_tokens_in_text_are_text(tmp_path):
    found = load_tokenizer(train_vocabulary(tmp_path))
    assert found.token_id("[MASK]") not in found.encode("[MASK] the [SEP]")
    assert set(found.special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_pieces_that_go_on_with_a_word_are_known(tmp_path):
    tokenizer = load_tokenizer(train_vocabulary(tmp_path))
    lines = (tmp_path / "vocab.txt").read_text("utf-8").splitlines()
    found = masking_vocabulary(tokenizer)
    assert found.continues_V.tolist() == [token.startswith("##") for token in lines]
    assert [found.cls_id, found.sep_id, found.mask_id, found.pad_id] == [
        lines.index(token) for token in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")
    ]


def test_a_tokenizer_without_mask_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("some words to learn\n" * 20)
    train_bpe([tmp_path / "a.txt"], 280, tmp_path / "bpe")
    with pytest.raises(UserError, match=r"has no token \[CLS\] \[SEP\] \[MASK\] \[PAD\]"):
        masking_vocabulary(load_tokenizer(tmp_path / "bpe"))


@pytest.mark.parametrize("lines", [["[UNK]", "a", "a"], ["a", "b"]])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, lines):
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="is no WordPiece vocabulary"):
        load_tokenizer(tmp_path)
