#!/usr/bin/env python3
"""Times `megalm serve` beside `transformers serve` and Hugging Face's `generate`, on the same weights, by turns in one run.

A random GPT-2 of the named size is saved with a tokenizer as Hugging Face does it, and converted. So many clients at a time ask each server for
completions of mixed lengths, greedy and streamed, each the next one as soon as it has its answer; `generate` gets the same requests in batches of
as many as there are clients, padded, cut where each is to end. tokens/s counts what was asked for and written. Medians of several rounds; the
ratio is to the better of the others, taken round by round.

    python benchmarks/serve.py [--preset gpt2-14m] [--clients 1 4 16 64] [--rounds 3] [--output FILE]
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.generate import SIZES

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300
PROMPT_WORDS, NEW_TOKENS = (4, 120), (8, 128)
Request = tuple[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=list(SIZES), default="gpt2-14m")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=48, help="Of a round, at least as many as clients.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Write all figures there as JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        make_model(folder, options.preset)
        systems: dict[str, Callable[[list[Request], int], dict[str, float]]] = {}
        for system, command in commands(folder).items():
            port = stack.enter_context(serving(command, folder / f"{system}.log"))
            model = "run" if system == "megalm" else str(folder / "hub")
            systems[system] = lambda given, clients, p=port, m=model: through_server(p, m, given, clients)
        generate = HuggingFace(folder / "hub")
        systems["generate"] = generate.run
        result = {"preset": options.preset, "versions": versions(), "cores": os.cpu_count(), "clients": {}}
        for clients in options.clients:
            given = requests(max(options.requests, clients))
            for run in systems.values():
                run(given[: min(4, clients)], clients)
            rounds = [
                {system: run(given, clients) for system, run in systems.items()}
                for _ in range(options.rounds)
            ]
            result["clients"][clients] = told = summed(rounds)
            show(clients, told)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def make_model(folder: Path, preset: str) -> None:
    """`hub`: Hugging Face's; `run`: ours."""
    import torch
    import transformers as hf

    from megalm.convert.hugging_face import from_hugging_face
    from megalm.tokenizer import load_tokenizer, train_bpe

    sizes = SIZES[preset]
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(20_000)]
    (folder / "text.txt").write_text(" ".join(words))
    train_bpe([folder / "text.txt"], min(sizes["vocab_size"], 8000), folder / "tokenizer")
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    end = load_tokenizer(folder / "tokenizer").eod_id
    config = hf.GPT2Config(**sizes, n_positions=1024, bos_token_id=end, eos_token_id=end)
    hf.GPT2LMHeadModel(config).save_pretrained(folder / "hub")
    tokenizer.save_pretrained(folder / "hub")
    from_hugging_face(folder / "hub", folder / "run", compare=False)


def requests(count: int) -> list[Request]:
    """Prompts and how many tokens are to follow."""
    draw = random.Random(1)
    return [
        (
            " ".join(
                "".join(draw.choices("abcdefghijklmnop", k=5)) for _ in range(draw.randint(*PROMPT_WORDS))
            ),
            draw.randint(*NEW_TOKENS),
        )
        for _ in range(count)
    ]


def commands(folder: Path) -> dict[str, list[str]]:
    """How each server is started, but for its port."""
    theirs = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder / "hub")]
    return {
        "megalm": [sys.executable, "-m", "megalm", "serve", str(folder / "run")],
        "transformers": [*theirs, "--device", "cpu"],
        "transformers_continuous": [*theirs, "--device", "cpu", "--continuous-batching"],
    }


