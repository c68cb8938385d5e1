"""The command `megalm moderate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_options import AsJson, print_result, read_stdin
from megalm.errors import UserError


def moderate(
    policy: Annotated[Path, typer.Argument(help="Policy file, e.g. configs/moderation/default.yaml.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts to check; - or none: standard input.", metavar="TEXT...")
    ] = None,
    side: Annotated[
        str, typer.Option(help="input (what people write), output (what a model writes) or both.")
    ] = "both",
    as_json: AsJson = False,
) -> None:
    """Show what a policy finds in texts, and what would be done."""
    from megalm.moderation.policy import load_policy
    from megalm.moderation.screen import check

    if side not in ("input", "output", "both"):
        raise UserError(f"--side {side}: choose input, output or both")
    loaded = load_policy(policy)
    results = []
    for text in [read_stdin() if text == "-" else text for text in texts or ["-"]]:
        for one in ("input", "output") if side == "both" else (side,):
            found = check(loaded, text, one)  # type: ignore[arg-type]
            results.append({"side": one, **asdict(found)})
            if not as_json:
                _print(one, text, results[-1])
    if as_json:
        print_result(True, {"policy": loaded.settings.name, "results": results})


def _print(side: str, text: str, result: dict) -> None:
    for finding in result["findings"]:
        place = text[finding["begin"] : finding["end"]]
        typer.echo(f"{side}: {finding['action']} {finding['category']} ({finding['score']:.3f}): {place!r}")
    if result["blocked"] is not None:
        typer.echo(f"{side}: blocked ({result['blocked']})")
    elif result["text"] != text:
        typer.echo(f"{side}: {result['text']}")
    elif not result["findings"]:
        typer.echo(f"{side}: nothing found")
