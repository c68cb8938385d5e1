"""`megalm launch`: runs, sweeps and pipelines as jobs of a cluster."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megalm.cli_options import AsJson
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.cluster.submit import Work


def launch_job(
    config: Annotated[str, typer.Argument(help="YAML file of a run, or of a pipeline.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values to change, e.g. optimizer.lr=3e-4", metavar="KEY=VALUE")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="slurm (default), or local: this machine, without the terminal.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML file of the cluster's settings (docs/slurm.md lists them).")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of each; 0: CPUs alone.")] = None,
    processes_per_node: Annotated[int | None, typer.Option(help="Default: one for each GPU, or one.")] = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="[days-]hours:minutes[:seconds].")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, e.g. mem_gb=64 or 'setup=[module load cuda]'."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE,VALUE,...: a run for each value, and for each combination where given again; one array of jobs.",
        ),
    ] = None,
    verify_data: Annotated[
        bool, typer.Option("--verify-data", help="Read all token files first and compare their hashes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print scripts and which rank lies where; submit nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a run as a job through submitit; it saves, queues again and goes on at time limits, preemption and failures.

    With --sweep many runs, and of a file with `steps` a pipeline, each step as a job that waits for those it needs.
    """
    from megalm.cluster.checks import check_works
    from megalm.cluster.submit import submit_each, submit_sweep
    from megalm.config.load import assign

    named = {
        "kind": cluster,
        "nodes": nodes,
        "gpus_per_node": gpus_per_node,
        "processes_per_node": processes_per_node,
        "time": time_limit,
        "partition": partition,
        "account": account,
    }
    changes = [assign(name, value) for name, value in named.items() if value is not None]
    works, folder = _works(config, overrides or [], settings, [*changes, *(set_ or [])], sweep or [])
    for line in check_works(works, verify_data):
        typer.echo(f"note: {line}", err=True)
    if dry_run:
        _show(works, folder)
        return
    for work in works:
        refuse_twice(work.directory)
    jobs = submit_each(works) if folder is None else submit_sweep(works, folder)
    if as_json:
        typer.echo(json.dumps([asdict(job) for job in jobs]))
        return
    for work, job in zip(works, jobs, strict=True):
        typer.echo(f"job {job.id}  {work.directory}")
    first = shlex.quote(str(works[0].directory))
    typer.echo(f"megalm runs status {first}   megalm runs logs {first} --follow")


def _works(
    path: str, overrides: list[str], file: Path | None, changes: list[str], sweeps: list[str]
) -> "tuple[list[Work], Path | None]":
    """What to submit; of a sweep with the folder of what its runs share."""
    from megalm.cluster.pipeline import is_pipeline, load_pipeline
    from megalm.cluster.record import folder_of
    from megalm.cluster.settings import load_settings
    from megalm.cluster.submit import Work
    from megalm.cluster.sweep import combinations, run_directory
    from megalm.config import load_config
    from megalm.config.load import assign

    if is_pipeline(path):
        if sweeps or file is not None:
            raise UserError(
                f"{path} is a pipeline: its settings stand in it (cluster), and it takes no --sweep"
            )
        return load_pipeline(path, overrides, changes), None
    settings = load_settings(file, changes)
    if not sweeps:
        config = load_config(path, overrides)
        return [Work(Path(config.run.dir), settings, config)], None
    base = load_config(path, overrides).run.dir
    works = []
    for chosen in combinations(sweeps):
        directory = run_directory(base, chosen)
        config = load_config(path, [*overrides, *chosen, assign("run.dir", str(directory))])
        works.append(Work(directory, settings, config))
    return works, folder_of(Path(base).absolute())


def _show(works: "list[Work]", folder: Path | None) -> None:
    """folder: of a sweep."""
    from megalm.cluster.place import describe
    from megalm.cluster.submit import script_of

    for work in works if folder is None else works[:1]:
        settings = work.settings
        if folder is not None:
            typer.echo(f"# an array of {len(works)}: {', '.join(str(each.directory) for each in works)}")
        needed = [f"JOB_OF_{works[number].directory.name}" for number in work.needs]
        if settings.kind == "slurm":
            typer.echo(script_of(work, needed, folder, 1 if folder is None else len(works)).rstrip())
        typer.echo(f"# job: {work.command or f'megalm train, {settings.processes} process(es) on each node'}")
        if work.config is not None:
            least = settings.min_nodes or settings.nodes
            for nodes in sorted({least, settings.nodes}):
                typer.echo(f"# ranks on {nodes} node(s), which follow each other by the network's topology:")
                for line in describe(work.config, nodes, settings.processes):
                    typer.echo(f"#   {line}")
            typer.echo(
                f"# a collective that waits longer than {work.config.parallel.timeout_minutes:g} min fails (parallel.timeout_minutes); "
                "GLOO_/NCCL_SOCKET_IFNAME: the interface that leads to the other nodes, unless set"
            )


def refuse_twice(directory: Path) -> None:
    """Raise UserError where a job of the run waits or runs."""
    from megalm.cluster.record import jobs_of
    from megalm.cluster.state import is_over, job_state

    jobs = jobs_of(directory)
    if jobs and not is_over(state := job_state(directory, jobs[-1])) and state != "UNKNOWN":
        raise UserError(
            f"{directory} has job {jobs[-1].id} already, which is {state}: "
            f"megalm runs stop {shlex.quote(str(directory))}, or choose another run.dir"
        )
