"""Chat templates with tokenizers that were trained for them."""

import pytest

from megalm.tokenizer.chat import load_chat_template
from megalm.tokenizer.training import train_tokenizer
from tests.tokenizer.small_tokenizers import TEXTS

CHAT = [
    {"role": "user", "content": "What is 東京?"},
    {"role": "assistant", "content": "A city, of course. 😀"},
]


@pytest.mark.parametrize(("tokens", "name"), [("chatml", "chatml"), ("llama3", "llama-3")])
def test_trained_chat_tokens_serve_the_bundled_templates(tmp_path, tokens, name):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    tokenizer = train_tokenizer([tmp_path / "a.txt"], tmp_path / "t", vocab_size=400, chat_tokens=tokens)
    found = load_chat_template(name, tokenizer).encode(CHAT)
    names = {i: token for token, i in tokenizer.special_tokens.items()}
    specials = [names[i] for i in found.ids if i in names]
    assert len(specials) == {"chatml": 4, "llama-3": 7}[name]
    assert specials[0] == {"chatml": "<|im_start|>", "llama-3": "<|begin_of_text|>"}[name]
    assert tokenizer.decode(found.ids) == found.text
