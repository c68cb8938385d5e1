"""A WordPiece tokenizer and token files of text in which a masked word can be guessed."""

import json
from pathlib import Path

import numpy as np
import tokenizers

from megalm.dataset import build_dataset

WORDS = "sea wood hand stone river mountain winter evening garden harbour".split()


def write_bert_data(directory: Path) -> Path:
    """`vocab.txt`, `text.jsonl` and the token files `data_train` and `data_valid` in `directory`."""
    random = np.random.default_rng(0)
    texts = []
    for _ in range(150):
        start, count = int(random.integers(10)), int(random.integers(6, 40))
        texts.append(
            ". ".join(
                f"the {WORDS[(start + n) % 10]} of {WORDS[(start + n + 1) % 10]}s" for n in range(count // 3)
            )
        )
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (directory / "text.jsonl").write_text("".join(lines), encoding="utf-8")
    trained = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(texts, vocab_size=90, min_frequency=1, show_progress=False)
    trained.save_model(str(directory))
    build_dataset(
        [directory / "text.jsonl"], directory / "vocab.txt", directory / "data", workers=1, splits="80,20,0"
    )
    return directory
