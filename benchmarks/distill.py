"""Does a teacher help? A small model trained with one and without, the same steps, samples and seeds; validation losses of both.

The teacher is pretrained first, on the same text. Learning rates are alike, for the student alone as for the distilled one.

    python benchmarks/distill.py --data DIR                     # all .jsonl, .jsonl.gz and .txt files in DIR; CPU minutes
    python benchmarks/distill.py --data DIR --steps 50 --teacher-steps 100 --seeds 1     # whether it runs at all
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LENGTH, BATCH, VOCABULARY = 128, 16, 2048
TEACHER = {"num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 704, "num_attention_heads": 8}
STUDENT = {"num_layers": 2, "hidden_size": 96, "ffn_hidden_size": 256, "num_attention_heads": 3}
SHARED = {
    "max_sequence_length": LENGTH,
    "position_embedding": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "tie_embeddings": True,
}


def megalm(*arguments: str | Path) -> None:
    """Run one command; its output is shown where it fails."""
    command = [sys.executable, "-m", "megalm", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def prepare(folder: Path, data: Path) -> None:
    """Tokenizer and token files of what lies in `data`."""
    texts = sorted(
        path for path in data.iterdir() if path.name.endswith((".jsonl", ".jsonl.gz", ".txt", ".txt.gz"))
    )
    if not texts:
        sys.exit(f"{data}: no .jsonl, .jsonl.gz or .txt files")
    tokenizer = folder / "tokenizer"
    megalm("tokenizer", "train", *texts, "--vocab-size", str(VOCABULARY), "--output", tokenizer)
    target = ["--output-prefix", folder / "text", "--splits", "90,9,1"]
    megalm("dataset", "build", *texts, "--tokenizer", tokenizer, *target)


def train(
    folder: Path, name: str, model: dict[str, object], seed: int, steps: int, lr: float, *more: str
) -> float:
    """Train in `folder`/`name`; return the validation loss after the last step."""
    config = {
        "run": {"dir": str(folder / name), "seed": seed},
        "model": SHARED | model,
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {
            "train": [{"path": str(folder / "text_train")}],
            "valid": [{"path": str(folder / "text_valid")}],
        },
        "batch": {"seq_length": LENGTH, "micro_batch_size": BATCH, "global_batch_size": BATCH},
        "optimizer": {"lr": lr, "min_lr": lr / 10, "warmup_steps": min(50, steps // 4)},
        "train": {"steps": steps, "eval_interval": steps, "eval_batches": 32},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    megalm("train", file, *more)
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return next(line["valid_loss"] for line in lines if "valid_loss" in line)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of text files")
    parser.add_argument("--steps", type=int, default=600, help="of the student")
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the student")
    parser.add_argument("--scratch", type=Path, help="where files may be made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        prepare(folder, arguments.data)
        loss = train(folder, "teacher", TEACHER, 1, arguments.teacher_steps, 1e-3)
        print(f"teacher: validation loss {loss:.4f} after {arguments.teacher_steps} steps\n")
        print("| seed | alone | distilled | less by |\n|---|---|---|---|")
        distill = (
            "task=distill",
            f"distill.teacher={folder / 'teacher'}",
            f"distill.alpha={arguments.alpha}",
        )
        distill = (*distill, f"distill.temperature={arguments.temperature}")
        rows = []
        for seed in range(arguments.seeds):
            settings = (STUDENT, seed, arguments.steps, arguments.lr)
            alone = train(folder, f"alone{seed}", *settings)
            distilled = train(folder, f"distilled{seed}", *settings, *distill)
            rows.append((alone, distilled))
            print(f"| {seed} | {alone:.4f} | {distilled:.4f} | {alone - distilled:.4f} |", flush=True)
        means = [statistics.mean(column) for column in zip(*rows, strict=True)]
        print(f"| mean | {means[0]:.4f} | {means[1]:.4f} | {means[0] - means[1]:.4f} |")


if __name__ == "__main__":
    main()
