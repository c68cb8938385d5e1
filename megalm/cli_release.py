"""The commands `megalm feedback promote`, `rollback` and `versions`: which checkpoint of a model is in service."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megalm.cli_model import Checkpoint, DType, Nproc, PipelineParallel, Step, TensorParallel, start_parts
from megalm.cli_options import AsJson
from megalm.cli_preferences import TemplateOption
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.release.request import JudgeRequest

ReleaseFile = Annotated[Path, typer.Argument(help="Release file, e.g. chat.release.json.", metavar="RELEASE")]


def promote(
    context: typer.Context,
    candidate: Checkpoint,
    release: Annotated[
        Path,
        typer.Option(help="Release file whose current version it is to replace, e.g. chat.release.json."),
    ],
    pairs: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out pairs of answers (JSONL, chosen and rejected); repeatable."),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of an evaluation of the candidate (megalm eval); repeatable."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="For each --evaluation that of the version in service, on the same tasks."),
    ] = None,
    no_evaluation: Annotated[bool, typer.Option("--no-evaluation", help="Judge by the pairs alone.")] = False,
    certainty: Annotated[
        float, typer.Option(help="How certain it has to be that the candidate is better on the pairs.")
    ] = 0.95,
    margin: Annotated[
        list[str] | None,
        typer.Option(
            help="Loss on a score that has to be excluded: VALUE, TASK=VALUE or TASK.METRIC=VALUE; repeatable. "
            "By default only losses that are certain count."
        ),
    ] = None,
    first: Annotated[
        bool, typer.Option("--first", help="Begin the release file: there is nothing to compare with.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge, and change nothing.")] = False,
    chat_template: TemplateOption = None,
    batch_size: Annotated[int, typer.Option(help="Answers of one forward pass.")] = 32,
    step: Step = None,
    tensor_model_parallel_size: TensorParallel = 1,
    pipeline_model_parallel_size: PipelineParallel = 1,
    dtype: DType = "fp32",
    nproc: Nproc = None,
    as_json: AsJson = False,
) -> None:
    """Put CHECKPOINT into service, if it is better than what is there.

    Better on held-out pairs of answers, and at nothing that both were asked by megalm eval any worse. Ends with 1, and changes nothing,
    where it is refused. A server of the release file takes the new version without dropping a request.
    """
    if first:
        if pairs or evaluation or against or release.exists():
            there = (
                f"{release} is there already"
                if release.exists()
                else "it takes neither pairs nor evaluations"
            )
            raise UserError(f"--first begins a release file with nothing to compare with: {there}")
        if not dry_run:
            _begin(candidate, step, release)
        return
    from megalm.release.request import JudgeRequest, parse_margins

    if not pairs:
        raise UserError(
            "nothing to judge by: give --pairs FILE (megalm feedback export --held-out makes one)"
        )
    request = JudgeRequest(
        checkpoint=candidate,
        step=step,
        release=release,
        pairs=pairs,
        evaluations=_evaluations(evaluation or [], against or [], no_evaluation),
        margins=parse_margins(margin or []),
        certainty=certainty,
        chat_template=chat_template,
        batch_size=batch_size,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        dtype=dtype,
    )
    start_parts(context, request, nproc)
    raise typer.Exit(_judge(request, dry_run, as_json))


def rollback(
    release: ReleaseFile,
    to: Annotated[
        int | None,
        typer.Option(help="Version; default: the one that the current one took the place of."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put the former version back into service; a server of the release file takes it without dropping a request."""
    from megalm.release.file import roll_back

    before, after = roll_back(release, to)
    if as_json:
        typer.echo(json.dumps({"before": before.model_dump(), "after": after.model_dump()}))
        return
    typer.echo(f"version {after.number} instead of {before.number}: {after.checkpoint}")


def versions(
    release: ReleaseFile,
    current: Annotated[
        bool, typer.Option("--current", help="Print the checkpoint in service, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what was promoted, and which version is in service (*)."""
    from megalm.release.file import checkpoint_of, read_release

    found = read_release(release)
    if current:
        typer.echo(checkpoint_of(found.now))
        return
    if as_json:
        typer.echo(json.dumps(found.model_dump()))
        return
    for version in found.versions:
        mark = "*" if version is found.now else " "
        typer.echo(f"{mark} {version.number}  {version.promoted}  step {version.step}  {version.checkpoint}")


def _evaluations(new: list[Path], old: list[Path], none: bool) -> list[tuple[Path, Path]]:
    """Of each the directory of the version in service, then the candidate's."""
    if len(new) != len(old):
        raise UserError(
            f"{len(new)} --evaluation and {len(old)} --against: each of the candidate's needs one of the version in service"
        )
    if none == bool(new):
        raise UserError(
            "--no-evaluation, and evaluations are named: leave one of them out"
            if none
            else "benchmarks and safety: give --evaluation DIR --against DIR (of megalm eval), or --no-evaluation"
        )
    return list(zip(old, new, strict=True))


def _begin(candidate: str, step: str | None, release: Path) -> None:
    from megalm.checkpoint.directory import find_checkpoint
    from megalm.release.file import promote as write

    version = write(release, find_checkpoint(candidate, step), {"first": True}, None)
    typer.echo(f"version {version.number} of {release}: {version.checkpoint}")


def _judge(request: "JudgeRequest", dry_run: bool, as_json: bool) -> int:
    """The exit code. Collective; rank 0 writes."""
    from megalm.release.file import promote as write
    from megalm.release.judge import judge, render

    judgement = judge(request)
    reasons = judgement.reasons
    if os.environ.get("RANK", "0") != "0":
        return int(bool(reasons))
    told: dict[str, Any] = judgement.told() | {"refused": reasons, "version": None}
    if not as_json:
        typer.echo(render(judgement), nl=False)
    if not reasons and not dry_run:
        version = write(request.release, judgement.candidate, judgement.told(), judgement.against.number)
        told["version"] = version.number
    if as_json:
        typer.echo(json.dumps(told))
    elif reasons:
        typer.echo("".join(f"refused: {reason}\n" for reason in reasons), nl=False)
    elif dry_run:
        typer.echo(f"it would be promoted; {request.release} is as it was")
    else:
        typer.echo(f"promoted: version {told['version']} of {request.release}")
    return int(bool(reasons))
