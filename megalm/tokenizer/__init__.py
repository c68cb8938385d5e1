"""Text to token ids and back; imports no torch."""

from megalm.tokenizer.base import TextStream, Tokenizer
from megalm.tokenizer.load import load_tokenizer
from megalm.tokenizer.training import train_bpe, train_tokenizer

__all__ = ["TextStream", "Tokenizer", "load_tokenizer", "train_bpe", "train_tokenizer"]
