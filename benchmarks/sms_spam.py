"""Spam among text messages: small models pretrained on books and fine-tuned, beside the same without pretraining and a linear SVM.

`--data` is a folder with `sms_spam/sms_spam.tsv` (label, tab, text) and `text_en_books/*.jsonl.gz`. Copies are removed before the
messages are split by text, 80 to 20; nothing is chosen by the 20. `--work` keeps tokenizers, token files and runs: the same command
goes on where it was stopped.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from megalm.config import Config, parse_config
from megalm.dataset import build_dataset
from megalm.dataset.labelled import Columns, build_labelled, labelled_splits
from megalm.evaluate.metrics import classification_metrics, confusion_matrix
from megalm.tokenizer.training.train import train_tokenizer
from megalm.train import run

LABELS = ["ham", "spam"]
COLUMNS = Columns(text="2", label="1")
SPLITS = "80,20"
VOCABULARY = 4096
TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt": {"kind": "bpe", "pretokenizer": "gpt4-digits", "normalizers": ["nfkc", "lowercase"]},
    "bert": {"kind": "wordpiece", "normalizers": ["bert"]},
}
SIZES = {
    "num_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "ffn_hidden_size": 1024,
    "max_sequence_length": 128,
    "position_embedding": "learned",
    "normalization": "LayerNorm",
    "add_bias_linear": True,
    "tie_embeddings": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "gpt": {"architecture": "gpt", "activation": "gelu_tanh"},
    # a masked token's place says nothing of the word: before attention has found the neighbours, only the words' frequencies are
    # learned. Rotary positions, weights as large as such a narrow model bears, and more masked tokens end that sooner.
    "bert": {
        "architecture": "bert",
        "activation": "gelu",
        "sentence_head": False,
        "position_embedding": "rope",
        "init_method_std": 0.06,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/sms_spam"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pretrain-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, help="Write all figures there as JSON.")
    options = parser.parse_args()
    messages = options.data / "sms_spam" / "sms_spam.tsv"
    rows = [{"model": "TF-IDF + linear SVM", **svm(messages)}]
    show(rows[0])
    for kind in options.kinds:
        prepare(kind, messages, options.data / "text_en_books", options.work)
        base = pretrain(kind, options.work, options.pretrain_steps)
        for load in (base, None):
            name = f"{kind}, {'pretrained' if load else 'from scratch'}"
            found = [classify(kind, options.work, load, seed, options.steps) for seed in options.seeds]
            mean = {key: statistics.mean(one[key] for one in found) for key in found[0]}
            rows.append({"model": name, **mean, "seeds": found})
            show(rows[-1])
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


def show(row: dict[str, Any]) -> None:
    each = " ".join(f"{one['accuracy']:.4f}/{one['f1_spam']:.3f}" for one in row.get("seeds", []))
    print(
        f"{row['model']:24} accuracy {row['accuracy']:.4f}  F1 of spam {row['f1_spam']:.4f}  "
        f"{row['seconds']:.0f} s  {each}",
        flush=True,
    )


def svm(messages: Path) -> dict[str, float]:
    """Words and pairs of words, weighed as usual, and a linear SVM with scikit-learn's defaults."""
    begin = time.perf_counter()
    (train, valid, _), _ = labelled_splits([messages], COLUMNS, "tsv", LABELS, SPLITS)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LinearSVC().fit(
        words.fit_transform([sample.texts[0] for sample in train]),
        [LABELS.index(sample.label) for sample in train],
    )
    called = model.predict(words.transform([sample.texts[0] for sample in valid]))
    truth = [LABELS.index(sample.label) for sample in valid]
    found = classification_metrics(confusion_matrix(np.array(truth), called, 2), LABELS)
    return {
        "accuracy": found["accuracy"],
        "f1_spam": found["classes"]["spam"]["f1"],
        "seconds": time.perf_counter() - begin,
    }


