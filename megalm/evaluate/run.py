"""The command `megalm eval`: asks a model the questions of tasks, under any layout, and tells what its answers score."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm.checkpoint.directory import CHECKPOINTS, find_checkpoint, fingerprint, read_config
from megalm.errors import UserError
from megalm.evaluate.answers import FILE_NAME as ANSWERS
from megalm.evaluate.answers import Answers
from megalm.evaluate.ask import Window, ask, work_of
from megalm.evaluate.documents import check_tokenizer
from megalm.evaluate.encode import Encoder
from megalm.evaluate.files import write_draws
from megalm.evaluate.loaded import LoadedModel
from megalm.evaluate.masked import MaskedModel, open_masked
from megalm.evaluate.model import AskedModel
from megalm.evaluate.request import EvalRequest, Plan, prepare
from megalm.evaluate.results import average_of, entry_of, scores_of, write_results, write_samples
from megalm.evaluate.scoring import check_one_class
from megalm.evaluate.served import ServedModel
from megalm.generate.decode import context_length
from megalm.generate.load import open_model
from megalm.generate.tokenizing import open_tokenizer, trained_template
from megalm.tasks import progress_bar
from megalm.tokenizer import Tokenizer, load_tokenizer
from megalm.tokenizer.chat import ChatTemplate, load_chat_template


def main(request: EvalRequest, show: bool = True) -> dict[str, Any]:
    """Ask what `request` names; returns what results.json holds, the same on every rank. Collective.

    `tasks`: of each its metrics with intervals (see `entry_of`), `averages`, and `asked`: how many questions were put, and how many of
    them an earlier evaluation had answered. show: rank 0 shows on stderr how far it is. All that was answered lies in the output
    directory, so that the same command after an interruption asks only what is left.
    """
    if not request.is_served:  # before it is loaded
        _window(request, context_length(read_config(find_checkpoint(request.checkpoint, request.step))))
    plan = prepare(request)
    for prepared in plan.tasks:
        check_one_class(prepared.task, prepared.questions)
    model, told = open_masked(request) if _is_masked(request, plan) else open_asked(request)
    try:
        window = _window(request, model.length)
        for prepared in plan.tasks:
            check_tokenizer(prepared.questions, model.encoder.tokenizer)
        results = _evaluate(request, plan, model, window, told, show)
    finally:
        model.answers.close()
    shared = [results]
    dist.broadcast_object_list(shared)
    return shared[0]


def open_asked(request: EvalRequest) -> tuple[AskedModel, dict[str, Any]]:
    """Load the model, or find it at its server, and tell what it is. Collective."""
    if request.is_served:
        return _open_served(request)
    checkpoint = find_checkpoint(request.checkpoint, request.step)
    engine, config, tokenizer = open_model(replace(request, checkpoint=str(checkpoint), step=None), "gpt")
    mark = fingerprint(checkpoint, request.dtype)
    template = None
    if request.chat_template is not None:
        template = trained_template(config, tokenizer, request.chat_template or None)
    answers = Answers(request.output / ANSWERS, mark)
    model = AskedModel(
        LoadedModel(engine, config, tokenizer, request.batch_size, request.max_rows),
        Encoder(tokenizer, template, request.system, request.begin_token),
        answers,
    )
    told = {"checkpoint": str(checkpoint.resolve()), "fingerprint": mark, "dtype": request.dtype}
    return model, told


def _open_served(request: EvalRequest) -> tuple[AskedModel, dict[str, Any]]:
    assert request.tokenizer is not None
    tokenizer, template = _tokenizer_of(request, str(request.tokenizer))
    source = ServedModel(request.checkpoint, request.model, request.window)
    mark = source.fingerprint
    encoder = Encoder(tokenizer, template, request.system, request.begin_token)
    told = {"address": source.address, "name": source.name, "fingerprint": mark}
    return AskedModel(source, encoder, Answers(request.output / ANSWERS, mark)), told


def _tokenizer_of(request: EvalRequest, place: str) -> tuple[Tokenizer, ChatTemplate | None]:
    """The tokenizer in a directory or of a checkpoint, and the template of the conversations that are asked for."""
    path = Path(place)
    asks, name = request.chat_template is not None, request.chat_template or None
    if (path / CHECKPOINTS).is_dir() or (path / "manifest.json").is_file():
        checkpoint = find_checkpoint(path)
        config = read_config(checkpoint)
        tokenizer = open_tokenizer(checkpoint, config)
        return tokenizer, trained_template(config, tokenizer, name) if asks else None
    tokenizer = load_tokenizer(path)
    return tokenizer, load_chat_template(name or path, tokenizer, config=path) if asks else None


def _evaluate(
    request: EvalRequest,
    plan: Plan,
    model: AskedModel | MaskedModel,
    window: Window,
    told: dict[str, Any],
    show: bool,
) -> dict[str, Any]:
    """What results.json holds; on other ranks than 0 nothing."""
    rank = model.rank
    entries: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for prepared in plan.tasks:
        start = time.perf_counter()
        work = work_of(prepared.task, prepared.questions)
        with progress_bar(prepared.label, work, show and rank == 0) as advance:
            asked = ask(model, prepared.task, prepared.questions, window, advance, prepared.judge)
        if rank:
            continue
        seconds = time.perf_counter() - start
        found = scores_of(prepared, asked, request.seed)
        entry = entry_of(prepared, asked, found, request.seed)
        chat = {"chat_template": model.encoder.template.name} if model.encoder.template else {}
        entries[prepared.label] = entry | chat | {"seconds": seconds, "limit": request.limit}
        if prepared.task.kind == "perplexity":
            entries[prepared.label] |= {"window": window.width, "stride": window.stride}
        write_samples(request.output, prepared, asked)
        write_draws(request.output, prepared.label, found)
        results = _results(request, plan, model, told, entries)
    return results


def _results(
    request: EvalRequest,
    plan: Plan,
    model: AskedModel | MaskedModel,
    told: dict[str, Any],
    entries: dict[str, Any],
) -> dict[str, Any]:
    """Write what there is so far."""
    averages = {
        average.name: average_of(average, members, entries)
        for average, members in plan.averages
        if all(label in entries for _, label in members)
    }
    results = {
        "format": 1,
        "model": told,
        "seed": request.seed,
        "tasks": entries,
        "averages": averages,
    }
    asked = {"questions": model.asked, "answered_before": model.known}
    return write_results(request.output, results) | {"asked": asked}


def _is_masked(request: EvalRequest, plan: Plan) -> bool:
    """Whether the model is an encoder; UserError for what an encoder cannot be asked."""
    if request.is_served:
        return False
    checkpoint = find_checkpoint(request.checkpoint, request.step)
    if read_config(checkpoint).model.architecture != "bert":
        return False
    for prepared in plan.tasks:
        if prepared.task.kind != "pairs":
            raise UserError(
                f"{checkpoint} holds a masked model, which is asked tasks of kind `pairs` alone (crows_pairs): leave {prepared.label} out"
            )
    return True


def _window(request: EvalRequest, length: int) -> Window:
    """length: of the model's context."""
    width = request.window or length
    stride = request.stride or width
    if width > length:
        raise UserError(f"--window {width} is longer than the model's context of {length}; lower it")
    if stride > width:
        raise UserError(
            f"--stride {stride} is longer than the window of {width}, and would leave tokens out; lower it"
        )
    return Window(width, stride)
