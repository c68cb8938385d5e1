"""Tokens that a Hugging Face directory adds outside of its vocabulary file."""

import json
from typing import Any

from megalm.errors import UserError

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Keys of `tokenizer_config.json` that name a special token."""


def added_tokens(config: dict[str, Any], plain: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries, as in a `tokenizer.json`, of the tokens that `config` (tokenizer_config.json) adds.

    plain: the `added_tokens.json` of older tokenizers (spelling: id), which counts where `config` adds none.
    """
    try:
        if "added_tokens_decoder" in config:
            return [
                {"id": int(i), "content": token["content"], **{flag: bool(token.get(flag)) for flag in FLAGS}}
                for i, token in sorted(
                    config["added_tokens_decoder"].items(), key=lambda entry: int(entry[0])
                )
            ]
        named = {token_text(config.get(name)) for name in NAMED}
        return [
            {"id": int(i), "content": token, **dict.fromkeys(FLAGS, False), "normalized": token not in named}
            | {"special": token in named}
            for token, i in sorted(plain.items(), key=lambda entry: int(entry[1]))
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the added tokens of tokenizer_config.json or added_tokens.json are damaged ({error!r}); copy them again"
        ) from error


def with_added_tokens(content: str, added: list[dict[str, Any]]) -> str:
    """The `tokenizer.json` `content` with `added` instead of its own entries of the same spelling."""
    if not added:
        return content
    parsed = json.loads(content)
    own = {token["content"]: token for token in parsed.get("added_tokens") or ()}
    merged = {**own, **{token["content"]: token for token in added}}
    if merged == own:
        return content
    entries = sorted(merged.values(), key=lambda token: token["id"])
    return json.dumps({**parsed, "added_tokens": entries}, ensure_ascii=False)


def token_text(token: Any) -> str | None:
    """Hugging Face writes a token as its text or as an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token
