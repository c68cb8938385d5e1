"""Preferences learned by a small GPT: a reward model beside bag-of-words, and DPO, on pairs whose prompts were held out.

`--data` is a folder with, at any depth, `text_en_books/*.jsonl.gz` (key `text`), `instruction/*.json` (arrays of objects with
`instruction`, `input`, `output`; others are passed over), and in `preference/` pairs: `llms_from_scratch_ch07_preference.json` and
`hh_rlhf_harmless_base_test.jsonl.gz`. The model reads books, is tuned on instructions, and then learns from preferences. A fifth of
the prompts is held out, by a hash of the text, from tuning and preferences alike, and nothing is chosen by it. `--work` keeps
tokenizer, token files and runs: the same command goes on where it was stopped.
"""

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from megalm.checkpoint import find_checkpoint, load_weights
from megalm.config import Config, parse_config
from megalm.dataset import Extras, build_dataset
from megalm.dataset.chat import ChatSettings
from megalm.dataset.preference_records import preference_of
from megalm.dataset.preferences import build_preferences
from megalm.engine.build import build_engine
from megalm.parallel.layout import create_layout
from megalm.splits import split_limits, split_of
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.conversations import BadRecord
from megalm.tokenizer.records import read_records
from megalm.train import run
from megalm.train.data import ValidationData, open_validation
from megalm.train.evaluation import Evaluation
from megalm.train.reward_figures import wilson
from megalm.train.tasks import task_of

SPLITS = "80,20"
SETS = {"ch07": "llms_from_scratch_ch07_preference.json", "hh": "hh_rlhf_harmless_base_test.jsonl.gz"}
BATCHES = {"ch07": (8, 256), "hh": (4, 256)}
GOAL = 0.85
MODEL = {
    "num_layers": 2,
    "hidden_size": 128,
    "ffn_hidden_size": 384,
    "num_attention_heads": 4,
    "max_sequence_length": 256,
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
    parser.add_argument("--work", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--tune-steps", type=int, default=100)
    parser.add_argument("--reward-steps", type=int, default=270)
    parser.add_argument("--steps", type=int, default=180, help="of DPO, and of rewards of the dialogues")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="Write all figures there as JSON.")
    options = parser.parse_args()
    files = {name: next(options.data.rglob(file)) for name, file in SETS.items()}
    rows: list[dict[str, Any]] = []
    for name, file in files.items():
        rows.append(bag_of_words(name, file))
        show(rows, options.output)
    prepare(options.data, files, options.work)
    base = train(options.work, "books", "base", "pretrain", options.pretrain_steps, batch=(8, 128), lr=1.5e-3)
    tuned = train(
        options.work, "chats", "tuned", "sft", options.tune_steps, batch=(8, 256), lr=1e-3, load=base
    )
    rows.append(rewards(options.work, "ch07", tuned, options.reward_steps, options.seeds))
    show(rows, options.output)
    rows.append(preferred(options.work, tuned, options.steps, options.seeds))
    show(rows, options.output)
    rows.append(rewards(options.work, "hh", tuned, options.steps, options.seeds[:1]))
    show(rows, options.output)
    reached = next(row["accuracy"] for row in rows if row["model"] == "reward model")
    sys.exit(0 if reached >= GOAL else 1)


def show(rows: list[dict[str, Any]], output: Path | None) -> None:
    """Print the last row; write all of them."""
    print(json.dumps(rows[-1]), flush=True)
    if output:
        output.write_text(json.dumps(rows, indent=1) + "\n")


def bag_of_words(name: str, file: Path) -> dict[str, Any]:
    """Logistic regression on the difference of the answers' TF-IDF of words and pairs of words."""
    limits, parts = split_limits(SPLITS), ([], [])
    for record in read_records(file):
        try:
            preference = preference_of(record.value)
        except BadRecord:
            continue
        part: list[str] = parts[split_of(preference.first_text.encode(), limits)]
        part += [answer["content"] for answer in preference.answers]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    train, held_out = words.fit_transform(parts[0]), words.transform(parts[1])
    ahead = train[::2] - train[1::2]
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    model.fit(scipy.sparse.vstack([ahead, -ahead]), [1] * ahead.shape[0] + [0] * ahead.shape[0])
    margin = model.decision_function(held_out[::2] - held_out[1::2])
    right = float(np.sum((margin > 0) + 0.5 * (margin == 0)))
    return {"model": "bag of words", "set": name, **shares(right, len(margin))}


def shares(right: float, pairs: int) -> dict[str, Any]:
    low, high = wilson(right, pairs)
    return {"pairs": pairs, "accuracy": right / pairs, "interval": [low, high]}


def prepare(data: Path, files: dict[str, Path], work: Path) -> None:
    """Tokenizer and token files, where they are not there yet."""
    books = next(data.rglob("text_en_books"))
    folder = next(data.rglob("instruction"))
    instructions = [path for path in sorted(folder.glob("*.json")) if is_instructions(path)]
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer").exists():
        texts = [
            " ".join(row.values()) for path in instructions for row in json.loads(path.read_text("utf-8"))
        ]
        (work / "words.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8"
        )
        special = ("<|im_start|>", "<|im_end|>")
        train_bpe([books, work / "words.jsonl"], 4096, work / "tokenizer", special_tokens=special)
    settings = partial(ChatSettings.of, work / "tokenizer", "chatml", max_rejected=0.5)
    build_dataset([books], work / "tokenizer", work / "books", splits="98,2")
    extras = Extras(chat=settings(max_length=256))
    build_dataset(instructions, work / "tokenizer", work / "chats", splits=SPLITS, extras=extras)
    for name, file in files.items():
        if not Path(f"{work / name}_train.idx").exists():
            found = build_preferences(
                [file], work / "tokenizer", work / name, settings(train_on="last"), SPLITS
            )
            counts = {split: record["documents"] for split, record in found["splits"].items()}
            print(f"{name}: {counts}, left out { ({k: v['rows'] for k, v in found['left_out'].items()}) }")


def is_instructions(path: Path) -> bool:
    found = json.loads(path.read_text("utf-8"))
    keys = {"instruction", "input", "output"}
    return isinstance(found, list) and bool(found) and isinstance(found[0], dict) and set(found[0]) == keys


def train(
    work: Path, data: str, name: str, task: str, steps: int, batch: tuple[int, int], lr: float, **more: Any
) -> str:
    """The directory of a finished run; what it came to is in its figures.json."""
    config = configuration(work, data, name, task, steps, batch, lr, **more)
    path, begin = Path(config.run.dir) / "figures.json", time.perf_counter()
    if not path.exists():
        result = run.main(config)
        path.write_text(json.dumps(result | {"seconds": time.perf_counter() - begin}))
        print(f"{name}: {time.perf_counter() - begin:.0f} s, loss {result.get('valid_loss')}", flush=True)
    return config.run.dir


def configuration(
    work: Path,
    data: str,
    name: str,
    task: str,
    steps: int,
    batch: tuple[int, int],
    lr: float,
    load: str | None = None,
    seed: int = 1,
    model: dict[str, Any] | None = None,
    **sections: Any,
) -> Config:
    size, length = batch
    return parse_config(
        {
            "run": {"dir": str(work / f"{name}_{steps}"), "seed": seed, "load": load},
            "task": task,
            "model": MODEL | (model or {}),
            "tokenizer": {"path": str(work / "tokenizer")},
            "data": {split: [{"path": f"{work / data}_{split}"}] for split in ("train", "valid")},
            "batch": {"seq_length": length, "micro_batch_size": size, "global_batch_size": size},
            "optimizer": {
                "lr": lr,
                "min_lr": lr / 10,
                "warmup_steps": min(20, steps // 5),
                "weight_decay": 0.1,
            },
            "precision": {"dtype": "fp32"},
            "train": {"steps": steps, "eval_interval": steps, "eval_batches": 8},
            "logging": {"tensorboard": False, "progress": False},
            **sections,
        }
    )


def rewards(work: Path, name: str, tuned: str, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Reward models of one set, on all of its held-out pairs."""
    found = []
    for seed in seeds:
        directory = train(
            work,
            name,
            f"reward_{name}_{seed}",
            "reward",
            steps,
            batch=BATCHES[name],
            lr=3e-4,
            load=tuned,
            seed=seed,
            model={"hidden_dropout": 0.1},
            reward={"too_long": "cut_prompt", "center_weight": 0.01},
        )
        found.append(json.loads((Path(directory) / "reward.json").read_text()))
    mean = statistics.mean(one["accuracy"] for one in found)
    pairs = found[0]["pairs"]
    kept = (
        "accuracy",
        "calibration_error",
        "length_accuracy",
        "length_correlation",
        "accuracy_chosen_shorter",
    )
    each = [{key: one[key] for key in kept} for one in found]
    return {"model": "reward model", "set": name, **shares(mean * pairs, pairs), "seeds": each}


def preferred(work: Path, tuned: str, steps: int, seeds: list[int]) -> dict[str, Any]:
    """How often the chosen answer is the likelier one, before DPO and after it."""
    found = []
    before: dict[str, Any] = {}
    for seed in seeds:
        directory = train(
            work,
            "ch07",
            f"dpo_{seed}",
            "dpo",
            steps,
            batch=BATCHES["ch07"],
            lr=2e-4,
            load=tuned,
            seed=seed,
        )
        config = configuration(
            work, "ch07", "unused", "dpo", steps, BATCHES["ch07"], 1e-4, dpo={"reference_free": True}
        )
        before = before or likelier(config, tuned)
        figures = json.loads((Path(directory) / "figures.json").read_text())
        found.append(
            {
                "accuracy": likelier(config, directory)["accuracy"],
                "reward_accuracy": figures["valid_accuracy"],
            }
        )
    mean = statistics.mean(one["accuracy"] for one in found)
    pairs = before["pairs"]
    return {
        "model": "DPO",
        "set": "ch07",
        "before": before,
        **shares(mean * pairs, pairs),
        "seeds": found,
    }


def likelier(config: Config, directory: str) -> dict[str, Any]:
    """Share of the held-out pairs whose chosen answer is the likelier one, by the sum of its tokens' log-probabilities."""
    tokenizer = load_tokenizer(str(config.tokenizer.path))
    config.model.vocab_size = tokenizer.vocab_size
    layout = create_layout(config.parallel, config.run.seed)
    engine = build_engine(config, layout, train=False)
    load_weights(engine, find_checkpoint(directory))
    stream = open_validation(config, config.data.valid, tokenizer)
    values, _ = Evaluation(engine, task_of(config).make_loss(config)).measure(
        ValidationData(config, layout, stream)
    )
    pairs = stream.samples_before_repeats()
    return shares(values["accuracy"] * pairs, pairs)


if __name__ == "__main__":
    main()
