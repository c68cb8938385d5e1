"""Small tokenizers of the kinds that chats are written with, as Hugging Face saves them, and what chats with them hold."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from megalm.tokenizer.chat import ChatTemplate

SPECIAL_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
TEXTS = [
    "You are a helpful assistant. Be kind and short.",
    "What is the capital of France? The capital of France is Paris, of course.",
    "Write a poem about the sea, please. The sea is wide and blue, and so are you.",
    "system user assistant Below is an instruction that describes a task. ### Response: [INST] [/INST]",
    "naïve café 東京 мир 😀 \n\n tabs\tand lines\n",
] * 8
KINDS = ("byte-level", "metaspace", "prefix", "wordpiece")


def save(directory: Path, kind: str) -> Path:
    """Write a tokenizer of `kind` with begin and end tokens `<s>` and `</s>` to `directory`."""
    backend = _trained(kind)
    if kind == "byte-level":  # what it does to a text must not show in a chat
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def _trained(kind: str) -> tokenizers.Tokenizer:
    options = {"special_tokens": SPECIAL_TOKENS, "show_progress": False}
    if kind == "wordpiece":
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=400, **options))
        return backend
    if kind == "byte-level":
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend.train_from_iterator(
            TEXTS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, **options)
        )
        return backend
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "metaspace":  # Llama 2 as it is saved today: a space in front of the text alone
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:  # as it was saved first: a space in front of every stretch between special tokens
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, max_token_length=12, **options))
    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def spelled(tokenizer, ids: list[int]) -> list[str]:
    """The special tokens among `ids`, in order; where text can be unknown, without that token."""
    unknown = None if tokenizer.lossless else tokenizer.token_id("<unk>")
    names = {i: token for token, i in tokenizer.special_tokens.items() if i != unknown}
    return [names[i] for i in ids if i in names]


def trained_text(tokenizer, encoded) -> str:
    return tokenizer.decode([i for i, counts in zip(encoded.ids, encoded.loss_mask, strict=True) if counts])


def made(source: str, tokenizer) -> ChatTemplate:
    return ChatTemplate(source, tokenizer, {"bos_token": "<s>", "eos_token": "</s>"}, "of the test")
