"""Training of tokenizers: words are counted, then a vocabulary is made of the counts."""

from megalm.tokenizer.training.train import CHAT_TOKENS, KINDS, train_bpe, train_tokenizer

__all__ = ["CHAT_TOKENS", "KINDS", "train_bpe", "train_tokenizer"]
