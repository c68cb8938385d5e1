"""Where a job runs and what it asks for."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from megalm.config.load import explain, override, read_yaml
from megalm.config.section import Section
from megalm.errors import UserError

# options of sbatch: those that a setting stands for, and those by which jobs are followed and queued again
_SETTING_OF = {
    **{
        name: name for name in ("nodes", "gpus_per_node", "time", "partition", "account", "qos", "constraint")
    },
    **{"exclude": "exclude", "mem": "mem_gb", "cpus_per_task": "cpus_per_node"},
    "ntasks_per_node": "processes_per_node",
}
_OURS = {
    *("array", "dependency", "error", "kill_on_invalid_dep", "no_requeue", "ntasks", "open_mode", "output"),
    *("requeue", "signal"),
}
_TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")


class ClusterSettings(Section):
    """What `megalm launch` asks a cluster for."""

    kind: Literal["slurm", "local"] = Field(
        "slurm", description="SLURM, or processes of this machine that go on without the terminal."
    )
    nodes: int = Field(1, ge=1, description="Machines.")
    min_nodes: int | None = Field(
        None,
        ge=1,
        description="Fewer will do: each time the job starts it takes what it gets of min_nodes to nodes, with the same global batch.",
    )
    gpus_per_node: int = Field(
        0, ge=0, description="GPUs of each, a process for each of them; 0: none are asked for."
    )
    processes_per_node: int | None = Field(
        None, ge=1, description="Processes on each machine; default: one for each GPU, or one."
    )
    cpus_per_node: int | None = Field(None, ge=1, description="Cores of each; default: the cluster's own.")
    mem_gb: float | None = Field(None, gt=0, description="Memory of each, in GB; default: the cluster's own.")
    time: str = Field("24:00:00", description="Time limit: [days-]hours:minutes[:seconds], in quotes.")
    partition: str | None = Field(None, description="Partition; default: the cluster's own.")
    account: str | None = Field(None, description="Whom the time is charged to.")
    qos: str | None = Field(None, description="Quality of service.")
    constraint: str | None = Field(None, description="Features that nodes must have.")
    exclude: str | None = Field(None, description="Nodes that are not to be used.")
    container: str | None = Field(
        None, description="Image that the processes run in: by pyxis (srun --container-image) or apptainer."
    )
    container_runtime: Literal["pyxis", "apptainer"] = Field("pyxis", description="What runs the image.")
    container_mounts: list[str] = Field(
        default_factory=list, description="Directories to be seen in it, HOST:INSIDE."
    )
    python: str | None = Field(
        None,
        description="Interpreter on the nodes; default: the one that runs this command, python3 in a container.",
    )
    setup: list[str] = Field(
        default_factory=list,
        description="Shell lines run in the job before the processes start (module load ...).",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the processes.")
    sbatch: dict[str, Any] = Field(
        default_factory=dict, description="Further options of sbatch by their long names."
    )
    save_seconds: int = Field(
        120, ge=10, description="So long before the time limit a job is told to save, end and queue again."
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="So often a job starts again after a failure, from the last good checkpoint; "
        "ends by time limits and preemption do not count.",
    )
    at_once: int = Field(256, ge=1, description="Runs of a sweep at the same time.")

    @model_validator(mode="after")
    def _nodes_fit(self) -> "ClusterSettings":
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is more than nodes {self.nodes}")
        if self.kind == "local" and self.nodes > 1:
            raise ValueError(f"local is this machine alone: nodes 1, not {self.nodes}")
        if self.kind == "local" and self.container:
            raise ValueError("container is for slurm: set container=null for local")
        return self

    @model_validator(mode="after")
    def _can_save_in_time(self) -> "ClusterSettings":
        if self.save_seconds >= 60 * self.minutes:
            raise ValueError(
                f"time {self.time} leaves nothing before the {self.save_seconds} s to save in: more time, or less save_seconds"
            )
        return self

    @field_validator("env", mode="before")
    @classmethod
    def _numbers_are_text(cls, value: Any) -> Any:
        """YAML reads OMP_NUM_THREADS: 8 as a number."""
        return numbers_as_text(value)

    @field_validator("sbatch")
    @classmethod
    def _are_not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            plain = name.lstrip("-").replace("-", "_")
            if plain in _SETTING_OF:
                raise ValueError(f"{name} has a setting of its own: {_SETTING_OF[plain]}")
            if plain in _OURS:
                raise ValueError(f"{name} is set by megalm itself: leave it out")
            if name.startswith("-") or len(name) == 1:
                raise ValueError(f"{name} is no long name as in `reservation: NAME`, without --")
        return value

    @field_validator("time", mode="before")
    @classmethod
    def _is_time(cls, value: Any) -> Any:
        """YAML reads 12:00:00 as 43200."""
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            raise ValueError(
                'it has the form [days-]hours:minutes[:seconds], in a file in quotes: "12:00:00", "2-00:00"'
            )
        return value

    @property
    def processes(self) -> int:
        """On each machine."""
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def minutes(self) -> int:
        """The time limit, rounded up."""
        match = _TIME.fullmatch(self.time)
        assert match is not None
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def numbers_as_text(value: Any) -> Any:
    """Values by name, those that are numbers as texts; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {
        name: str(each) if isinstance(each, int | float) and not isinstance(each, bool) else each
        for name, each in value.items()
    }


def load_settings(path: Path | None, changes: Sequence[str]) -> ClusterSettings:
    """The settings of a YAML file, with `key=value` applied; UserError with one line."""
    return parse_settings(
        read_yaml(path) if path else {}, changes, str(path) if path else "the cluster's settings"
    )


def parse_settings(content: Any, changes: Sequence[str], where: str) -> ClusterSettings:
    """The same of what a file's part holds; `where` names it in errors."""
    if not isinstance(content, dict):
        raise UserError(f"{where}: settings by name are expected, e.g. `partition: gpu`")
    try:
        return ClusterSettings.model_validate(override(content, changes))
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, ClusterSettings)}") from None
