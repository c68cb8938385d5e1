"""Log-probabilities of tokens as OpenAI's two kinds of answers have them."""

from collections.abc import Sequence
from typing import Any

from megalm.serve.wire import Message
from megalm.tokenizer import Tokenizer


def chat_logprobs(tokens: Sequence[Message], tokenizer: Tokenizer, top: int) -> dict[str, Any]:
    """Of /v1/chat/completions. tokens: id, logprob and top of each; top: so many of the likeliest ones."""
    content = []
    for token in tokens:
        entry = _entry(token["id"], token["logprob"], tokenizer)
        best = list(token["top"].items())[:top]
        content.append(entry | {"top_logprobs": [_entry(int(id_), value, tokenizer) for id_, value in best]})
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[Message], tokenizer: Tokenizer, top: int, offset: int
) -> dict[str, Any]:
    """Of /v1/completions. offset: characters of the text before the first of these tokens.

    A token without a log-probability, which begins a prompt, has null in its places.
    """
    names = [token_text(token["id"], tokenizer) for token in tokens]
    offsets = []
    for name in names:
        offsets.append(offset)
        offset += len(name)
    return {
        "tokens": names,
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {token_text(int(id_), tokenizer): value for id_, value in list(token["top"].items())[:top]}
            or None
            for token in tokens
        ]
        if top
        else None,
        "text_offset": offsets,
    }


def token_text(token: int, tokenizer: Tokenizer) -> str:
    """A token by itself; one that is no whole character as `bytes:\\xe2\\x82`."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _entry(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "token": token_text(token, tokenizer),
        "logprob": max(logprob, -9999.0),  # JSON has no infinity
        "bytes": list(tokenizer.token_bytes(token)),
    }
