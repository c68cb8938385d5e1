"""Runs of reinforcement learning so small that a test can afford several: a random model, prompts, rewards by rule."""

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm.config import Config, parse_config
from megalm.launch import free_port
from megalm.testing import run_distributed
from megalm.tokenizer import train_bpe
from megalm.train.callbacks.metrics import read_metrics

SEQUENCE = 48
WORDS = "the end of the text and of the hand that wrote it all down in time".split()
# Not of the answer alone: the clock, and what is only drawn on
UNCERTAIN = ("generate_seconds", "score_seconds", "train_seconds", "samples_per_second")
REWARDS = [
    {"name": "format", "pattern": r"(?s).*[aeiou].*", "weight": 1.0},
    {"name": "length", "target": 4, "weight": 0.5},
]


def make_base(folder: Path) -> Path:
    """Tokenizer, prompts, and the checkpoint of a random model in `folder`."""
    (folder / "text.txt").write_text(" ".join(WORDS) + "\n", encoding="utf-8")
    train_bpe([folder / "text.txt"], 280, folder / "tokenizer")
    for name, words in (("prompts", WORDS), ("held_out", ["hand wrote", "text of", "down all", "time it"])):
        lines = [
            {"prompt": f"{word} {other}"} for word in words for other in dict.fromkeys(words) if word != other
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_distributed(_save, 1, folder, "base")
    return folder


def make_reward_model(folder: Path) -> Path:
    """The checkpoint of a random reward model in the folder of `make_base`."""
    run_distributed(_save, 1, folder, "judge", "task=reward", "run.seed=6", "model.sequence_head.outputs=1")
    return folder / "judge"


def _save(folder: Path, name: str, *overrides: str) -> None:
    from megalm.checkpoint import CheckpointWriter
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout

    config = base_config(folder, *overrides)
    engine = build_engine(config, create_layout(config.parallel, config.run.seed))
    CheckpointWriter(folder / name, config, engine).save(1, {"step": 1, "counters": engine.counters})


def base_config(folder: Path, *overrides: str) -> Config:
    """Of the random model."""
    return parse_config(_sections(folder), overrides)


def _sections(folder: Path) -> dict[str, Any]:
    return {
        "run": {"dir": str(folder / "base"), "seed": 5},
        "tokenizer": {"path": str(folder / "tokenizer")},
        "model": {
            "preset": "llama-tiny",
            "vocab_size": 280,
            "max_sequence_length": SEQUENCE,
            "init_method_std": 0.2,
        },
        "batch": {"seq_length": SEQUENCE, "micro_batch_size": 2, "global_batch_size": 8},
        "checkpoint": {"async_save": False},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }


def rl_config(directory: Path, folder: Path, task: str, *overrides: str) -> Config:
    """Three steps of `task` in `directory` from the model that `make_base` left in `folder`, two updates a step."""
    sections = _sections(folder) | {
        "task": task,
        "run": {"dir": str(directory), "seed": 7, "load": str(folder / "base")},
        "optimizer": {"lr": 1e-3, "min_lr": 1e-3, "schedule": "constant", "adam_eps": 1e-4},
        "train": {"steps": 3},
        "rlhf": {
            "prompts": [{"path": str(folder / "prompts.jsonl")}],
            "eval_prompts": [{"path": str(folder / "held_out.jsonl")}],
            "prompt_form": "text",
            "rewards": REWARDS,
            "rollout": {"prompts_per_step": 4, "responses_per_prompt": 4, "max_new_tokens": 8},
        },
    }
    return parse_config(sections, overrides)


def learn(config: Config) -> dict[str, Any]:
    """What `megalm train` does on each rank, less the command line."""
    from megalm.rlhf import run

    return run.main(config)


def learn_in_world(world_size: int, config: Config) -> dict[str, Any]:
    """Run `learn` on all ranks of a world; they return the same."""
    results = run_distributed(learn, world_size, config)
    assert all(result == results[0] for result in results)
    return results[0]


def step_lines(directory: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step, without what depends on the clock."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [
        {name: value for name, value in line.items() if name not in UNCERTAIN}
        for line in lines
        if "loss" in line
    ]


def learn_apart(world_size: int, config: Config) -> dict[str, Any]:
    """Run `learn` on processes that part into the worlds of `config`; return what the training does."""
    results = run_distributed(
        _learn_in_own_world, world_size, config, free_port(), free_port(), timeout=100.0
    )
    trained = [result for result in results if result]
    assert 0 < len(trained) < world_size and all(result == trained[0] for result in trained)
    return trained[0]


def _learn_in_own_world(config: Config, port: int, port_after: int) -> dict[str, Any]:
    """As in processes just launched: the worker's own world gives way, and is made anew for the call that comes next."""
    _leave_world()
    os.environ["MASTER_PORT"] = str(port)
    result = learn(config)
    _leave_world()
    os.environ["MASTER_PORT"] = str(port_after)
    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    return result


def _leave_world() -> None:
    from megalm.parallel.groups import destroy_groups

    destroy_groups()
    dist.destroy_process_group()
