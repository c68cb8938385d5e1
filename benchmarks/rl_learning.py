"""Does reinforcement learning learn? A tiny model that half knows a task, GRPO and PPO on a reward by rule, several seeds.

    python benchmarks/rl_learning.py --work DIR [--task digit_sum] [--algorithms grpo,ppo] [--seeds 3] [--output FILE]

Runs benchmarks/rl_tasks.py first where DIR lacks the tuned model. Each run answers 512 held-out prompts greedily every few steps; the
table says after how many samples the mean reward of those is above 0.9, and the JSON has the whole curves.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rl_tasks import MODEL, NEW_TOKENS, TASKS, make  # noqa: E402

GOAL = 0.9
SAMPLES = 150_000
PROMPTS, GROUP = 32, 8


def main() -> None:
    """Run what is asked for, one run after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, default="digit_sum")
    parser.add_argument("--algorithms", default="grpo,ppo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for all runs")
    arguments = parser.parse_args()
    folder = arguments.work / arguments.task
    if not (folder / "sft" / "checkpoints").exists():
        make(TASKS[arguments.task], folder, 1234, TASKS[arguments.task].steps)
    found = []
    for algorithm in arguments.algorithms.split(","):
        for seed in range(arguments.seeds):
            run = learn(arguments.task, algorithm, seed, folder, arguments.samples, arguments.set)
            found.append(run)
            print(json.dumps({key: value for key, value in run.items() if key != "curve"}), flush=True)
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"command": sys.argv, "goal": GOAL, "runs": found}, indent=1) + "\n"
        )


def learn(
    task: str, algorithm: str, seed: int, folder: Path, samples: int, overrides: list[str]
) -> dict[str, Any]:
    """A run, or what is there of it, and its curve: samples and mean reward on held-out prompts."""
    directory = folder / f"{algorithm}_{seed}"
    path = folder / f"{algorithm}.yaml"
    path.write_text(json.dumps(configuration(task, algorithm, folder, samples)))  # JSON is YAML
    begin = time.perf_counter()
    command = [sys.executable, "-m", "megalm", "train", str(path)]
    done = subprocess.run(
        [*command, f"run.dir={directory}", f"run.seed={seed}", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    each = PROMPTS * GROUP
    curve = [(line["step"] * each, line["valid_reward"]) for line in lines if "valid_reward" in line]
    return {
        "task": task,
        "algorithm": algorithm,
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "first": curve[0][1],
        "last": curve[-1][1],
        "samples": curve[-1][0],
        "samples_to_goal": next((count for count, reward in curve if reward > GOAL), None),
        "curve": curve,
    }


def configuration(task: str, algorithm: str, folder: Path, samples: int) -> dict[str, Any]:
    """Sections of a run."""
    grouped = algorithm != "ppo"
    steps = samples // (PROMPTS * GROUP)
    return {
        "task": algorithm,
        "run": {"load": str(folder / "sft")},
        "model": MODEL,
        "batch": {"seq_length": 16, "micro_batch_size": 128, "global_batch_size": 128},
        "optimizer": {
            "lr": 1e-4,
            "min_lr": 5e-6,
            "warmup_steps": 5,
            "weight_decay": 0.0,
            "adam_beta2": 0.99,
        },
        "train": {"steps": steps, "eval_interval": 25, "eval_at_start": True},
        "logging": {"interval": 1, "tensorboard": False, "progress": False, "plot": False},
        "rlhf": {
            "prompts": [{"path": str(folder / "prompts.jsonl")}],
            "eval_prompts": [{"path": str(folder / "held_out.jsonl")}],
            "rewards": [TASKS[task].reward],
            "kl": {"coefficient": 0.0},  # nothing to please but the rule
            # without the bonus some sums are never answered any more, and what is never tried is never rewarded
            "policy": {"entropy_coefficient": 0.02} | ({"clip_high": 0.28} if grouped else {"epochs": 2}),
            "critic": {"lr": 3e-4},
            "rollout": {
                "prompts_per_step": PROMPTS if grouped else PROMPTS * GROUP,
                "responses_per_prompt": GROUP if grouped else 1,
                "max_new_tokens": NEW_TOKENS,
                "max_rows": 256,
            },
        },
    }


if __name__ == "__main__":
    main()
