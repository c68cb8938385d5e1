"""What compression costs a small model trained on real text, and how much of what dropped layers took a distillation gives back.

A decoder is pretrained on the texts in `--data`, then compressed in every way: bytes of the weights, tokens a second (greedy, one
sequence), perplexity on held-out text. Bits are measured with fp32 and with bf16 beside them, since some kernels exist for one of them. Then the
model without some layers is trained for the same steps with the whole one as its teacher and without. All files lie in `--work`; what
is there already is used again, so that an interrupted run goes on.

    python benchmarks/compression.py --data DIR --work WORK                    # .jsonl, .jsonl.gz, .txt files; CPU, about half an hour
    python benchmarks/compression.py --data DIR --work WORK --steps 20 --recovery-steps 10       # whether it runs at all
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LENGTH, BATCH, VOCABULARY = 128, 16, 2048
MODEL = {
    "num_layers": 6,
    "hidden_size": 256,
    "ffn_hidden_size": 768,
    "num_attention_heads": 8,
    "max_sequence_length": LENGTH,
    "position_embedding": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "tie_embeddings": True,
}
QUANTIZED = ["int8", "int8:64", "int8_dynamic", "int4:32", "int4:64"]
SPARSE = ["magnitude:0.3", "wanda:0.3", "magnitude:0.5", "wanda:0.5", "magnitude:2:4", "wanda:2:4"]
DROPPED = ["drop:1", "drop:2", "drop:2:block_influence"]
RECOVERED = "drop:2"
MEASURED = ["--held-out-samples", "256", "--calibration-samples", "128", "--json"]


def megalm(*arguments: str | Path, threads: int) -> str:
    """Run one command and return what it prints; where it fails, show that."""
    command = [sys.executable, "-m", "megalm", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def prepare(work: Path, data: Path, threads: int) -> None:
    """Tokenizer and token files of what lies in `data`."""
    if (work / "text_valid.idx").exists():
        return
    suffixes = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")
    texts = sorted(path for path in data.iterdir() if path.name.endswith(suffixes))
    if not texts:
        sys.exit(f"{data}: no {', '.join(suffixes)} files")
    tokenizer = work / "tokenizer"
    if not tokenizer.exists():
        megalm(
            "tokenizer",
            "train",
            *texts,
            "--vocab-size",
            str(VOCABULARY),
            "--output",
            tokenizer,
            threads=threads,
        )
    target = ["--output-prefix", work / "text", "--splits", "90,9,1", "--overwrite"]
    megalm("dataset", "build", *texts, "--tokenizer", tokenizer, *target, threads=threads)


def pretrain(work: Path, steps: int, threads: int) -> None:
    """The model that is compressed."""
    if (work / "source.done").exists():
        return
    config = {
        "run": {"dir": str(work / "source")},
        "model": MODEL,
        "tokenizer": {"path": str(work / "tokenizer")},
        "data": {
            "train": [{"path": str(work / "text_train")}],
            "valid": [{"path": str(work / "text_valid")}],
        },
        "batch": {"seq_length": LENGTH, "micro_batch_size": BATCH, "global_batch_size": BATCH},
        "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": min(50, steps // 4)},
        "train": {"steps": steps},
        "checkpoint": {"interval": 200, "keep_last": 1},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }
    file = work / "source.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    megalm("train", file, threads=threads)
    (work / "source.done").touch()


def compare(work: Path, name: str, dtype: str, methods: list[str], threads: int) -> list[dict[str, Any]]:
    """Rows of `megalm compress compare`, kept in a file."""
    file = work / f"{name}.json"
    if not file.exists():
        chosen = [part for method in methods for part in ("--method", method)]
        text = ["--calibration", work / "text_train", "--held-out", work / "text_valid"]
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped here
        plot = ["--plot", work / f"{name}.png"]
        out = megalm(
            "compress",
            "compare",
            work / "source",
            folder,
            *chosen,
            *text,
            *MEASURED,
            *plot,
            "--dtype",
            dtype,
            threads=threads,
        )
        file.write_text(out)
    return json.loads(file.read_text())["rows"]


def recover(work: Path, checkpoint: Path, alpha: float, steps: int, lr: float, threads: int) -> float:
    """Perplexity of the dropped model after training from the recipe beside it; alpha 0: without the teacher."""
    from megalm.checkpoint import find_checkpoint, read_config
    from megalm.compress.measure import measure
    from megalm.compress.text import open_samples
    from megalm.tokenizer import load_tokenizer

    directory = work / f"recovered-alpha{alpha:g}-steps{steps}"
    settings = [
        f"run.dir={directory}",
        f"distill.alpha={alpha}",
        f"train.steps={steps}",
        "train.eval_interval=0",
    ]
    settings += [f"optimizer.lr={lr}", f"optimizer.min_lr={lr / 10}", f"optimizer.warmup_steps={steps // 10}"]
    settings += ["logging.tensorboard=false", "logging.progress=false", "logging.plot=false"]
    megalm("train", checkpoint / "distill.yaml", *settings, threads=threads)
    config = read_config(find_checkpoint(directory))
    held_out = open_samples([work / "text_valid"], config, load_tokenizer(work / "tokenizer"), 256)
    found = measure(directory, "fp32", held_out).perplexity
    assert found is not None
    return found


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """One table."""
    print(f"\n{title}\n\n| model | weights, MB | in memory, MB | tokens/s | perplexity | change |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        sizes = f"{row['stored_bytes'] / 1e6:.2f} | {row['memory_bytes'] / 1e6:.2f}"
        figures = (
            f"{row['tokens_per_second']:.0f} | {row['perplexity']:.3f} | {row['perplexity_change']:+.2%}"
        )
        print(f"| {row['name']} | {sizes} | {figures} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory of text files")
    parser.add_argument("--work", type=Path, required=True, help="where all files are made, and found again")
    parser.add_argument("--steps", type=int, default=1000, help="of pretraining")
    parser.add_argument("--recovery-steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=5e-4, help="of the recovery")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-bf16", action="store_true", help="for processors that compute in it slowly")
    arguments = parser.parse_args()
    work, threads = arguments.work.resolve(), arguments.threads
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported here
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, arguments.data, threads)
    pretrain(work, arguments.steps, threads)
    narrow = [] if arguments.no_bf16 else ["bf16"]
    print_rows("Fewer bits beside fp32", compare(work, "bits", "fp32", [*narrow, *QUANTIZED], threads))
    if narrow:
        print_rows("The same beside bf16", compare(work, "bits-bf16", "bf16", QUANTIZED, threads))
    print_rows("Zeros", compare(work, "zeros", "fp32", SPARSE, threads))
    shallow = compare(work, "layers", "fp32", DROPPED, threads)
    print_rows("Fewer layers", shallow)

    source, dropped = (next(r for r in shallow if r["name"] == name) for name in ("source", RECOVERED))
    lost = dropped["perplexity"] - source["perplexity"]
    print(
        f"\nThe model without {RECOVERED.removeprefix('drop:')} layers after {arguments.recovery_steps} steps\n"
    )
    print("| trained | perplexity | of the loss given back |\n|---|---|---|")
    print(f"| not | {dropped['perplexity']:.3f} | 0% |", flush=True)
    for name, alpha in (
        ("on the labels alone", 0.0),
        ("with the teacher", 0.5),
        ("by the teacher alone", 1.0),
    ):
        settings = (alpha, arguments.recovery_steps, arguments.lr, threads)
        found = recover(work, Path(dropped["checkpoint"]), *settings)
        print(f"| {name} | {found:.3f} | {(dropped['perplexity'] - found) / lost:.0%} |", flush=True)


if __name__ == "__main__":
    main()
