"""What is looked at before jobs are submitted, so that none waits in a queue for hours to fail at once."""

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from megalm.checkpoint.directory import find_checkpoint
from megalm.cluster import slurm
from megalm.cluster.place import usable_nodes
from megalm.cluster.settings import ClusterSettings
from megalm.cluster.submit import Work
from megalm.config import Config
from megalm.config.rlhf_ranks import ranks_by_world
from megalm.dataset.indexed import IndexedDataset, idx_path
from megalm.dataset.inspect import check_tokenizer, verify
from megalm.errors import UserError
from megalm.tokenizer.load import load_tokenizer

_BYTES_PER_PARAMETER = 16  # weights, main weights and two moments, at most fp32


def check_works(works: Sequence[Work], verify_data: bool = False) -> list[str]:
    """Refuse with a UserError what cannot run; return what there is to know before it is submitted.

    Files that an earlier work is to make need not be there. verify_data: read all token files, too, and compare their hashes.
    """
    told: list[str] = []
    for number, work in enumerate(works):
        coming = _made_by(works[:number])
        try:
            if work.config is not None:
                told += _check_run(work.config, work.settings, coming, verify_data)
            elif work.settings.nodes > 1:
                told.append(
                    f"{work.directory.name}: a command runs on each of its {work.settings.nodes} nodes"
                )
            if work.settings.kind == "slurm":
                told += _check_partition(work.settings)
        except UserError as error:
            raise UserError(f"{work.directory}: {error}" if len(works) > 1 else str(error)) from None
        if work.settings.container:
            told += _check_container(work)
    return list(dict.fromkeys(told))


def _made_by(works: Sequence[Work]) -> Callable[[str], bool]:
    """Whether what lies at a path is to be made by one of these works: in its directory, or named by its command."""

    def is_coming(path: str) -> bool:
        for work in works:
            if Path(path).absolute().is_relative_to(work.directory.absolute()) or path in (
                work.command or ""
            ):
                return True
        return False

    return is_coming


def _check_run(
    config: Config, settings: ClusterSettings, is_coming: Callable[[str], bool], verify_data: bool
) -> Iterable[str]:
    if settings.min_nodes is None:
        ranks_by_world(config, settings.nodes * settings.processes)
    else:
        fits = usable_nodes(config, settings.min_nodes, settings.processes)
        if fits < settings.min_nodes:
            raise UserError(
                f"the layout cannot share a batch among {settings.min_nodes} nodes (min_nodes), only among {fits}: set min_nodes {fits}"
            )
    if config.run.load and not is_coming(config.run.load):
        find_checkpoint(config.run.load)
    tokenizer = None
    if config.tokenizer.path and not is_coming(config.tokenizer.path):
        tokenizer = load_tokenizer(config.tokenizer.path)
    recorded = []
    for source in [*config.data.train, *config.data.valid]:
        if is_coming(source.path) and not idx_path(source.path).exists():
            yield f"{source.path}: not there yet, an earlier step has to make it"
            continue
        dataset = IndexedDataset(source.path)
        recorded.append((dataset.sidecar or {}).get("vocab_size", 0))
        if tokenizer is not None:
            check_tokenizer(dataset, tokenizer)
        if verify_data:
            verify(source.path)
    if config.parallel.tensor_model_parallel_size > settings.processes:
        yield (
            f"tensor parallelism over {config.parallel.tensor_model_parallel_size} ranks leaves the node "
            f"({settings.processes} processes): slow"
        )
    vocabulary = config.model.vocab_size or (tokenizer.vocab_size if tokenizer else max(recorded, default=0))
    if vocabulary:  # unknown where an earlier step is to make the tokenizer
        yield from _check_disk(config, vocabulary)


def _check_disk(config: Config, vocabulary: int) -> list[str]:
    directory = Path(config.run.dir).absolute()
    place = next(path for path in (directory, *directory.parents) if path.exists())
    model = config.model.model_copy(update={"vocab_size": vocabulary})
    needed, free = model.num_parameters() * _BYTES_PER_PARAMETER, shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"a checkpoint takes up to {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB left: choose another run.dir"
        )
    kept = (config.checkpoint.keep_last or 1) + 1
    if needed * kept > free:
        return [
            f"{kept} checkpoints take up to {needed * kept / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB left"
        ]
    return []


def _check_partition(settings: ClusterSettings) -> list[str]:
    """Against what SLURM says of the partition: a job beyond its limits would wait for ever."""
    found = {each["PartitionName"]: each for each in slurm.show("partition")}
    wanted = settings.partition.split(",") if settings.partition else []
    for name in wanted:
        if name not in found:
            raise UserError(f"there is no partition {name}; there are {', '.join(found)}")
    wanted = wanted or [name for name, each in found.items() if each.get("Default") == "YES"]
    if not wanted:
        raise UserError(f"there is no default partition: give --partition, of {', '.join(found)}")
    refusals, told = [], []
    for name in wanted:
        try:
            _check_limits(settings, found[name])
        except UserError as error:
            refusals.append(error)
        if found[name].get("State") not in (None, "UP"):
            told.append(f"partition {name} is {found[name]['State']}: the job will wait")
    if len(refusals) == len(wanted):  # of several partitions one will do
        raise refusals[0]
    return told


def _check_limits(settings: ClusterSettings, partition: slurm.Fields) -> None:
    name = partition["PartitionName"]
    limits = [int(partition[key]) for key in ("TotalNodes", "MaxNodes") if partition.get(key, "").isdigit()]
    least = settings.min_nodes or settings.nodes
    if limits and least > min(limits):
        raise UserError(f"partition {name} gives a job at most {min(limits)} nodes, not {least}")
    limit = _minutes(partition.get("MaxTime", ""))
    if limit is not None and settings.minutes > limit:
        raise UserError(
            f"partition {name} allows {partition['MaxTime']}, not {settings.time}: give a smaller --time"
        )


def _check_container(work: Work) -> list[str]:
    """What a container lacks that pyxis gives nothing of by itself; apptainer shows it $HOME and the working directory."""
    settings = work.settings
    places = [mount.split(":")[0] for mount in settings.container_mounts]
    unseen = [
        str(path)
        for path in (Path.cwd(), work.directory.absolute())
        if not any(path.is_relative_to(place) for place in places)
    ]
    told = [f"in the container {' and '.join(unseen)} must be seen: container_mounts"] if unseen else []
    return [*told, "in the container scontrol must run, by which a job queues itself again"]


def _minutes(text: str) -> int | None:
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if match is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes
