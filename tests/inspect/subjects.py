"""Tokenizers and models that the tests of inspection share: random ones, and one whose every weight is set by hand."""

from pathlib import Path

import torch

from megalm.config import Config
from megalm.inspect.subject import Subject
from megalm.tokenizer import load_tokenizer
from tests.tiny import tiny_config, tiny_model

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "ant bee cat dog eel fox gnu hen".split()
VOCABULARY = len(SPECIALS) + len(WORDS)
TEXT = "cat bee dog ant fox"
POSITIONS = 16
PREDICTED = POSITIONS + VOCABULARY
"""Of the hidden states: where positions, the token itself and the token to be predicted stand, one number each."""


def write_tokenizer(folder: Path) -> Path:
    """Whole words alone: token number n is line n."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *WORDS]) + "\n", encoding="utf-8")
    return folder


def word(name: str) -> int:
    return len(SPECIALS) + WORDS.index(name)


def config_of(preset: str, *overrides: str) -> Config:
    sizes = (f"model.vocab_size={VOCABULARY}", "model.max_sequence_length=32", "model.init_method_std=0.3")
    return tiny_config(preset, *sizes, *overrides)


def random_subject(preset: str, folder: Path, *overrides: str) -> Subject:
    """To be called in a world of one process."""
    config = config_of(preset, *overrides)
    return Subject(tiny_model(config), config, load_tokenizer(folder))


COPIER = (
    "model.tie_embeddings=false",
    "model.num_layers=2",
    f"model.max_sequence_length={POSITIONS}",
    f"batch.seq_length={POSITIONS}",
)


def make_copier(model: torch.nn.Module) -> None:
    """Weights of a GPT-2 that predicts the token before the last one, told by head 0 of layer 0; all else puts out nothing.

    Hidden states hold the position, the token and the prediction, each as a one. Head 0's query is the position before its own, its key the
    position, its value the token, which its projection adds as the prediction.
    """
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.fill_(1.0 if "layernorm.weight" in name else 0.0)
        for token in range(VOCABULARY):
            weights["embedding.word_embeddings.weight"][token, POSITIONS + token] = 1
            weights["output_layer.weight"][token, PREDICTED + token] = 4
        weights["embedding.position_embeddings.weight"][:, :POSITIONS] = torch.eye(POSITIONS)
        width = weights["decoder.layers.0.self_attention.linear_qkv.weight"].shape[0] // 12
        query, key, value = weights["decoder.layers.0.self_attention.linear_qkv.weight"][: 3 * width].split(
            width
        )
        query[: POSITIONS - 1, 1:POSITIONS] = 4 * torch.eye(POSITIONS - 1)
        key[:POSITIONS, :POSITIONS] = 4 * torch.eye(POSITIONS)
        value[:VOCABULARY, POSITIONS:PREDICTED] = torch.eye(VOCABULARY)
        project = weights["decoder.layers.0.self_attention.linear_proj.weight"]
        project[PREDICTED : PREDICTED + VOCABULARY, :VOCABULARY] = torch.eye(VOCABULARY)


def copier(folder: Path) -> Subject:
    subject = random_subject("gpt2-tiny", folder, *COPIER)
    make_copier(subject.model)
    return subject
