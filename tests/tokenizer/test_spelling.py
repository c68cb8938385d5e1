"""What spells a special token is text, also for models that have it among their words."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

from megalm.tokenizer.huggingface import HuggingFaceTokenizer
from tests.tokenizer.kinds import EOD, LINES, TEXT, byte_level, document, tokenizer_of


def word_level(**parts) -> HuggingFaceTokenizer:
    vocab = {"<unk>": 0, "</s>": 1, "the": 2, "fox": 3, "<user>": 4}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<user>"])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return HuggingFaceTokenizer(backend.to_str(), "</s>")


def test_words_that_spell_special_tokens_are_unknown_words():
    tokenizer = word_level()
    assert tokenizer.encode("the </s> fox <user>") == [2, 0, 3, 0]
    assert tokenizer.encode_ragged(["the </s> fox <user>"])[0].tolist() == [2, 0, 3, 0]
    assert tokenizer.encode_with_offsets("</s> fox") == ([0, 3], [(0, 4), (5, 8)])


def test_a_word_that_spells_a_special_token_only_behind_another_is_unknown():
    content = json.loads(word_level().content)
    content["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    tokenizer = HuggingFaceTokenizer(json.dumps(content), "</s>")
    assert tokenizer.encode("</s>") == [0]
    assert tokenizer.encode("the </s> fox") == [0, 0, 3]


def test_ids_and_spellings_stay():
    tokenizer = word_level()
    assert tokenizer.special_tokens == {"</s>": 1, "<user>": 4}
    assert [tokenizer.token_id(token) for token in ("</s>", "<user>", "<tool>")] == [1, 4, 5]
    assert tokenizer.encode("the <tool> fox") == [2, 5, 3]
    assert tokenizer.decode([2, 1, 4]) == "the </s> <user>"
    assert tokenizer.token_bytes(1) == b"</s>"
    assert tokenizer.ids_that_start_with("<") == [0, 1, 4, 5]


def test_pieces_of_unigram_are_those_of_the_text():
    tokenizer = tokenizer_of("unigram")
    plain = tokenizers.Tokenizer.from_str(document("unigram"))
    assert tokenizer.eod_id not in tokenizer.encode("a</s>b </s>")
    for text in (*LINES, TEXT):
        assert tokenizer.encode(text) == plain.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_bpe_that_has_a_special_token_in_its_vocabulary(ignore_merges):
    content = json.loads(byte_level(r"\S+|\s+").to_str())
    model = content["model"]
    for token in ("<e", "nd>", "<end>"):
        model["vocab"][token] = len(model["vocab"])
    model["ignore_merges"] = ignore_merges
    if not ignore_merges:
        model["merges"] = [["<", "e"], ["n", "d"], ["nd", ">"], ["<e", "nd>"]]
        model["vocab"].setdefault("nd", len(model["vocab"]))
    end = model["vocab"]["<end>"]
    content["added_tokens"].append({**content["added_tokens"][0], "id": end, "content": "<end>"})
    tokenizer = HuggingFaceTokenizer(json.dumps(content), EOD)
    assert tokenizer.token_id("<end>") == end
    for text in ("<end>", "a <end> b"):
        assert end not in tokenizer.encode(text)
        assert end not in tokenizer.encode_ragged([text])[0]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_special_token_that_merges_lead_to_is_out_of_reach_of_the_fast_encoder_too():
    content = json.loads(byte_level().to_str())
    model = content["model"]
    for token in ("fo", "fox"):
        model["vocab"].setdefault(token, len(model["vocab"]))
    model["merges"] = [["f", "o"], ["fo", "x"], *(m for m in model["merges"] if "f" not in "".join(m))]
    fox = model["vocab"]["fox"]
    content["added_tokens"].append({**content["added_tokens"][0], "id": fox, "content": "fox"})
    tokenizer = HuggingFaceTokenizer(json.dumps(content), EOD)
    assert tokenizer._fast is not None
    assert fox not in tokenizer.encode_ragged(["a fox", "fox"])[0]
    assert tokenizer.encode_batch(["a fox"]) == [tokenizer.encode("a fox")]


def test_what_stands_for_unknown_words_stays():
    assert word_level().encode("dog") == [0]
    assert tokenizer_of("unigram").token_id("<unk>") in tokenizer_of("unigram").encode("\U0001d7d8")
