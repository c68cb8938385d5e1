#!/usr/bin/env python3
"""Times generation beside Hugging Face's `generate` on the same weights, number format and threads, alternating in one run.

A random GPT-2 of the named size is saved as Hugging Face does it, converted, and continued greedily by both. Equal prompts in
batches of 1, 4, 16 and 64: tokens/s and the time to the first token. Then 16 requests of mixed lengths: all at once in the
decoding engine, one after the other in it, and as one padded batch in Hugging Face, whose short rows wait for the longest.
Medians of several rounds; the ratio is taken round by round.

    python benchmarks/generate.py [--preset gpt2-124m] [--dtype bf16] [--rounds 5] [--output FILE]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from megalm.checkpoint import find_checkpoint, load_weights, read_config
from megalm.config.schema import ParallelConfig
from megalm.convert.hugging_face import from_hugging_face
from megalm.engine.build import build_engine
from megalm.generate.decode import Generator, context_length
from megalm.generate.request import GenerationOptions
from megalm.model.spec import DTYPES
from megalm.parallel.layout import create_layout

SIZES = {
    "gpt2-14m": {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 8192},
    "gpt2-124m": {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
}
CONTEXT = 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=list(SIZES), default="gpt2-14m")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--prompt", type=int, default=32, help="Tokens of a prompt.")
    parser.add_argument("--new", type=int, default=64, help="Tokens that it is continued with.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-mixed", dest="mixed", action="store_false")
    parser.add_argument("--profile", action="store_true", help="Print where a batch of 1 spends its time.")
    parser.add_argument("--output", type=Path, help="Write all figures there as JSON.")
    options = parser.parse_args()

    theirs, ours = models(options.preset, options.dtype)
    bench = Bench(theirs, ours, options.rounds)
    result: dict[str, Any] = {
        "preset": options.preset,
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "transformers": hf.__version__,
        "parameters": sum(p.numel() for p in theirs.parameters()),
    }
    if options.profile:
        profile(bench, options)
        return
    print(f"{options.preset}, {options.dtype}, {result['threads']} threads, {result['device']}")
    result["equal"] = [bench.equal(size, options.prompt, options.new) for size in options.batches]
    for size in options.batches:
        prompts = bench.prompts([options.prompt] * size)
        for new, what in ((options.new, "tokens/s"), (1, "first token, ms")):
            figures = bench.compare(
                {
                    "megalm": lambda p=prompts, n=new: bench.ours(p, [n] * len(p)),
                    "hugging_face": lambda p=prompts, n=new: bench.theirs(p, n),
                }
            )
            show(f"batch {size}, {what}", figures, size * new if new > 1 else None)
            result[f"batch_{size}_{'text' if new > 1 else 'first'}"] = figures
    if options.mixed:
        result["mixed"] = mixed(bench)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def models(preset: str, dtype: str) -> tuple[Any, Generator]:
    """Hugging Face's model and a generator on the same weights."""
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    torch.manual_seed(0)
    sizes = SIZES[preset] | {"n_positions": CONTEXT, "bos_token_id": 0, "eos_token_id": 0}
    theirs = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(f"{folder}/hub")
        from_hugging_face(f"{folder}/hub", f"{folder}/run", compare=False)
        checkpoint = find_checkpoint(f"{folder}/run")
        config = read_config(checkpoint)
        config.parallel = ParallelConfig()
        config.precision.dtype = dtype
        layout = create_layout(config.parallel)
        engine = build_engine(config, layout, train=False)
        load_weights(engine, checkpoint)
    generator = Generator(engine.chunks, layout, context_length(config))
    return theirs.to(device=layout.device, dtype=DTYPES[dtype]), generator


class Bench:
    """Runs both, by turns."""

    def __init__(self, theirs: Any, generator: Generator, rounds: int) -> None:
        self.model, self.generator, self.rounds = theirs, generator, rounds
        self.random = torch.Generator().manual_seed(1)

    def prompts(self, lengths: list[int]) -> list[list[int]]:
        """Random tokens."""
        size = self.model.config.vocab_size
        return [torch.randint(1, size, (length,), generator=self.random).tolist() for length in lengths]

    def ours(self, prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        """All requests at once."""
        numbers = [
            self.generator.submit(prompt, GenerationOptions(greedy=True, max_new_tokens=count))
            for prompt, count in zip(prompts, new, strict=True)
        ]
        done: dict[int, list[int]] = {}
        with self.generator.running():
            while self.generator.busy:
                for event in self.generator.step():
                    if event.completion:
                        done[event.request] = event.completion.tokens
        return [done[number] for number in numbers]

    @torch.inference_mode()
    def theirs(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        """As one batch, short prompts padded at their left."""
        longest = max(map(len, prompts))
        tokens = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.model.device
        )
        output = self.model.generate(
            tokens,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            eos_token_id=None,
        )
        return output[:, longest:].tolist()

    def equal(self, size: int, prompt: int, new: int) -> float:
        """Share of texts that are the same in both."""
        prompts = self.prompts([prompt] * size)
        pairs = zip(self.ours(prompts, [new] * size), self.theirs(prompts, new), strict=True)
        return statistics.mean(mine == other for mine, other in pairs)

    def compare(self, contenders: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        """Median seconds of each, and of each but the first how many times as long as the first it took."""
        for run in contenders.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(self.rounds):
            for name, run in contenders.items():
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                start = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
        first, *others = contenders
        ratios = {
            name: statistics.median(b / a for a, b in zip(seconds[first], seconds[name], strict=True))
            for name in others
        }
        return {"seconds": {name: statistics.median(s) for name, s in seconds.items()}, "ratio": ratios}


def mixed(bench: Bench) -> dict[str, Any]:
    """16 requests of mixed lengths."""
    lengths = [(8 + 29 * i % 120, 16 + 37 * i % 112) for i in range(16)]
    prompts, new = bench.prompts([a for a, _ in lengths]), [b for _, b in lengths]
    figures = bench.compare(
        {
            "megalm": lambda: bench.ours(prompts, new),
            "one_after_the_other": lambda: [bench.ours([p], [n]) for p, n in zip(prompts, new, strict=True)],
            "hugging_face": lambda: bench.theirs(prompts, max(new)),
        }
    )
    show("16 requests of mixed lengths, tokens/s", figures, sum(new))
    return figures


def show(what: str, figures: dict[str, Any], tokens: int | None) -> None:
    """Print a line."""
    each = [
        f"{name} {tokens / seconds:.1f}" if tokens else f"{name} {1000 * seconds:.1f}"
        for name, seconds in figures["seconds"].items()
    ]
    ratios = [f"{ratio:.2f}x {name}" for name, ratio in figures["ratio"].items()]
    print(f"{what}: {', '.join(each)}; megalm is {', '.join(ratios)}", flush=True)


def profile(bench: Bench, options: argparse.Namespace) -> None:
    """Where a batch of 1 spends its time."""
    prompts = bench.prompts([options.prompt])
    bench.ours(prompts, [options.new])
    with torch.profiler.profile() as recorded:
        bench.ours(prompts, [options.new])
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


if __name__ == "__main__":
    main()
