"""What a small model scores on the bundled tasks, and how many questions a second it is asked beside lm-eval's Hugging Face backend.

A decoder is pretrained on the texts in `--data`, then asked the bundled tasks whose files lie in `--tasks-data`. Then the
same questions are put three ways, in turn, each in a process of its own that has the weights loaded before the clock starts: by
`megalm eval`, by lm-eval over our model, by lm-eval over the same model in Hugging Face's form. All files lie in `--work`; what is there
already is used again.

    python benchmarks/evaluate.py --data TEXTS --tasks-data DIR --work WORK                 # CPU, about half an hour
    python benchmarks/evaluate.py --data TEXTS --tasks-data DIR --work WORK --steps 20 --limit 20
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.compression import MODEL, ROOT, megalm, prepare

TASKS = (
    "arc_easy,arc_challenge,piqa,openbook_qa,copa,siqa,commonsense_qa,boolq,winogrande,winograd,lambada,mmlu,"
    "truthfulqa_mc1,truthfulqa_mc2,triviaqa,gsm8k,xquad_en,dialogsum,cnn_dailymail,humaneval"
)
MEAN = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
TIMED: dict[str, dict[str, Any]] = {
    "arc_easy": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": MEAN,
    },
    "siqa": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": MEAN,
    },
    "lambada": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
        "metric_list": MEAN,
    },
    "svamp": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{context}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:", "\n"], "max_gen_toks": 64, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
"""The same prompts as tasks of lm-eval: options of several tokens, options of one token, last words, texts."""
BATCH, LENGTH = 32, 512

ASK = """
import json, os, sys, time
model, name, folder, limit, kind, scratch, context = sys.argv[1:8]
limit = int(limit)
import torch
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if kind == "megalm":
    from pathlib import Path
    from megalm.evaluate.request import EvalRequest
    from megalm.evaluate.run import main
    from megalm.evaluate.task import BUNDLE
    found = main(EvalRequest(checkpoint=model, tasks=[name], data=Path(folder), output=Path(scratch), limit=limit, few_shot=0), show=False)
    print(json.dumps([found["tasks"][name]["seconds"], found["tasks"][name]["questions"]]))
    raise SystemExit
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
if kind == "lm-eval":
    from pathlib import Path
    from megalm.evaluate.harness import HarnessModel
    from megalm.evaluate.request import EvalRequest
    from megalm.evaluate.run import open_asked
    asked, _ = open_asked(EvalRequest(checkpoint=model, tasks=[name], output=Path(scratch)))
    lm = HarnessModel(asked)
else:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    lm = HFLM(pretrained=loaded, tokenizer=AutoTokenizer.from_pretrained(model), batch_size=BATCH, max_length=int(context))
manager = TaskManager(include_path=folder, include_defaults=False)
manager.load([name])  # reads the file
start = time.perf_counter()
found = simple_evaluate(model=lm, tasks=[name], limit=limit, task_manager=manager, bootstrap_iters=0, log_samples=False)
print(json.dumps([time.perf_counter() - start, found["n-samples"][name]["effective"]]))
""".replace("BATCH", str(BATCH))


def pretrain(work: Path, steps: int, threads: int) -> None:
    """The model that is asked, with room for solved questions."""
    if (work / "source.done").exists():
        return
    config = {
        "run": {"dir": str(work / "source")},
        "model": MODEL | {"max_sequence_length": LENGTH},
        "tokenizer": {"path": str(work / "tokenizer")},
        "data": {"train": [{"path": str(work / "text_train")}]},
        "batch": {"seq_length": LENGTH, "micro_batch_size": 4, "global_batch_size": 4},
        "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": min(50, steps // 4)},
        "train": {"steps": steps},
        "checkpoint": {"interval": 200, "keep_last": 1},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }
    file = work / "source.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    megalm("train", file, threads=threads)
    (work / "source.done").touch()


def scored(arguments: argparse.Namespace) -> dict[str, Any]:
    """`megalm eval` of the bundled tasks, kept in a file."""
    folder = arguments.work / f"scores_{arguments.limit}"
    tasks = ["--tasks", TASKS, "--data", arguments.tasks_data, "--limit", str(arguments.limit)]
    few = ["--few-shot", str(arguments.few_shot)]
    out = megalm(
        "eval",
        arguments.work / "source",
        *tasks,
        *few,
        "--output",
        folder,
        "--json",
        threads=arguments.threads,
    )
    return json.loads(out)


def write_their_tasks(folder: Path, data: Path) -> None:
    """The timed tasks as lm-eval's."""
    from megalm.config.load import read_yaml
    from megalm.evaluate.task import BUNDLE, PATHS

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    places = read_yaml(BUNDLE / PATHS)
    for name, task in TIMED.items():
        path = data / places[name]
        file = next(found for found in (path, path.with_name(path.name + ".gz")) if found.is_file())
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file.resolve())}}}
        told = {"task": name, "test_split": "test", **source, **task}
        (folder / f"{name}.yaml").write_text(json.dumps(told))  # JSON is YAML


def timed(arguments: argparse.Namespace, name: str, kind: str, count: int) -> tuple[float, int]:
    """Seconds and questions of one way to ask."""
    scratch = arguments.work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    model = arguments.work / ("hf" if kind == "hugging face" else "source")
    folder = arguments.tasks_data if kind == "megalm" else arguments.work / "theirs"
    command = [sys.executable, "-c", ASK, model, name, folder, str(count), kind, scratch, str(LENGTH)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(arguments.work / "cache"),
        "HF_DATASETS_CACHE": str(arguments.work / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path),
    }
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        sys.exit(f"{name}, {kind}:\n{done.stderr[-3000:]}")
    seconds, questions = json.loads(done.stdout.splitlines()[-1])
    return seconds, questions


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="texts to pretrain on")
    parser.add_argument("--tasks-data", type=Path, required=True, help="as `megalm eval --data`")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit", type=int, default=200, help="questions of a task")
    parser.add_argument("--few-shot", type=int, default=0)
    parser.add_argument("--timed", type=int, default=500, help="questions of a timed task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work = work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, arguments.data, arguments.threads)
    pretrain(work, arguments.steps, arguments.threads)
    if not (work / "hf").exists():
        megalm("convert", work / "source", work / "hf", threads=arguments.threads)

    from megalm.evaluate.results import render

    print(render(scored(arguments)), flush=True)
    write_their_tasks(work / "theirs", arguments.tasks_data)
    print(
        "| questions/s | megalm eval | lm-eval over our model | lm-eval's Hugging Face backend | megalm eval / Hugging Face |"
    )
    print("|---" * 5 + "|")
    for name in TIMED:
        rates: dict[str, list[float]] = {"megalm": [], "lm-eval": [], "hugging face": []}
        for _ in range(arguments.rounds):
            for kind, own in rates.items():
                seconds, questions = timed(arguments, name, kind, arguments.timed)
                own.append(questions / seconds)
        ours, under, theirs = (statistics.median(own) for own in rates.values())
        print(f"| {name} | {ours:.1f} | {under:.1f} | {theirs:.1f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
