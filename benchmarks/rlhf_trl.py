"""TRL's GRPO on the task and model of benchmarks/rl_tasks.py: samples a second by phase, a JSON line an iteration and one of medians.

    python benchmarks/rl_tasks.py --work DIR
    python benchmarks/rlhf_trl.py --work DIR          # in an environment that has trl beside megalm

One process, one thread, fp32, the plain generation of transformers. The model is that of DIR/digit_sum/sft through `megalm convert`; the
reward is megalm's own. `generate` is from prompts to completions, `score` rewards and advantages of these, `train` the
forward and backward passes and the optimizer's step. The first iterations do not count.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from rl_tasks import NEW_TOKENS, TASKS, megalm
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

PHASES = ("generate", "score", "train")


class TimedTrainer(GRPOTrainer):
    """TRL's trainer, with the seconds of the phases of each iteration."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.iterations: list[dict[str, float]] = []
        self.clock = time.perf_counter

    def _generate(self, prompts: list[Any]) -> Any:
        begin = self.clock()
        generated = super()._generate(prompts)
        self.iterations[-1]["generate"] = self.clock() - begin
        return generated

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        begin = self.clock()
        scored = super()._generate_and_score_completions(inputs)
        self.iterations[-1]["score"] = self.clock() - begin - self.iterations[-1]["generate"]
        return scored


class Clock(TrainerCallback):
    """Times whole iterations; what is neither generation nor scoring is training."""

    def __init__(self, trainer: TimedTrainer) -> None:
        self.trainer, self.begin = trainer, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A new row."""
        self.trainer.iterations.append({})
        self.begin = self.trainer.clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The row is complete."""
        row = self.trainer.iterations[-1]
        row["train"] = self.trainer.clock() - self.begin - row["generate"] - row["score"]


def main() -> None:
    """Train for some iterations and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="what benchmarks/rl_tasks.py made")
    parser.add_argument("--task", choices=TASKS, default="digit_sum")
    parser.add_argument("--prompts", type=int, default=16, help="of an iteration")
    parser.add_argument("--group-size", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3, help="iterations that do not count")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: this process's own time"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.work / arguments.task
    model = folder / "hugging_face"
    if not model.exists():
        megalm("convert", folder / "sft", model, "--to", "hf")
    trainer = make_trainer(arguments, folder, model)
    if arguments.clock == "cpu":
        trainer.clock = time.process_time
    trainer.remove_callback(PrinterCallback)  # stdout is for the figures
    trainer.add_callback(Clock(trainer))
    trainer.train()
    samples = arguments.prompts * arguments.group_size
    for number, row in enumerate(trainer.iterations):
        log = trainer.state.log_history[number]
        print(json.dumps({"iteration": number, **row, "reward": log["reward"], "loss": log["loss"]}))
    counted = trainer.iterations[arguments.warmup :]
    seconds = {phase: statistics.median(row[phase] for row in counted) for phase in PHASES}
    seconds["iteration"] = statistics.median(sum(row.values()) for row in counted)
    rates = {f"{phase}_samples_per_second": samples / value for phase, value in seconds.items()}
    print(
        json.dumps(
            {
                "engine": "trl",
                "clock": arguments.clock,
                "samples": samples,
                "iterations": len(counted),
                **rates,
            }
        )
    )


def make_trainer(arguments: argparse.Namespace, folder: Path, model: Path) -> TimedTrainer:
    """A trainer of one update an iteration, as plain GRPO is."""
    from pydantic import TypeAdapter

    from megalm.config.rewards import RewardConfig
    from megalm.rlhf.rewards import Sample, TotalReward

    reward = TotalReward([TypeAdapter(RewardConfig).validate_python(TASKS[arguments.task].reward)])

    def score(prompts: list[str], completions: list[str], answer: list[str], **_: Any) -> list[float]:
        rows = zip(prompts, completions, answer, strict=True)
        return reward([Sample(p, text, {"answer": right}) for p, text, right in rows]).total

    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    lines = map(json.loads, (folder / "prompts.jsonl").read_text().splitlines())
    rows = [
        {
            "prompt": tokenizer.apply_chat_template(
                [{"role": "user", "content": each["prompt"]}], tokenize=False, add_generation_prompt=True
            ),
            "answer": each["answer"],
        }
        for each in lines
    ]
    config = GRPOConfig(
        str(folder / "trl"),
        per_device_train_batch_size=arguments.prompts * arguments.group_size,
        num_generations=arguments.group_size,
        max_completion_length=NEW_TOKENS,
        max_steps=arguments.iterations + arguments.warmup,
        learning_rate=arguments.lr,
        lr_scheduler_type="constant",
        beta=0.0,
        temperature=1.0,
        loss_type="grpo",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return TimedTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        score,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    main()
