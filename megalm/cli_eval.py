"""The command `megalm eval`."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megalm import launch
from megalm.cli_model import DType, Nproc, PipelineParallel, Step, TensorParallel, print_json, start_parts
from megalm.cli_options import AsJson
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.evaluate.request import EvalRequest


def evaluate(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Run directory, one of its checkpoints, a model of Hugging Face's, or a server: http://host:port/v1.",
            metavar="CHECKPOINT",
        ),
    ],
    tasks: Annotated[
        str, typer.Option(help="Names in --task-folder, or files: arc_easy,gsm8k,my/task.yaml")
    ] = "",
    data: Annotated[Path | None, typer.Option(help="Where the tasks' files lie.")] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="Measure perplexity on this file (.txt, .jsonl, .csv); may be given several times."
        ),
    ] = None,
    text_key: Annotated[str, typer.Option(help="Column of the text in --text files of records.")] = "text",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the results; default: RUN/evaluation/STEP."),
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(help="Solved questions before each; default: as the tasks have it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Questions of a task at most, drawn from --seed.")] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Put questions as turns of a conversation, in the model's template."),
    ] = False,
    chat_template: Annotated[
        str | None, typer.Option(help="--chat with this bundled template or .jinja file.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What such a conversation begins with.")] = None,
    begin_token: Annotated[
        str | None, typer.Option(help="Special token before every plain text, such as <s>; default: none.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens of a document that are seen at most; default: the context.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens of a document predicted by a window; default: --window.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of solved questions, --limit, drawn answers and intervals.")
    ] = 1234,
    batch_size: Annotated[int, typer.Option(help="Texts of one forward pass.")] = 32,
    max_rows: Annotated[int, typer.Option(help="Texts that a copy of the model writes side by side.")] = 64,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="A file of `megalm corpus classifier train` that tells toxic texts; default: the tasks' own."
        ),
    ] = None,
    task_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of tasks and their paths.yaml; default: those that come with megalm."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="megalm, or lm-eval: its tasks and scores over our model.")
    ] = "megalm",
    model: Annotated[str | None, typer.Option(help="Which of a server's models.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The tokenizer of a server's model: its directory, or a checkpoint.")
    ] = None,
    step: Step = None,
    tensor_model_parallel_size: TensorParallel = 1,
    pipeline_model_parallel_size: PipelineParallel = 1,
    dtype: DType = "fp32",
    nproc: Nproc = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model by tasks and by the perplexity of text.

    What was answered is kept in --output: the same command goes on after an interruption, under another layout too.
    """
    from megalm.evaluate.request import EvalRequest
    from megalm.evaluate.task import BUNDLE

    if engine not in ("megalm", "lm-eval"):
        raise UserError(f"--engine is {engine!r}; choose megalm or lm-eval")
    ours, folder = _located(checkpoint, step, output)
    request = EvalRequest(
        checkpoint=ours,
        tasks=[name.strip() for name in tasks.split(",") if name.strip()],
        texts=text or [],
        text_key=text_key,
        task_folder=task_folder or BUNDLE,
        data=data,
        output=folder,
        few_shot=few_shot,
        limit=limit,
        seed=seed,
        window=window,
        stride=stride,
        chat_template=chat_template or ("" if chat else None),
        system=system,
        begin_token=begin_token,
        batch_size=batch_size,
        max_rows=max_rows,
        classifier=classifier,
        model=model,
        tokenizer=tokenizer,
        step=step,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        dtype=dtype,
    )
    start_parts(context, request, nproc)
    _report(_results(request, engine, as_json), folder, as_json)


def compare(
    before: Annotated[Path, typer.Argument(help="Directory that megalm eval wrote to.", metavar="BEFORE")],
    after: Annotated[
        list[Path], typer.Argument(help="One or more of later ones, or of other models.", metavar="AFTER...")
    ],
    as_json: AsJson = False,
) -> None:
    """Put evaluations side by side: what each score gained or lost since the first, and whether it is certain.

    No model is asked. Where both asked the same questions, they are compared question by question.
    """
    from megalm.evaluate.compare import changes
    from megalm.evaluate.results import render_changes

    found = {str(folder): changes(before, folder) for folder in after}
    print_json({folder: [one.told() for one in of_one] for folder, of_one in found.items()}, as_json)
    if not as_json:
        for folder, of_one in found.items():
            certain = sum(one.is_significant for one in of_one)
            typer.echo(f"{before} -> {folder}\n{render_changes(of_one)}", nl=False)
            typer.echo(
                f"{certain} of {len(of_one)} changes are certain (!); chance alone would make about {0.05 * len(of_one):.1f} so"
            )


def _results(request: "EvalRequest", engine: str, as_json: bool) -> dict[str, Any]:
    if request.is_served:
        from megalm.parallel.alone import world_of_one

        with world_of_one():
            return _asked(request, engine, as_json)
    return _asked(request, engine, as_json)


def _asked(request: "EvalRequest", engine: str, as_json: bool) -> dict[str, Any]:
    if engine == "lm-eval":
        from megalm.evaluate.harness import main as ask_with_lm_eval

        return ask_with_lm_eval(request)
    from megalm.evaluate import run

    return run.main(request, show=not as_json)


def _report(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    print_json(results, as_json)
    if as_json or os.environ.get("RANK", "0") != "0":
        return
    from megalm.evaluate.files import FILE_NAME
    from megalm.evaluate.results import render

    typer.echo(render(results), nl=False)
    typer.echo(f"written to {folder / FILE_NAME}")


def _located(checkpoint: str, step: str | None, output: Path | None) -> tuple[str, Path]:
    """The model in our form or the server's address, and the directory of the results."""
    from megalm.checkpoint.directory import CHECKPOINTS, find_checkpoint
    from megalm.evaluate.request import is_address

    if is_address(checkpoint):
        if output is None:
            raise UserError(f"{checkpoint} is a server: name a directory for the results with --output")
        return checkpoint, output
    form = _form_of(Path(checkpoint))
    if form == "megatron-lm":
        raise UserError(
            f"{checkpoint} is of Megatron-LM's: convert it first, megalm convert {checkpoint} DEST"
        )
    if form == "hf":
        if output is None:
            raise UserError(
                f"{checkpoint} is a model of Hugging Face's, which is not written to: name a directory with --output"
            )
        return str(_converted(Path(checkpoint), output)), output
    found = find_checkpoint(checkpoint, step).resolve()
    if output is None and found.parent.name != CHECKPOINTS:
        raise UserError(
            f"{found} is no checkpoint of a run, in which results would lie: name a directory with --output"
        )
    return checkpoint, output or found.parent.parent / "evaluation" / found.name


def _form_of(path: Path) -> str:
    if (path / "manifest.json").is_file() or (path / "checkpoints").is_dir() or not path.is_dir():
        return "megalm"  # or nothing, which is told where it is opened
    from megalm.convert.run import form_of  # it imports torch

    return form_of(path)


def _converted(source: Path, output: Path) -> Path:
    """A copy in our form in `output`, made once for these files."""
    from megalm.convert.hugging_face import from_hugging_face

    files = sorted(file for file in source.iterdir() if file.is_file())
    told = [f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    target = output / f"model_{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:12]}"
    if not target.is_dir():
        if launch.in_world():
            raise UserError(f"start with --nproc, or convert the model first: megalm convert {source} DEST")
        from_hugging_face(source, target, compare=False)
    return target
