"""The commands `megalm serve` and `megalm serve-keys`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from megalm.errors import UserError

keys_app = typer.Typer(help="API keys of a server: add, remove, list.", rich_markup_mode=None)
KeyPath = Annotated[Path, typer.Option("--file", help="File of the keys (their hashes).")]


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run directories, checkpoints or compressed models, each as PATH or NAME=PATH.",
            metavar="CHECKPOINT...",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0: any free one; default: 8000.")
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of keys (megalm serve-keys add); without one everybody may ask.")
    ] = None,
    feedback: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Keep what is said of answers in this database, e.g. sqlite:///feedback.db; default: nothing is kept.",
        ),
    ] = None,
    moderation: Annotated[
        Path | None, typer.Option(help="Policy by which texts are checked; without one none is.")
    ] = None,
    moderation_log: Annotated[
        Path | None, typer.Option(help="File to which what was found is added, a JSON line each.")
    ] = None,
    copies: Annotated[int, typer.Option(min=1, help="Copies of each model.")] = 1,
    tensor_model_parallel_size: Annotated[int, typer.Option(help="Processes that share each matrix.")] = 1,
    pipeline_model_parallel_size: Annotated[int, typer.Option(help="Processes that share the layers.")] = 1,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp64.")] = "fp32",
    backend: Annotated[str, typer.Option(help="megalm, or vllm where that is installed.")] = "megalm",
    page: Annotated[bool, typer.Option("--page/--no-page", help="Show the web page at /.")] = True,
    settings: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value over the file's settings, e.g. limits.max_waiting=64."),
    ] = None,
) -> None:
    """Serve models behind OpenAI's API: chats, completions, streams."""
    from megalm.serve.settings import parse_serve_settings

    content: dict[str, Any] = {}
    common = {
        "copies": copies,
        "tensor_model_parallel_size": tensor_model_parallel_size,
        "pipeline_model_parallel_size": pipeline_model_parallel_size,
        "dtype": dtype,
        "backend": backend,
    }
    if models:
        content["models"] = [_model(model) | common for model in models]
    given = {
        "host": host,
        "port": port,
        "api_keys": api_keys,
        "feedback": feedback,
        "moderation": moderation,
        "moderation_log": moderation_log,
    }
    for name, value in given.items():
        if value is not None:
            content[name] = value
    if not page:
        content["page"] = False
    parsed = parse_serve_settings(settings, content, set_ or [])
    try:
        from megalm.serve.run import main
    except ModuleNotFoundError as error:
        raise UserError(f"megalm serve needs {error.name}: pip install 'megalm[serve]'") from None
    raise typer.Exit(main(parsed))


def _model(given: str) -> dict[str, str]:
    name, separator, path = given.partition("=")
    if separator and "/" not in name:
        return {"name": name, "checkpoint": path}
    return {"checkpoint": given}


@keys_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: KeyPath,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Limit of this key.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Limit of this key.")] = None,
) -> None:
    """Make a key and print it; it is not kept anywhere else."""
    from megalm.serve.keys import add_key

    typer.echo(add_key(file, name, requests_per_minute, tokens_per_minute))


@keys_app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Whose key it is.")], file: KeyPath) -> None:
    """Take a key out; running servers notice within seconds."""
    from megalm.serve.keys import remove_key

    remove_key(file, name)


@keys_app.command("list")
def list_keys(file: KeyPath) -> None:
    """Names, dates and limits of the keys."""
    from megalm.serve.keys import KeyFile

    for key in KeyFile(file).read():
        limits = [
            f"{value} {what} a minute"
            for value, what in ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
            if value is not None
        ]
        typer.echo("  ".join([key.name, key.created, *limits]))
