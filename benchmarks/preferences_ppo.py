"""PPO against the reward model of benchmarks/preferences.py: does its reward rise on held-out prompts while the KL stays bounded?

    python benchmarks/preferences.py --data DIR --work WORK           # the models; what WORK has already is used again
    python benchmarks/preferences_ppo.py --data DIR --work WORK [--seeds 1 2] [--target 8] [--output FILE]

Actor and reference are the instruction-tuned model, reward and critic the reward model of seed 1. Prompts are those of the preference
pairs, held out by the same hash as there, so that neither reward model nor PPO has seen what is measured on: the mean reward of
the likeliest answers to all of them every 20 steps, the KL of sampled answers in each step.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.preferences import MODEL, SETS, SPLITS
from megalm.config import parse_config
from megalm.dataset.preference_records import preference_of
from megalm.rlhf import run
from megalm.splits import split_limits, split_of
from megalm.tokenizer.conversations import BadRecord

SAMPLES, LENGTH, NEW_TOKENS = 64, 256, 48


def main() -> None:
    """Learn with each seed and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--target",
        type=float,
        default=8.0,
        help="KL of an answer, nats, that the coefficient is steered towards",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="Write all figures there as JSON.")
    options = parser.parse_args()
    write_prompts(next(options.data.rglob(SETS["ch07"])), options.work)
    found = []
    for seed in options.seeds:
        found.append(learn(options.work, options.steps, options.target, seed))
        print(
            json.dumps({key: value for key, value in found[-1].items() if not isinstance(value, list)}),
            flush=True,
        )
    if options.output:
        options.output.write_text(json.dumps({"command": sys.argv, "runs": found}, indent=1) + "\n")


def write_prompts(pairs: Path, work: Path) -> None:
    """The pairs' prompts, split as the pairs are."""
    prompts: list[list[str]] = [[], []]
    for record in json.loads(pairs.read_text("utf-8")):
        try:
            preference = preference_of(record)
        except BadRecord:
            continue
        split = split_of(preference.first_text.encode(), split_limits(SPLITS))
        prompts[split].append(json.dumps({"messages": preference.prompt}) + "\n")
    for name, lines in zip(("train", "valid"), prompts, strict=True):
        (work / f"prompts_{name}.jsonl").write_text("".join(lines), "utf-8")


def learn(work: Path, steps: int, target: float, seed: int) -> dict[str, Any]:
    """One run, or what is there of it: held-out reward before and after, KL in the second half, and the curves."""
    config = configuration(work, steps, target, seed)
    run.main(config)
    lines = [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()]
    held_out = [(line["step"], line["valid_reward"]) for line in lines if "valid_reward" in line]
    sampled = [(line["step"], line["reward"], line["kl"]) for line in lines if "kl" in line]
    late = [kl for step, _, kl in sampled if step > steps // 2]
    return {
        "seed": seed,
        "target_kl": target,
        "before": held_out[0][1],
        "after": held_out[-1][1],
        "kl_second_half": sum(late) / len(late),
        "kl_largest": max(kl for _, _, kl in sampled),
        "held_out": held_out,
        "sampled": sampled,
    }


def configuration(work: Path, steps: int, target: float, seed: int) -> Any:
    """Sections of a run."""
    reward = max(work.glob("reward_ch07_1_*"), key=lambda path: path.stat().st_mtime)
    tuned = max(work.glob("tuned_*"), key=lambda path: path.stat().st_mtime)
    return parse_config(
        {
            "task": "ppo",
            "run": {"dir": str(work / f"ppo_{steps}_{target:g}_{seed}"), "seed": seed, "load": str(tuned)},
            "model": MODEL,
            "batch": {
                "seq_length": LENGTH,
                "micro_batch_size": SAMPLES // 2,
                "global_batch_size": SAMPLES // 2,
            },
            "optimizer": {
                "lr": 1e-4,
                "min_lr": 1e-4,
                "schedule": "constant",
                "warmup_steps": 5,
                "weight_decay": 0.0,
            },
            "precision": {"dtype": "fp32"},
            "train": {"steps": steps, "eval_interval": 20, "eval_at_start": True},
            "logging": {"interval": 1, "tensorboard": False, "progress": False, "plot": False},
            "rlhf": {
                "prompts": [{"path": str(work / "prompts_train.jsonl")}],
                "eval_prompts": [{"path": str(work / "prompts_valid.jsonl")}],
                "rewards": [{"name": "model", "checkpoint": str(reward), "mean": 0.0, "std": 1.0}],
                "kl": {"coefficient": 0.05, "target": target, "horizon": 1000},
                "critic": {"lr": 3e-4},
                "policy": {"epochs": 2},
                "rollout": {"prompts_per_step": SAMPLES, "max_new_tokens": NEW_TOKENS, "max_rows": SAMPLES},
            },
        }
    )


if __name__ == "__main__":
    main()
