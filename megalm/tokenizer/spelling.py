"""Keeps special tokens out of texts: what spells one is text, also where a model has it among its words."""

import json
import secrets
from typing import Any

import tokenizers

CONTEXTS = ("{}", " {} ", "a {} b", "a{}b", "{0}{0}")
"""Texts around a token; in one of them, a model that makes the token of its spelling does so."""


def hide_spelled(content: str, backend: tokenizers.Tokenizer, specials: dict[str, int]) -> str:
    """The `tokenizer.json` for encoding: `content`, but for special tokens that a text would give.

    backend: the tokenizer of `content`. Unigram, word-level and some BPE models have their special tokens in the
    vocabulary, so that the text `</s>` is one token; those are put out of the reach of texts, each under its id. What
    stands for unknown words stays.
    """
    spelled = {token for token, i in specials.items() if _gives(backend, token, i)}
    if not spelled:
        return content
    parsed = json.loads(content)
    model = parsed["model"]
    spelled.discard(_unknown_token(model))
    # no text holds this, as it is made anew in each process
    mark = f"\ufffe\uffff{secrets.token_hex(16)}"
    hidden = {token: mark + token for token in spelled}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(token, token): i for token, i in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [merge for merge in merges if not spelled & {*merge, "".join(merge)}]
    added = parsed.get("added_tokens") or []
    parsed["added_tokens"] = [token for token in added if token["content"] not in spelled]
    return json.dumps(parsed, ensure_ascii=False)


def _gives(backend: tokenizers.Tokenizer, token: str, token_id: int) -> bool:
    texts = [context.format(token) for context in CONTEXTS]
    return any(token_id in backend.encode(text, add_special_tokens=False).ids for text in texts)


def _unknown_token(model: dict[str, Any]) -> str | None:
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")
