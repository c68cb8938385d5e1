"""The command `megalm generate`: loads a checkpoint under any layout and continues prompts."""

import sys
import time
from typing import Any

from megalm.generate.decode import Generator, context_length
from megalm.generate.load import open_model
from megalm.generate.request import GenerateRequest
from megalm.generate.rows import Completion
from megalm.generate.share import generate_shared

Result = dict[str, Any]


def main(request: GenerateRequest, show: bool = True) -> list[Result]:
    """Continue the request's prompts; returns prompt, text, tokens, finish_reason of each text and what more was asked for,
    the same on every rank.

    Works on every copy of the model that the world holds: they share the prompts. show: rank 0 prints the texts to stdout, a
    single one as it comes if the request says so. Rank 0 reports the speed on stderr. Collective.
    """
    engine, config, tokenizer = open_model(request, "gpt")
    layout = engine.layout
    generator = Generator(
        engine.chunks,
        layout,
        context_length(config),
        tokenizer,
        max_rows=request.max_rows,
        cache_bytes=None if request.cache_gib is None else int(request.cache_gib * 2**30),
    )

    # an empty prompt asks for a text from its beginning, which follows the end of another in training
    prompts = [ids or [tokenizer.eod_id] for ids in tokenizer.encode_batch(request.prompts)]
    # here, where all ranks see all prompts and fail together
    generator.check(prompts, request)
    speaks = show and layout.rank == 0
    live = speaks and request.stream and len(prompts) == request.rows == 1
    if live:
        print(request.prompts[0], end="", flush=True)
    start = time.perf_counter()
    completions = generate_shared(generator, prompts, request, on_text=_print_piece if live else None)
    seconds = time.perf_counter() - start
    if live:
        print()
    elif speaks:
        _print_texts([prompt for prompt in request.prompts for _ in range(request.n)], completions)
    if layout.rank == 0:
        count = sum(len(completion.tokens) for completion in completions)
        print(f"{count} tokens in {seconds:.2f} s: {count / seconds:.1f} tokens/s", file=sys.stderr)
    asked = [prompt for prompt in request.prompts for _ in range(request.n)]
    return [_result(prompt, done) for prompt, done in zip(asked, completions, strict=True)]


def _result(prompt: str, done: Completion) -> Result:
    """What of a completion there is."""
    result = {"prompt": prompt, "text": done.text, "tokens": done.tokens, "finish_reason": done.finish_reason}
    more = {"logprobs": done.logprobs, "top_logprobs": done.top_logprobs, "score": done.score}
    return result | {name: value for name, value in more.items() if value is not None}


def _print_piece(_: int, piece: str) -> None:
    print(piece, end="", flush=True)


def _print_texts(prompts: list[str], completions: list[Completion]) -> None:
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if len(prompts) > 1:
            print(f"--- {number} ({completion.finish_reason}) ---")
        print(prompt + completion.text)
