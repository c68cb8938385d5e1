"""What instruction tuning does to the loss on held-out answers: a small GPT pretrained from scratch on books, then tuned.

`--data` is a folder with, at any depth, books as .jsonl.gz files (key `text`) and instructions as .json files, arrays of objects
with `instruction`, `input` and `output`. A tenth of the instructions is held out, by a hash of the question. Printed is the mean
cross entropy of the answers' tokens there, of the model before and after. All else is in `--work`; what is there already is
used again.
"""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from megalm.checkpoint import find_checkpoint, load_weights
from megalm.config import Config, parse_config
from megalm.dataset import Extras, build_dataset
from megalm.dataset.chat import ChatSettings
from megalm.engine.build import build_engine
from megalm.parallel.layout import create_layout
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.train.data import ValidationData, open_stream
from megalm.train.tasks import task_of

LENGTH = 256
BOOK = 20_000  # characters; shorter texts are no books
KEYS = {"instruction", "input", "output"}
GOAL = 0.10
MODEL = {
    "num_layers": 4,
    "hidden_size": 192,
    "ffn_hidden_size": 512,
    "num_attention_heads": 6,
    "max_sequence_length": LENGTH,
    "position_embedding": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "tie_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/instruction_tuning"))
    parser.add_argument("--megabytes", type=float, default=10, help="of books")
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--tune-steps", type=int, default=200)
    parser.add_argument("--nproc", type=int, default=2)
    options = parser.parse_args()
    work: Path = options.work
    make_data(options.data, work, int(options.megabytes * 1e6))
    base = configuration(work, "base", options.pretrain_steps, lr=1e-3)
    tuned = configuration(work, "tuned", options.tune_steps, lr=3e-4)
    for config in (base, tuned):
        train(config, work, options.nproc)
    losses = {name: held_out_loss(tuned, work / name) for name in ("base", "tuned")}
    gain = 1 - losses["tuned"] / losses["base"]
    for name, loss in losses.items():
        print(f"{name}: loss on held-out answers {loss:.4f}, perplexity {np.exp(loss):.1f}")
    print(f"lower by {100 * gain:.1f}% (goal: at least {100 * GOAL:.0f}%)")
    sys.exit(0 if gain >= GOAL else 1)


def make_data(data: Path, work: Path, most_bytes: int) -> None:
    """Tokenizer and token files in `work`; the tokenizer learns from books and from the questions and answers to be trained on."""
    work.mkdir(parents=True, exist_ok=True)
    books, texts = write_books(data, work / "books.jsonl", most_bytes), []
    instructions = [path for path in sorted(data.rglob("*.json")) if is_instructions(path)]
    if not books or not instructions:
        sys.exit(f"{data} holds {books} books and {len(instructions)} files of instructions: both are needed")
    for path in instructions:
        texts += [" ".join(record.values()) for record in json.loads(path.read_text("utf-8"))]
    (work / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    if not (work / "tokenizer").exists():
        special = ("<|im_start|>", "<|im_end|>")
        train_bpe(
            [work / "books.jsonl", work / "words.jsonl"], 4096, work / "tokenizer", special_tokens=special
        )
    build_dataset([work / "books.jsonl"], work / "tokenizer", work / "books", splits="1")
    chat = ChatSettings.of(work / "tokenizer", "chatml", max_length=LENGTH, max_rejected=0.5)
    built = build_dataset(
        instructions, work / "tokenizer", work / "chats", splits="9,1", extras=Extras(chat=chat)
    )
    print(f"{books} books; instructions: {built['train']['conversations']}")


def write_books(data: Path, target: Path, most_bytes: int) -> int:
    """Copy books in the order of their files, cut where it is enough; returns how many."""
    count, left = 0, most_bytes
    with open(target, "w", encoding="utf-8") as out:
        for path in sorted(data.rglob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    text = json.loads(line).get("text")
                    if isinstance(text, str) and len(text) >= BOOK and left > 0:
                        out.write(json.dumps({"text": text[:left]}) + "\n")
                        count, left = count + 1, left - len(text)
    return count


def is_instructions(path: Path) -> bool:
    found = json.loads(path.read_text("utf-8"))
    return isinstance(found, list) and bool(found) and isinstance(found[0], dict) and set(found[0]) == KEYS


def configuration(work: Path, name: str, steps: int, lr: float) -> dict[str, Any]:
    """Sections of the run `name`: `base` on books, `tuned` from there on conversations."""
    tuned = name == "tuned"
    data = work / ("chats" if tuned else "books")
    sections: dict[str, Any] = {
        "task": "sft" if tuned else "pretrain",
        "run": {"dir": str(work / name), "load": str(work / "base") if tuned else None},
        "model": MODEL,
        "tokenizer": {"path": str(work / "tokenizer")},
        "data": {
            "train": [{"path": f"{data}_train"}],
            "valid": [{"path": f"{work / 'chats'}_valid"}] if tuned else [],
        },
        "batch": {"seq_length": LENGTH, "micro_batch_size": 8, "global_batch_size": 16},
        "optimizer": {"lr": lr, "min_lr": lr / 10, "warmup_steps": min(20, steps // 5)},
        "precision": {"dtype": "bf16"},
        "train": {"steps": steps, "eval_interval": max(1, steps // 5) if tuned else 0},
    }
    return sections


def train(sections: dict[str, Any], work: Path, nproc: int) -> None:
    path = work / f"{Path(sections['run']['dir']).name}.yaml"
    path.write_text(json.dumps(sections), "utf-8")
    subprocess.run([sys.executable, "-m", "megalm", "train", str(path), "--nproc", str(nproc)], check=True)


def held_out_loss(sections: dict[str, Any], run: Path) -> float:
    """Mean cross entropy of all held-out answers' tokens under the last weights of `run`, in fp32."""
    overrides = ["precision.dtype=fp32", "train.eval_batches=1000000"]
    config: Config = parse_config(sections, overrides)
    tokenizer = load_tokenizer(str(config.tokenizer.path))
    config.model.vocab_size = tokenizer.vocab_size
    layout = create_layout(config.parallel, config.run.seed)
    engine = build_engine(config, layout, train=False)
    load_weights(engine, find_checkpoint(run))
    task = task_of(config)
    batches = ValidationData(config, layout, open_stream(config, config.data.valid, tokenizer))
    loss = task.make_loss(config)
    sums, weights = zip(*(engine.evaluate(batch, loss) for batch in batches), strict=True)
    return float(np.sum(sums) / np.sum(weights))


if __name__ == "__main__":
    main()
