"""Small models, questions and tasks that the tests of evaluation share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from megalm.config import Config
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.tiny import tiny_config, tiny_engine

CONTEXT = 64
SEED = "run.seed=77"
Row = dict[str, Any]

CHOICES: list[Row] = [
    {
        "query": f"question {n} of the hand",
        "choices": ["the end", "a text of the hand", f"no {n}"],
        "gold": n % 3,
    }
    for n in range(9)
]
SCHEMAS: list[Row] = [
    {"contexts": [f"the {n} and the end", f"the text {n}"], "rest": "of the hand.", "gold": n % 2}
    for n in range(5)
]
LAST_WORDS: list[Row] = [{"context": f"the end of {n} and", "last": "the"} for n in range(5)]
ASKED: list[Row] = [
    {"question": f"how many hands, {n}?", "answers": [f"there are {n} hands of mine", str(n)]}
    for n in range(5)
]
SUMS: list[Row] = [{"question": f"{n} + {n} =", "result": f"{n} and {n}\n#### {2 * n}"} for n in range(1, 6)]
DOCUMENTS: list[Row] = [
    {"text": " ".join(f"the end of {n * part}, and of the hand é{part}." for part in range(1, n))}
    for n in range(2, 9)
]
CODE: list[Row] = [
    {"start": f"def f{n}():\n", "check": f"def check(f):\n    assert f() == {n}\n", "name": f"f{n}"}
    for n in range(3)
]
TASKS: dict[str, Row] = {
    "choices": {
        "kind": "choice",
        "prompt": "{{ query }}\nAnswer:",
        "choices": "choices",
        "answer": "gold",
        "metrics": ["acc", "acc_norm", "acc_bytes", "acc_tokens", "macro_f1", "probability"],
    },
    "schemas": {
        "kind": "schema",
        "contexts": "contexts",
        "continuation": "{{ rest }}",
        "answer": "gold",
        "metrics": ["acc"],
    },
    "last_words": {
        "kind": "continuation",
        "prompt": "{{ context }}",
        "continuation": "{{ last }}",
        "metrics": ["acc", "perplexity"],
    },
    "asked": {
        "kind": "generation",
        "prompt": "{{ question }}",
        "answer": "answers",
        "metrics": ["exact_match", "f1", "rougeL", "bleu", "chrf"],
        "generation": {"max_new_tokens": 24, "stop": ["\n"]},
    },
    "sums": {
        "kind": "generation",
        "prompt": "{{ question }}",
        "answer": "result.split('####')[1]",
        "shot": "{{ result }}",
        "extract": "last_number",
        "metrics": ["number"],
        "generation": {"max_new_tokens": 24},
    },
    "documents": {
        "kind": "perplexity",
        "text": "{{ text }}",
        "metrics": ["bits_per_byte", "perplexity", "byte_perplexity", "word_perplexity"],
    },
    "code": {
        "kind": "code",
        "prompt": "{{ start }}",
        "tests": "check",
        "entry_point": "name",
        "metrics": ["pass@1"],
        "generation": {"max_new_tokens": 12},
    },
}
ROWS = {
    "choices": CHOICES,
    "schemas": SCHEMAS,
    "last_words": LAST_WORDS,
    "asked": ASKED,
    "sums": SUMS,
    "documents": DOCUMENTS,
    "code": CODE,
}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tasks(folder: Path, rows: dict[str, list[Row]] = ROWS) -> Path:
    """All tasks with their data beside them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, own in rows.items():
        write_rows(folder / f"{name}.jsonl", own)
        task = {"name": name, "data": f"{name}.jsonl", **TASKS[name]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder


def config_of(vocabulary: int, *overrides: str) -> Config:
    """Weights large enough for distributions to be uneven."""
    sizes = (
        f"model.vocab_size={vocabulary}",
        f"model.max_sequence_length={CONTEXT}",
        "model.init_method_std=0.2",
    )
    return tiny_config("gpt2-tiny", *sizes, *overrides)


def save_random_model(directory: Path, vocabulary: int, *overrides: str) -> None:
    """A checkpoint of step 7; to be called in a world."""
    from megalm.checkpoint import CheckpointWriter

    config = config_of(vocabulary, *overrides, SEED, "checkpoint.async_save=false")
    engine = tiny_engine(config)
    CheckpointWriter(directory, config, engine).save(7, {"step": 7, "counters": engine.counters})


def make_run(directory: Path) -> Path:
    """A run of a random model with a tokenizer of a few hundred tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    text = directory / "text.txt"
    text.write_text("the end of the text, and of the hand. question how many hands\n" * 10, encoding="utf-8")
    train_bpe([text], 300, directory / "tokenizer")
    vocabulary = load_tokenizer(directory / "tokenizer").vocab_size
    run_distributed(save_random_model, 1, directory, vocabulary)
    return directory


def evaluate(run: str, output: str, **changes: Any) -> dict[str, Any]:
    """What `megalm eval` of all tasks in `data` finds; to be called in a world."""
    from megalm.evaluate.request import EvalRequest
    from megalm.evaluate.run import main

    values = {"dtype": "fp64", "batch_size": 4} | changes
    if "data" in values:
        values = {"task_folder": Path(values["data"])} | values
    return main(EvalRequest(checkpoint=run, output=Path(output), **values), show=False)
