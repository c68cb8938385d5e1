"""GRPO beside TRL's on equal model, prompts, rewards, group sizes and one thread: samples a second by phase, in turns in one run.

    python benchmarks/rl_tasks.py --work DIR
    python benchmarks/rlhf.py --work DIR --trl-python TRLENV/bin/python [--rounds 3] [--output FILE]

TRL runs in an interpreter of its own that has trl beside megalm (benchmarks/rlhf_trl.py). Each round starts both anew; the ratio is taken
round by round from the medians of their iterations, of which the first ones do not count.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rl_tasks import MODEL, NEW_TOKENS, TASKS  # noqa: E402

WARMUP = 3
PHASES = ("generate", "score", "train")


def main() -> None:
    """Alternate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="what benchmarks/rl_tasks.py made")
    parser.add_argument("--task", choices=TASKS, default="digit_sum")
    parser.add_argument("--trl-python", required=True, help="interpreter that has trl")
    parser.add_argument("--prompts", type=int, default=16, help="of an iteration")
    parser.add_argument("--group-size", type=int, default=8, help="answers to a prompt")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rounds = [{"trl": trl(options), "megalm": ours(options)} for _ in range(options.rounds)]
    for phase in (*PHASES, "iteration"):
        medians = {name: statistics.median(one[name][phase] for one in rounds) for name in ("megalm", "trl")}
        ratio = statistics.median(one["megalm"][phase] / one["trl"][phase] for one in rounds)
        print(f"{phase}: megalm {medians['megalm']:.1f}, trl {medians['trl']:.1f} samples/s; {ratio:.2f}x")
    if options.output:
        options.output.write_text(json.dumps({"command": sys.argv, "rounds": rounds}, indent=1) + "\n")


def run(command: list[Any]) -> str:
    """Standard output of a command on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def trl(options: argparse.Namespace) -> dict[str, float]:
    """Samples a second of each phase and of whole iterations."""
    script = ROOT / "benchmarks" / "rlhf_trl.py"
    sizes = ["--prompts", options.prompts, "--group-size", options.group_size]
    more = ["--iterations", options.iterations, "--warmup", WARMUP, "--task", options.task]
    lines = run([options.trl_python, script, "--work", options.work, *sizes, *more]).splitlines()
    found = json.loads(lines[-1])
    return {phase: found[f"{phase}_samples_per_second"] for phase in (*PHASES, "iteration")}


def ours(options: argparse.Namespace) -> dict[str, float]:
    """The same of megalm."""
    folder, samples = options.work / options.task, options.prompts * options.group_size
    directory = Path(tempfile.mkdtemp())
    path = directory / "config.yaml"
    path.write_text(json.dumps(configuration(options, folder, directory / "run")))  # JSON is YAML
    run([sys.executable, "-m", "megalm", "train", path])
    lines = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(directory)
    steps = [line for line in lines if "generate_seconds" in line][WARMUP:]
    seconds = {phase: statistics.median(line[f"{phase}_seconds"] for line in steps) for phase in PHASES}
    seconds["iteration"] = statistics.median(
        sum(line[f"{phase}_seconds"] for phase in PHASES) for line in steps
    )
    return {phase: samples / value for phase, value in seconds.items()}


def configuration(options: argparse.Namespace, folder: Path, directory: Path) -> dict[str, Any]:
    """One update an iteration, without a KL, as TRL's."""
    samples = options.prompts * options.group_size
    return {
        "task": "grpo",
        "run": {"load": str(folder / "sft"), "dir": str(directory)},
        "model": MODEL,
        "batch": {"seq_length": 32, "micro_batch_size": samples, "global_batch_size": samples},
        "optimizer": {"lr": 1e-4, "min_lr": 1e-4, "schedule": "constant", "weight_decay": 0.0},
        "train": {"steps": options.iterations + WARMUP},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
        "rlhf": {
            "prompts": [{"path": str(folder / "prompts.jsonl")}],
            "rewards": [TASKS[options.task].reward],
            "kl": {"coefficient": 0.0},
            "policy": {"aggregation": "sequence_mean"},
            "rollout": {
                "prompts_per_step": options.prompts,
                "responses_per_prompt": options.group_size,
                "max_new_tokens": NEW_TOKENS,
                "max_rows": samples,
            },
        },
    }


if __name__ == "__main__":
    main()