def prepare(kind: str, messages: Path, books: Path, work: Path) -> None:
    """Tokenizer and token files of one kind of model, where they are not there yet."""
    tokenizer = work / f"tokenizer_{kind}"
    if not tokenizer.exists():
        train_tokenizer(
            [books], tokenizer, vocab_size=VOCABULARY, sample_bytes=20_000_000, **TOKENIZERS[kind]
        )
    build_dataset([books], tokenizer, work / f"books_{kind}", splits="98,2")
    if not Path(f"{work / f'sms_{kind}'}_train.idx").exists():
        result = build_labelled([messages], tokenizer, work / f"sms_{kind}", COLUMNS, "tsv", LABELS, SPLITS)
        counts = {split: record["label_counts"] for split, record in result["splits"].items()}
        print(f"{kind}: {counts}, left out { ({k: v['rows'] for k, v in result['left_out'].items()}) }")


def pretrain(kind: str, work: Path, steps: int) -> str:
    """The directory of a finished run on the books."""
    masks = {"whole_word": False, "mask_probability": 0.3}
    task = {"task": "mlm", "mlm": masks} if kind == "bert" else {"task": "pretrain"}
    config = configuration(
        kind,
        work,
        f"books_{kind}",
        run={"dir": str(work / f"pretrain_{kind}_{steps}")},
        batch={"seq_length": 128, "micro_batch_size": 32, "global_batch_size": 32},
        optimizer={"lr": 1.5e-3, "min_lr": 1e-4, "warmup_steps": min(40, steps), "weight_decay": 0.1},
        train={"steps": steps, "eval_interval": steps, "eval_batches": 8},
        **task,
    )
    result, seconds = finished(config)
    if result:
        print(f"{kind}: pretraining {seconds:.0f} s, validation loss {result['valid_loss']:.3f}", flush=True)
    return config.run.dir


def classify(kind: str, work: Path, load: str | None, seed: int, steps: int) -> dict[str, float]:
    """Figures on the held-out messages at the end of one run."""
    origin = "scratch" if load is None else Path(load).name
    config = configuration(
        kind,
        work,
        f"sms_{kind}",
        task="classify",
        run={"dir": str(work / f"classify_{kind}_{origin}_{seed}_{steps}"), "seed": seed, "load": load},
        model={"sequence_head": {"pooling": "mean"}, "hidden_dropout": 0.1},
        batch={"seq_length": 64, "micro_batch_size": 32, "global_batch_size": 32},
        classify={"keep": "both"},
        optimizer={
            "lr": 5e-4,
            "min_lr": 0.0,
            "schedule": "linear",
            "warmup_steps": steps // 10,
            "weight_decay": 0.05,
            "adam_beta2": 0.98,
        },
        train={"steps": steps, "eval_interval": steps},
    )
    result, seconds = finished(config)
    path = Path(config.run.dir) / "figures.json"
    if result:
        figures = {name: result[f"valid_{name}"] for name in ("accuracy", "f1_spam", "loss")}
        path.write_text(json.dumps(figures | {"seconds": seconds}))
    return json.loads(path.read_text())


def configuration(kind: str, work: Path, data: str, **sections: Any) -> Config:
    model = SIZES | KINDS[kind] | sections.pop("model", {})
    return parse_config(
        {
            "model": model,
            "tokenizer": {"path": str(work / f"tokenizer_{kind}")},
            "data": {split: [{"path": str(work / f"{data}_{split}")}] for split in ("train", "valid")},
            "precision": {"dtype": "bf16"},
            "logging": {"tensorboard": False, "progress": False},
            **sections,
        }
    )


def finished(config: Config) -> tuple[dict[str, Any], float]:
    """Train to the end; what the last step and validation came to (nothing where all was done before) and the time it took."""
    begin = time.perf_counter()
    result = run.main(config)
    return (result if "valid_loss" in result else {}), time.perf_counter() - begin


if __name__ == "__main__":
    main()
