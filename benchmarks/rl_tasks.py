"""Tasks to learn from rewards, and models that half know them: prompts, token files and a small GPT tuned on examples.

    python benchmarks/rl_tasks.py --work DIR                        # a minute on one core
    python benchmarks/rl_tasks.py --work DIR --measure RUN          # the same measurements of another run's newest checkpoint

`digit_sum`: the sum of a number's digits; the model sees too few examples to be right more than half the time. `format`: an answer
in brackets; the examples have it so for small numbers, and seldom for others. Prompts to learn from and held-out ones have no number in common. In
DIR/TASK lie `prompts.jsonl` and `held_out.jsonl` (`prompt`, `answer`), `tokenizer` and the run `sft`; the last line printed is JSON
with the accuracy on held-out prompts, of likeliest answers and of sampled ones.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + eos_token }}{%- endgeneration %}
{%- else %}{{- message.content + '=' }}
{%- endif %}
{%- endfor %}"""
DIGITS = 4
HELD_OUT = 500
MODEL = {
    "num_layers": 4,
    "hidden_size": 160,
    "ffn_hidden_size": 432,
    "num_attention_heads": 4,
    "max_sequence_length": 128,
    "position_embedding": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "tie_embeddings": True,
}
NEW_TOKENS = 8
WANTED, OTHERS = "[{}]", ("{}", "{}.", "({})")


@dataclass(frozen=True)
class Task:
    """reward: an entry of `rlhf.rewards`. examples, steps: of the tuning."""

    reward: dict[str, Any]
    examples: int
    steps: int

    def answer(self, number: int, chance: random.Random) -> str:
        """An example's answer: the sum, in the wanted form less than half the time where the form is the task."""
        total = sum(map(int, str(number)))
        if self.reward["name"] != "format":
            return str(total)
        is_small = number < 5 * 10 ** (DIGITS - 1)
        form = WANTED if chance.random() < (0.9 if is_small else 0.1) else chance.choice(OTHERS)
        return form.format(total)


TASKS = {
    "digit_sum": Task({"name": "exact_answer", "extract": "whole"}, examples=250, steps=70),
    "format": Task({"name": "format", "pattern": r"\[\d{1,2}\]"}, examples=1000, steps=60),
}


def main() -> None:
    """Make what is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--task", choices=TASKS, default="digit_sum")
    parser.add_argument(
        "--measure", type=Path, help="a run directory or checkpoint; default: the tuned model"
    )
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--steps", type=int, help="of tuning; default: the task's own")
    arguments = parser.parse_args()
    task, folder = TASKS[arguments.task], arguments.work / arguments.task
    start = time.perf_counter()
    steps = arguments.steps or task.steps
    if not (folder / "sft" / "checkpoints" / f"step_{steps:08d}").exists():
        make(task, folder, arguments.seed, steps)
    seconds = time.perf_counter() - start
    checkpoint = arguments.measure or folder / "sft"
    found = measure(task, checkpoint, folder / "held_out.jsonl", arguments.seed)
    print(json.dumps({"task": arguments.task, "checkpoint": str(checkpoint), "seconds": seconds} | found))


def make(task: Task, folder: Path, seed: int, steps: int) -> None:
    """Prompts, tokenizer, token files and the tuned model in `folder`; goes on where it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    numbers = chance.sample(range(10 ** (DIGITS - 1), 10**DIGITS), 9 * 10 ** (DIGITS - 1))
    held_out, learned = numbers[:HELD_OUT], numbers[HELD_OUT:]
    write_lines(folder / "held_out.jsonl", [record(number) for number in held_out])
    write_lines(folder / "prompts.jsonl", [record(number) for number in learned])
    examples = [record(number, task, chance) for number in learned[: task.examples]]
    write_lines(folder / "examples.jsonl", examples)
    texts = [{"text": f"{each['prompt']}={each['answer']}"} for each in examples]
    write_lines(folder / "texts.jsonl", texts)
    (folder / "template.jinja").write_text(TEMPLATE)
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        megalm("tokenizer", "train", folder / "texts.jsonl", "--kind", "character", "--output", tokenizer)
    chat = ["--chat", "prompt", "--prompt-key", "prompt", "--answer-key", "answer"]
    chat += ["--chat-template", folder / "template.jinja", "--splits", "1"]
    megalm(
        "dataset", "build", folder / "examples.jsonl", "--tokenizer", tokenizer, "-o", folder / "sft", *chat
    )
    path = folder / "sft.yaml"
    path.write_text(json.dumps(configuration(folder, seed, steps)))  # JSON is YAML
    megalm("train", path)


def configuration(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Sections of the tuning, from random weights."""
    return {
        "task": "sft",
        "run": {"dir": str(folder / "sft"), "seed": seed},
        "model": MODEL,
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {"train": [{"path": str(folder / "sft_train")}]},
        "batch": {"seq_length": 128, "micro_batch_size": 16, "global_batch_size": 16},
        "optimizer": {"lr": 2e-3, "min_lr": 2e-4, "warmup_steps": 20, "weight_decay": 0.0},
        "train": {"steps": steps},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }


def record(number: int, task: Task | None = None, chance: random.Random | None = None) -> dict[str, str]:
    """A prompt with its right answer, or with what an example of `task` answers."""
    right = str(sum(map(int, str(number))))
    answer = right if task is None or chance is None else task.answer(number, chance)
    return {"prompt": str(number), "answer": answer}


def write_lines(path: Path, records: Sequence[dict[str, str]]) -> None:
    """As JSON, one a line."""
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


def megalm(*arguments: str | Path) -> None:
    """Run one command on one thread; its output is shown where it fails."""
    command = [sys.executable, "-m", "megalm", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def measure(task: Task, checkpoint: Path, prompts: Path, seed: int) -> dict[str, float]:
    """`greedy` and `sampled` mean reward of a model's answers to prompts, and its number of `parameters`."""
    from pydantic import TypeAdapter

    from megalm.config.rewards import RewardConfig
    from megalm.generate.chat import trained_template
    from megalm.generate.decode import Generator, context_length
    from megalm.generate.load import open_model
    from megalm.generate.request import GenerationOptions, ModelRequest
    from megalm.rlhf.rewards import Sample, TotalReward

    engine, config, tokenizer = open_model(ModelRequest(checkpoint=str(checkpoint)), "gpt")
    generator = Generator(engine.chunks, engine.layout, context_length(config), tokenizer, max_rows=256)
    template = trained_template(config, tokenizer, None)
    records = list(map(json.loads, prompts.read_text().splitlines()))
    asked = [[{"role": "user", "content": each["prompt"]}] for each in records]
    ids = [template.encode(messages, add_generation_prompt=True).ids for messages in asked]
    reward = TotalReward([TypeAdapter(RewardConfig).validate_python(task.reward)])
    found = {"parameters": config.model.num_parameters()}
    for name, greedy in (("greedy", True), ("sampled", False)):
        options = GenerationOptions(max_new_tokens=NEW_TOKENS, greedy=greedy, seed=seed)
        answers = generator.generate(ids, options)
        samples = [
            Sample(each["prompt"], answer.text, each, answer.finish_reason)
            for each, answer in zip(records, answers, strict=True)
        ]
        found[name] = reward(samples).means()["reward"]
    return found


if __name__ == "__main__":
    main()
