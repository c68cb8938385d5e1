"""The `megalm` command: each sub-command parses, calls one public function and prints; nothing heavy is imported before."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

import megalm
from megalm import atomic, launch
from megalm.cli_adapt import adapt
from megalm.cli_classify import build_labelled, classify
from megalm.cli_compress import compress_app
from megalm.cli_convert import convert, merge
from megalm.cli_corpus import corpus_app
from megalm.cli_data import dataset_app
from megalm.cli_eval import compare, evaluate
from megalm.cli_feedback import feedback_app
from megalm.cli_generate import chat, embed, generate
from megalm.cli_inspect import inspect
from megalm.cli_launch import launch_job
from megalm.cli_lineage import lineage
from megalm.cli_model import Nproc, print_json, start_world
from megalm.cli_moderate import moderate
from megalm.cli_options import AsJson
from megalm.cli_plan import plan
from megalm.cli_preferences import build_preferences, score
from megalm.cli_release import promote, rollback, versions
from megalm.cli_report import report
from megalm.cli_runs import runs_app
from megalm.cli_serve import keys_app, serve
from megalm.cli_tokenizer import tokenizer_app
from megalm.errors import UserError

# what the system says of files and directories that are the user's to mend
_USERS_FILES = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}

app = typer.Typer(
    name="megalm",
    help="Train large language models on any layout of processes, with the same answer on each.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(corpus_app, name="corpus")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(dataset_app, name="dataset")
app.add_typer(compress_app, name="compress")
app.add_typer(runs_app, name="runs")
app.add_typer(keys_app, name="serve-keys")
app.add_typer(feedback_app, name="feedback")
feedback_app.command("promote")(promote)
feedback_app.command("rollback")(rollback)
feedback_app.command("versions")(versions)
dataset_app.command("build-labelled")(build_labelled)
dataset_app.command("build-preferences")(build_preferences)
app.command("plan")(plan)
app.command("lineage")(lineage)
app.command("launch")(launch_job)
app.command("adapt")(adapt)
app.command("convert")(convert)
app.command("merge")(merge)
app.command("generate")(generate)
app.command("chat")(chat)
app.command("embed")(embed)
app.command("classify")(classify)
app.command("score")(score)
app.command("eval")(evaluate)
app.command("eval-compare")(compare)
app.command("report")(report)
app.command("inspect")(inspect)
app.command("serve")(serve)
app.command("moderate")(moderate)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 success, 2 a user's mistake (one line), 1 a failure of ours."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with launch.guard():
            return _run(arguments)
    except UserError as error:
        print(f"megalm: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def _run(arguments: list[str]) -> int:
    try:
        outcome = get_command(app).main(
            args=arguments or ["--help"], prog_name="megalm", standalone_mode=False, obj=arguments
        )
    except typer.Abort:
        outcome = 130
    except Exception as error:
        if (message := _mistake(error)) is None:
            raise
        raise UserError(message) from None
    if outcome == 130:  # what typer makes of a KeyboardInterrupt
        raise KeyboardInterrupt
    return outcome if isinstance(outcome, int) else 0


def _mistake(error: Exception) -> str | None:
    """One line for an error in the command line or in a typed value, None for anything else."""
    if hasattr(error, "format_message"):  # typer's and click's usage errors
        where = getattr(getattr(error, "ctx", None), "command_path", "megalm")
        bare = type(error).__name__ == "NoArgsIsHelpError"  # its message is the whole help
        line = "No sub-command given." if bare else " ".join(error.format_message().split())
        return f"{line}{_found(error.__cause__)} (see `{where} --help`)"
    if isinstance(error, OSError) and error.errno in atomic.FULL:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free some space there, then give the command again"
    if isinstance(error, OSError) and error.errno in _USERS_FILES:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            return f"{where}a file is where a directory is needed; choose another path"
        return f"{where}{error.strerror}; check the path, its permissions and the space left"
    if _is_of_pydantic(error):
        first = error.errors(include_url=False)[0]  # type: ignore[attr-defined]
        return f"`{'.'.join(map(str, first['loc']))}` = {first['input']!r}: {first['msg']}"
    return None


def _is_of_pydantic(error: BaseException | None) -> bool:
    return type(error).__name__ == "ValidationError" and type(error).__module__.startswith("pydantic")


def _found(cause: BaseException | None) -> str:
    """The value on the command line that is of the wrong type."""
    return f", found {cause.errors()[0]['input']!r}" if _is_of_pydantic(cause) else ""  # type: ignore[union-attr]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"megalm {megalm.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="YAML file of the run.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to change, e.g. optimizer.lr=3e-4", metavar="KEY=VALUE")
    ] = None,
    nproc: Nproc = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Insist on a checkpoint in the run directory (run.resume=always)."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model as CONFIG says.

    Goes on from the run directory's last good checkpoint if there is one, also under another layout.
    """
    from megalm.config import load_config
    from megalm.config.rlhf import RL_TASKS
    from megalm.config.rlhf_ranks import ranks_by_world

    resolved = load_config(config, [*(overrides or []), *(["run.resume=always"] if resume else [])])
    if nproc is not None and not launch.in_world():
        ranks_by_world(resolved, nproc)
        start_world(context, nproc)
    if resolved.task in RL_TASKS:
        from megalm.rlhf import run as rlhf_run

        print_json(rlhf_run.main(resolved), as_json)
        return
    from megalm.train import run

    print_json(run.main(resolved), as_json)


@app.command()
def bench(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="YAML file of the run.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values to change, e.g. batch.micro_batch_size=4", metavar="KEY=VALUE"),
    ] = None,
    nproc: Nproc = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 10,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before those.")] = 3,
    trace: Annotated[
        Path | None, typer.Option(help="Write rank 0's profiled steps here, to look at in chrome://tracing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time training steps of CONFIG: tokens a second, MFU, memory, where the time goes.

    Writes no checkpoint and leaves the run directory alone. Without data.train it takes random tokens (task pretrain).
    """
    from megalm.config import data_parallel_size, load_config

    resolved = load_config(config, overrides or [])
    if nproc is not None and not launch.in_world():
        data_parallel_size(resolved, nproc)
        start_world(context, nproc)
    from megalm.train import bench as benchmark

    result = benchmark.main(resolved, steps, warmup, trace)
    if as_json:
        print_json(result, as_json)
    elif os.environ.get("RANK", "0") == "0":
        print(benchmark.render(result))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show device, versions and kernels.

    Says which fused kernels are present and what stands in for the missing ones.
    """
    from megalm import doctor as examination

    report = examination.report()
    if as_json:
        print_json(report, as_json)
    else:
        print(examination.render(report))
