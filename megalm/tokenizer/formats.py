"""Vocabulary files of GPT-2 and tiktoken, written as the `tokenizer.json` that gives the same ids."""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.tokenizer.json_pieces import BYTE_CHARACTERS

GPT2_CLASSES = {
    "GPT2Tokenizer",
    "RobertaTokenizer",
    "BartTokenizer",
    "LongformerTokenizer",
    "CodeGenTokenizer",
}
"""Classes of Hugging Face whose `vocab.json` and `merges.txt` cut texts as GPT-2 does."""

# `\z` where tiktoken writes `$`, which would be the end of a line for the regex engine of `tokenizers`
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+\z|\s+(?!\S)|\s"
GPT4_PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
EOD = "<|endoftext|>"
FILL_IN = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
ENCODINGS: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": (GPT2_PATTERN, {EOD: 50256}),
    "p50k_base": (GPT2_PATTERN, {EOD: 50256}),
    "cl100k_base": (GPT4_PATTERN, {EOD: 100257, **FILL_IN, "<|endofprompt|>": 100276}),
    "o200k_base": (GPT4O_PATTERN, {EOD: 199999, "<|endofprompt|>": 200018}),
}
"""Pattern and special tokens of the rank files that tiktoken knows by name."""


def gpt2_to_json(vocabulary_file: Path, merges_file: Path, config: dict[str, Any]) -> str:
    """The `tokenizer.json` of GPT-2's `vocab.json`/`encoder.json` and `merges.txt`/`vocab.bpe`.

    config: Hugging Face's `tokenizer_config.json` beside them, or nothing. Raises UserError for damaged files, and
    where the configuration names a class that cuts texts in another way.
    """
    name = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if name not in GPT2_CLASSES:
        raise UserError(
            f"{vocabulary_file.parent} is of class {name}, which cuts texts in its own way; save it with its "
            "tokenizer.json (`save_pretrained` of transformers)"
        )
    vocabulary = _parse_json(vocabulary_file)
    if not isinstance(vocabulary, dict) or not all(
        isinstance(i, int) and i >= 0 for i in vocabulary.values()
    ):
        raise UserError(f"{vocabulary_file} is no vocabulary: it must be an object of tokens and their ids")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise UserError(f"{vocabulary_file} is no vocabulary: two tokens share an id; copy it again")
    # not splitlines: merges may hold other separators
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip()]
    wrong = next((m for m in merges if len(m) != 2), None)
    if wrong is not None:
        raise UserError(f"{merges_file} is no list of merges: '{' '.join(wrong)[:40]}' is not two tokens")
    specials = {EOD: vocabulary[EOD]} if EOD in vocabulary else {}
    cut = {**BYTE_LEVEL, "add_prefix_space": bool(config.get("add_prefix_space", False))}
    return bpe_to_json(vocabulary, merges, specials, None, cut, BYTE_LEVEL)


def ranks_to_json(file: Path, metadata: dict[str, Any]) -> str:
    """The `tokenizer.json` of a rank file of tiktoken: a line is a token in base64 and its rank.

    Such a file tells neither how texts are cut nor its special tokens: `metadata` (the megalm.json beside it) holds
    them as "pattern" (a name of `ENCODINGS` or a regular expression) and "special_tokens" (spelling: id), or the
    file has a name of `ENCODINGS`. Raises UserError where none of these is there, and for damaged files.
    """
    known = metadata.get("pattern") or file.name.removesuffix(".tiktoken")
    pattern, specials = ENCODINGS.get(known, (metadata.get("pattern"), {}))
    specials = metadata.get("special_tokens", specials)
    if pattern is None:
        raise UserError(
            f'{file} does not tell how texts are cut; write {{"pattern": ...}} into megalm.json beside it: one of '
            f"{', '.join(ENCODINGS)} or a regular expression"
        )
    ranks = _read_ranks(file)
    _check_specials(file, pattern, specials, set(ranks.values()))
    spell = {token: "".join([BYTE_CHARACTERS[byte] for byte in token]) for token in ranks}
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {**BYTE_LEVEL, "add_prefix_space": False, "use_regex": False}
    return bpe_to_json(
        # special tokens too, as their ids may lie between or far above the ranks
        {**{spell[token]: rank for token, rank in ranks.items()}, **specials},
        [[spell[left], spell[right]] for left, right in _merges_of_ranks(ranks)],
        specials,
        None,
        {"type": "Sequence", "pretokenizers": [cut, byte_level]},
        BYTE_LEVEL,
        ignore_merges=True,
    )


def _check_specials(file: Path, pattern: str, specials: dict[str, int], taken: set[int]) -> None:
    from tokenizers import Regex, pre_tokenizers

    try:
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:
        raise UserError(
            f"the pattern of {file} is no regular expression ({error}); correct megalm.json"
        ) from error
    if not isinstance(specials, dict) or not all(isinstance(i, int) and i >= 0 for i in specials.values()):
        raise UserError(
            f"the special_tokens of {file} are {specials!r}; they must be spellings and their ids"
        )
    for token, i in specials.items():
        if i in taken:
            raise UserError(
                f"special token '{token}' of {file} has the id {i} of another token; correct megalm.json"
            )
        # tiktoken looks up a whole piece before it merges, and so would take the spelling for the token
        if len(cut.pre_tokenize_str(token)) < 2:
            raise UserError(
                f"the pattern of {file} leaves special token '{token}' whole; spell it with signs apart"
            )


def _merges_of_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to put two tokens together into a third, best rank first: what tiktoken merges."""
    merges = []
    for token, _ in sorted(ranks.items(), key=lambda entry: entry[1]):
        ways = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        ways = [(left, right) for left, right in ways if left in ranks and right in ranks]
        merges += sorted(ways, key=lambda way: (ranks[way[0]], ranks[way[1]]))
    return merges


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{file} line {number} is not a token in base64 and its rank; copy it again"
            ) from error
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None or len(set(ranks.values())) < len(ranks) or min(ranks.values()) < 0:
        what = "two tokens share a rank" if missing is None else f"byte {missing} has no rank"
        raise UserError(f"{file} is no list of ranks ({what}); copy it again")
    return ranks


def bpe_to_json(
    vocabulary: dict[str, int],
    merges: list[list[str]],
    specials: dict[str, int],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    **model: Any,
) -> str:
    """The text of a `tokenizer.json` of BPE; `model` is what its model has otherwise than by default."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    defaults = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags}
            for token, i in sorted(specials.items(), key=lambda entry: entry[1])
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {**defaults, **model, "vocab": vocabulary, "merges": merges},
    }
    return json.dumps(content, ensure_ascii=False)


def _parse_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); copy it again") from error
