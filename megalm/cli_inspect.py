"""The command `megalm inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megalm.cli_model import Checkpoint, DType, print_json
from megalm.cli_options import AsJson
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.inspect.request import InspectRequest


def inspect(
    checkpoint: Checkpoint,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Look into the model with this text; may be given several times."),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(help="Tell this token's nearest neighbours; may be given several times."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="HTML file of what --text and --token find; default: RUN/inspect.html."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Token or label whose prediction is explained; default: the likeliest.")
    ] = None,
    position: Annotated[
        int | None,
        typer.Option(
            help="Place of that prediction in the text, from 0; default: its last token, or first [MASK]."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Token that stands for no information; default: the end of a document, or [MASK]."),
    ] = None,
    begin_token: Annotated[
        str | None, typer.Option(help="Special token before every text, such as <s>; default: none.")
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Nearest tokens of each.")] = 10,
    top: Annotated[int, typer.Option(help="Tokens that each layer finds likeliest.")] = 5,
    step: Annotated[
        str | None, typer.Option(help="Checkpoint of this step, or `best`; default: the newest.")
    ] = None,
    dtype: DType = "fp32",
    as_json: AsJson = False,
) -> None:
    """List the tensors of a checkpoint without loading them: names, shapes, formats, shards.

    With --text or --token look into the model itself, as one HTML page: which tokens lie near each other, where each head looks,
    which tokens a prediction rests on, what each layer would predict. A checkpoint of any layout is taken, by one process.
    """
    if not text and not token:
        if output is not None:
            raise UserError("--output is of what --text and --token find: give one of them")
        _list_tensors(checkpoint, step, as_json)
        return
    from megalm.inspect.request import InspectRequest

    request = InspectRequest(
        checkpoint=checkpoint,
        texts=text or [],
        tokens=token or [],
        begin_token=begin_token,
        position=position,
        target=target,
        baseline=baseline,
        neighbours=neighbours,
        top=top,
        step=step,
        dtype=dtype,
    )
    page = output if as_json else _page(request, output)
    from megalm.inspect import run

    result = run.main(request, page)
    print_json(result, as_json)
    if not as_json:
        typer.echo("\n".join([*_told(result), f"written to {page}"]))


def _list_tensors(checkpoint: str, step: str | None, as_json: bool) -> None:
    from megalm.checkpoint.inspect import inspect_checkpoint, print_table

    report = inspect_checkpoint(checkpoint, step)
    if as_json:
        print_json(report, as_json)
    else:
        print_table(report)


def _page(request: "InspectRequest", output: Path | None) -> Path:
    """Where the page goes."""
    from megalm.checkpoint.directory import CHECKPOINTS, find_checkpoint

    found = find_checkpoint(request.checkpoint, request.step).resolve()
    if output is None and found.parent.name != CHECKPOINTS:
        raise UserError(
            f"{found} is no checkpoint of a run, in which a page would lie: name a file with --output"
        )
    page = output or found.parent.parent / "inspect.html"
    if page.is_dir():
        raise UserError(f"{page} is a directory: name a file to write, for instance {page / 'inspect.html'}")
    return page


def _told(result: dict[str, Any]) -> list[str]:
    """A few lines: of each text what its prediction rests on, of tokens alone their neighbours."""
    lines = []
    for found in result["texts"]:
        if (why := found["attribution"]) is None:
            continue
        target = why["target"].get("label", why["target"].get("token"))
        scored = zip(found["tokens"], why["scores"], strict=True)
        first = sorted(scored, key=lambda pair: -abs(pair[1]))[:5]
        parts = ", ".join(f"{token['token']!r} {score:+.3f}" for token, score in first)
        lines.append(f"{found['text']!r}: {target!r} (log p {why['logprob']:.3f}) because of {parts}")
    for token in [] if lines else result["neighbours"]:
        near = ", ".join(f"{one['token']!r} {one['cosine']:.2f}" for one in token["input"])
        lines.append(f"{token['token']!r} is near {near}")
    return lines
