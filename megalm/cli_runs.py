"""`megalm runs`: what became of runs and of their jobs."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megalm.cli_launch import refuse_twice
from megalm.cli_options import AsJson
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.cluster.record import Job

_LOOK_SECONDS = 0.5  # for new lines of a log
_ASK_SECONDS = 5  # for the state of a job

runs_app = typer.Typer(
    help="Runs and their jobs: list, status, logs, wait, stop, resubmit.", rich_markup_mode=None
)
RunDirectory = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")]
RunDirectories = Annotated[list[Path], typer.Argument(help="Run directories.", metavar="RUN...")]


@runs_app.command("list")
def list_runs(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders with runs; default: runs.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs: step, loss, tokens a second, time left, and the state of the newest job."""
    from megalm.cluster.state import find_runs, state_of

    states = []
    for path in find_runs(folders or [Path("runs")]):
        try:
            states.append(state_of(path))
        except UserError as error:  # one that cannot be read does not hide the others
            typer.echo(f"note: {error}", err=True)
    if as_json:
        typer.echo(json.dumps([asdict(state) for state in states]))
        return
    rows = [("run", "task", "step", "loss", "tokens/s", "left", "job", "state")]
    for state in states:
        rows.append(
            (
                state.directory,
                state.task,
                "" if state.steps is None else f"{state.step}/{state.steps}",
                "" if state.loss is None else f"{state.loss:.4g}",
                "" if state.tokens_per_second is None else f"{state.tokens_per_second:,.0f}",
                _duration(state.seconds_left),
                state.job or "",
                state.job_state or "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@runs_app.command()
def status(run: RunDirectory, as_json: AsJson = False) -> None:
    """What is known of one run: how far it is, its job, how often it started, what failed."""
    from megalm.cluster.state import state_of

    state = state_of(run)
    if as_json:
        typer.echo(json.dumps(asdict(state)))
        return
    for name, value in asdict(state).items():
        if name == "seconds_left":
            name, value = "time left", _duration(value)
        elif name == "seconds_since" and value is not None:
            name, value = "last line of metrics", f"{_duration(value)} ago"
        if value not in (None, "") and not (name == "step" and state.steps is None):
            typer.echo(f"{name.replace('_', ' ')}: {value}")


@runs_app.command()
def logs(
    run: RunDirectory,
    node: Annotated[int, typer.Option(help="Number of the node in the job.")] = 0,
    lines: Annotated[int, typer.Option(min=1, help="Last lines to show.")] = 40,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what is written until the job ends.")
    ] = False,
) -> None:
    """Show the output of the newest job."""
    from megalm.cluster.record import log_path
    from megalm.cluster.state import is_over, job_state

    job = _newest(run)
    path = log_path(job, node)
    told = ""
    while not path.exists():
        state = job_state(run, job)
        if not follow or is_over(state):
            raise UserError(f"{path} does not exist: job {job.id} is {state}, or has no node {node}")
        if state != told:
            typer.echo(f"job {job.id} is {state}: its output follows when it starts", err=True)
        told = state
        time.sleep(_ASK_SECONDS)
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file.readlines()[-lines:]:
            typer.echo(line, nl=False)
        asked = time.monotonic()
        while follow:
            if line := file.readline():
                typer.echo(line, nl=False)
                continue
            if time.monotonic() - asked > _ASK_SECONDS:
                if is_over(job_state(run, job)):
                    typer.echo(file.read(), nl=False)
                    return
                asked = time.monotonic()
            time.sleep(_LOOK_SECONDS)


@runs_app.command()
def wait(
    runs: RunDirectories,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 10,
) -> None:
    """Return when the newest jobs of runs are over; with exit code 1 where one did not come to its end."""
    from megalm.cluster.state import is_over, job_state

    failed = False
    for run in runs:
        job = _newest(run)
        while not is_over(state := job_state(run, job)):
            time.sleep(every)
        typer.echo(f"{run}: job {job.id} {state}")
        failed |= state != "COMPLETED"
    raise typer.Exit(failed)


@runs_app.command()
def stop(
    runs: RunDirectories,
    at_once: Annotated[bool, typer.Option("--now", help="Without saving.")] = False,
) -> None:
    """Tell the newest jobs of runs to finish their step, save and end; jobs that wait are cancelled."""
    from megalm.cluster.state import is_over, job_state, stop_job

    for run in runs:
        job = _newest(run)
        if is_over(state := job_state(run, job)):
            typer.echo(f"{run}: job {job.id} is {state} already")
            continue
        stop_job(run, job, at_once)
        typer.echo(f"{run}: job {job.id} was told to {'end' if at_once else 'save and end'}")


@runs_app.command()
def resubmit(
    run: RunDirectory,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Settings of the cluster that differ now, e.g. nodes=4.")
    ] = None,
) -> None:
    """Submit the run again with the configuration of its newest job; it goes on from its last checkpoint."""
    from megalm.cluster.checks import check_works
    from megalm.cluster.record import folder_of
    from megalm.cluster.settings import parse_settings
    from megalm.cluster.submit import Work, submit_each
    from megalm.config import load_config
    from megalm.config.load import assign
    from megalm.run_files import CONFIG

    before = _newest(run)
    refuse_twice(run)
    run = run.absolute()
    settings = parse_settings(before.settings, set_ or [], "the settings of the job before")
    if not Path(before.directory).is_dir():
        raise UserError(
            f"{before.directory}, from where the job before was launched, is gone; launch the run anew"
        )
    os.chdir(before.directory)
    config = None if before.command else load_config(folder_of(run) / CONFIG, [assign("run.dir", str(run))])
    work = Work(run, settings, config, before.command)
    for line in check_works([work]):
        typer.echo(f"note: {line}", err=True)
    [job] = submit_each([work])
    typer.echo(f"job {job.id}")


def _newest(run: Path) -> "Job":
    from megalm.cluster.record import jobs_of

    if not (jobs := jobs_of(run)):
        raise UserError(f"{run}: no job of it was submitted by megalm launch; megalm runs list shows runs")
    return jobs[-1]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes // 60}:{minutes % 60:02d} h"