@contextlib.contextmanager
def serving(command: list[str], log: Path) -> Iterator[int]:
    """The port of a server, which is ready."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--host", "127.0.0.1"], env=environment, stdout=file, stderr=file
        )
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{' '.join(command)} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def through_server(port: int, model: str, given: list[Request], clients: int) -> dict[str, float]:
    """All requests by so many clients; seconds."""
    left, lock = list(reversed(given)), threading.Lock()
    first: list[float] = []
    whole: list[float] = []
    written: list[int] = []
    failed: list[str] = []

    def work() -> None:
        while not failed:
            with lock:
                if not left:
                    return
                prompt, count = left.pop()
            try:
                begun = time.perf_counter()
                seconds, tokens = ask(port, model, prompt, count)
                whole.append(time.perf_counter() - begun)
                first.append(seconds)
                written.append(tokens)
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error}")

    begun = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failed:
        sys.exit(f"port {port}: {failed[0]}")
    return {
        "tokens_per_second": sum(written) / seconds,
        "first_token": statistics.median(first),
        "p50": statistics.median(whole),
        "p99": statistics.quantiles(whole, n=100)[98] if len(whole) > 1 else whole[0],
    }


def ask(port: int, model: str, prompt: str, count: int) -> tuple[float, int]:
    """Seconds to the first piece, and tokens written."""
    body = {"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    begun, first, tokens = time.perf_counter(), None, 0
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(answer.read().decode()[:500])
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        part = json.loads(line[6:])
        if "error" in part:
            raise RuntimeError(part["error"])
        if first is None and any(choice.get("text") for choice in part.get("choices", [])):
            first = time.perf_counter() - begun
        tokens = (part.get("usage") or {}).get("completion_tokens", tokens)
    if not tokens:
        raise RuntimeError("the server told no usage")
    return first if first is not None else time.perf_counter() - begun, tokens


class HuggingFace:
    """The model in this process."""

    def __init__(self, folder: Path) -> None:
        import transformers as hf

        hf.logging.set_verbosity_error()
        self.tokenizer = hf.AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()

    def run(self, given: list[Request], clients: int) -> dict[str, float]:
        """Batches of `clients` requests; an answer is there when its batch is."""
        import torch

        begun, written, whole = time.perf_counter(), 0, []
        for start in range(0, len(given), clients):
            part = given[start : start + clients]
            batch = self.tokenizer([prompt for prompt, _ in part], return_tensors="pt", padding=True)
            batch_begun = time.perf_counter()
            with torch.inference_mode():
                found = self.model.generate(
                    **{key: batch[key] for key in ("input_ids", "attention_mask")},
                    do_sample=False,
                    max_new_tokens=max(count for _, count in part),
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            whole += [time.perf_counter() - batch_begun] * len(part)
            for row, (_, count) in zip(found[:, batch["input_ids"].shape[1] :], part, strict=True):
                ids = row[:count].tolist()
                end = self.tokenizer.eos_token_id
                written += ids.index(end) + 1 if end in ids else len(ids)
        return {
            "tokens_per_second": written / (time.perf_counter() - begun),
            "first_token": statistics.median(whole),
            "p50": statistics.median(whole),
            "p99": max(whole),
        }


def summed(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of each system's figures, and of the ratio to the better of the others."""
    told: dict[str, Any] = {
        system: {
            figure: statistics.median(one[system][figure] for one in rounds) for figure in rounds[0][system]
        }
        for system in rounds[0]
    }
    ratios = [
        one["megalm"]["tokens_per_second"]
        / max(figures["tokens_per_second"] for system, figures in one.items() if system != "megalm")
        for one in rounds
    ]
    told["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return told


def show(clients: int, told: dict[str, Any]) -> None:
    ratio = told["ratio"]
    print(f"{clients} client(s): {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})")
    for system, figures in told.items():
        if system != "ratio":
            print(
                f"  {system:24} {figures['tokens_per_second']:8.1f} tokens/s   first {figures['first_token'] * 1000:7.0f} ms"
                f"   p50 {figures['p50'] * 1000:7.0f} ms   p99 {figures['p99'] * 1000:7.0f} ms",
                flush=True,
            )


def versions() -> dict[str, str]:
    """Of what was compared."""
    import torch
    import transformers

    import megalm

    return {
        "megalm": megalm.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
