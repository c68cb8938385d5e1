"""The command `megalm generate`: loads a checkpoint under any layout and continues prompts."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm.checkpoint import find_checkpoint, list_checkpoints, load_weights, read_config
from megalm.checkpoint.read import damage
from megalm.config import Config
from megalm.config.checks import check
from megalm.config.schema import ParallelConfig
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.generate.decode import Completion, Generator, context_length
from megalm.generate.request import GenerateRequest
from megalm.parallel.layout import Layout, create_layout
from megalm.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

Result = dict[str, Any]


def main(request: GenerateRequest, show: bool = True) -> list[Result]:
    """Continue the request's prompts; returns prompt, text, tokens and finish_reason of each, the same on every rank.

    Works on every copy of the model that the world holds: they share the prompts. show: rank 0 prints the texts to stdout, a
    single one as it comes if the request says so. Rank 0 reports the speed on stderr. Collective.
    """
    request.check_world_size(int(os.environ.get("WORLD_SIZE", "1")))
    candidates = _candidates(request)
    config = _read_config(candidates)
    tokenizer = _open_tokenizer(candidates[0], config)
    _adapt(config, request, tokenizer)
    layout = create_layout(config.parallel, config.run.seed)
    engine = build_engine(config, layout, train=False)
    load_weights(engine, _newest_intact(candidates, layout))
    generator = Generator(engine.model, layout, context_length(config), tokenizer)

    # an empty prompt asks for a text from its beginning, which follows the end of another in training
    prompts = [ids or [tokenizer.eod_id] for ids in tokenizer.encode_batch(request.prompts)]
    # here, where all ranks see all prompts and fail together
    generator.check(prompts)
    speaks = show and layout.rank == 0
    live = speaks and request.stream and len(prompts) == 1
    if live:
        print(request.prompts[0], end="", flush=True)
    start = time.perf_counter()
    completions = _share(generator, layout, prompts, request, live)
    seconds = time.perf_counter() - start
    if live:
        print()
    elif speaks:
        _print_texts(request.prompts, completions)
    if layout.rank == 0:
        count = sum(len(completion.tokens) for completion in completions)
        print(f"{count} tokens in {seconds:.2f} s: {count / seconds:.1f} tokens/s", file=sys.stderr)
    return [
        {"prompt": prompt, "text": c.text, "tokens": c.tokens, "finish_reason": c.finish_reason}
        for prompt, c in zip(request.prompts, completions, strict=True)
    ]


def _candidates(request: GenerateRequest) -> list[Path]:
    """The checkpoint that is named, or those of the run directory, newest first."""
    newest = find_checkpoint(request.checkpoint, request.step)
    if request.step is not None or newest == Path(request.checkpoint):
        return [newest]
    return list(reversed(list_checkpoints(request.checkpoint).values()))


def _read_config(candidates: list[Path]) -> Config:
    """The configuration, in the newest checkpoint where it is whole: all of a run's describe one model."""
    for path in candidates[:-1]:
        try:
            return read_config(path)
        except UserError:
            continue  # `_newest_intact` will name it
    return read_config(candidates[-1])


def _newest_intact(candidates: list[Path], layout: Layout) -> Path:
    """The first candidate whose checksums hold. Collective.

    Not `megalm.checkpoint.newest_intact`, which sets damaged checkpoints aside: this command changes nothing.
    """
    shared = [candidates]
    dist.broadcast_object_list(shared, device=layout.device)
    for path in shared[0][:-1]:
        wrong = damage(path, layout)
        if wrong is None:
            return path
        if layout.rank == 0:
            logger.warning("%s; trying the checkpoint before it", wrong)
    return shared[0][-1]  # loading it tells what is wrong with it


def _adapt(config: Config, request: GenerateRequest, tokenizer: Tokenizer) -> None:
    """Put this generation's layout and precision in the place of the training's."""
    config.parallel = ParallelConfig(
        tensor_model_parallel_size=request.tensor_model_parallel_size,
        pipeline_model_parallel_size=request.pipeline_model_parallel_size,
        backend=config.parallel.backend,
        timeout_minutes=config.parallel.timeout_minutes,
    )
    config.precision.dtype = request.dtype  # type: ignore[assignment]
    if config.model.vocab_size is None:
        config.model.vocab_size = tokenizer.vocab_size
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.model.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )
    check(config)


def _open_tokenizer(checkpoint: Path, config: Config) -> Tokenizer:
    """The run directory's own copy, or else the one that the run was trained with."""
    copy = checkpoint.resolve().parent.parent / "tokenizer"
    if copy.is_dir():
        return load_tokenizer(copy)
    if config.tokenizer.path is None:
        raise UserError(
            f"{checkpoint}: no tokenizer at {copy} and none in its config.yaml; copy the model's there"
        )
    return load_tokenizer(config.tokenizer.path)


def _share(
    generator: Generator, layout: Layout, prompts: list[list[int]], request: GenerateRequest, live: bool
) -> list[Completion]:
    """Let each copy of the model continue every dp_size-th prompt, and bring all results to every rank."""
    mine = range(layout.dp_rank, len(prompts), layout.dp_size)

    def on_text(_: int, piece: str) -> None:
        print(piece, end="", flush=True)

    done = generator.generate([prompts[i] for i in mine], request, mine, on_text if live else None)
    parts: list[list[Completion]] = [done]
    if layout.dp_size > 1:
        parts = [[]] * layout.dp_size
        dist.all_gather_object(parts, done, group=layout.groups.dp)
    return [parts[i % layout.dp_size][i // layout.dp_size] for i in range(len(prompts))]


def _print_texts(prompts: list[str], completions: list[Completion]) -> None:
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if len(prompts) > 1:
            print(f"--- {number} ({completion.finish_reason}) ---")
        print(prompt + completion.text)
