"""The settings that say where the tasks of a job run."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from megalm.config.load import explain, override
from megalm.config.section import Section
from megalm.errors import UserError


class SlurmSettings(Section):
    """How the tasks of a build become SLURM jobs: an array of jobs a stage, each stage after the one before."""

    partition: str = Field("", description="Partition; by default the cluster's own.")
    time: str = Field("24:00:00", description="Time limit of a job.")
    cpus_per_task: int = Field(1, ge=1, description="Cores of a task; more give it more memory.")
    mem_per_cpu_gb: int = Field(4, ge=1, description="Memory of a core, in GB.")
    tasks_per_job: int = Field(1, ge=1, description="Tasks that one job runs in turn.")
    max_array_size: int = Field(
        1001, ge=1, description="The cluster's limit on the size of an array of jobs."
    )
    qos: str = Field("", description="Quality of service; by default the cluster's own.")
    setup: str = Field(
        "", description="Shell commands that make megalm's environment ready, run in each job."
    )
    sbatch: dict[str, str] = Field({}, description="Further options of sbatch, e.g. {account: name}.")

    @field_validator("time", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """YAML reads 12:00:00 as 43200."""
        if isinstance(value, int):
            raise ValueError('write it in quotes, e.g. "12:00:00"')
        return value


class RaySettings(Section):
    """How the tasks of a build use a Ray cluster."""

    address: str = Field("auto", description="Address of the cluster; auto finds the one of this machine.")
    cpus_per_task: int = Field(1, ge=1, description="Cores of a task.")
    mem_per_cpu_gb: float = Field(2, gt=0, description="Memory of a core, in GB.")


class ExecutorSettings(Section):
    """Where the tasks run."""

    kind: Literal["local", "slurm", "ray"] = Field("local", description="local processes, slurm or ray.")
    workers: int | None = Field(
        None, ge=1, description="Tasks at a time; by default the cores (local) or no limit (slurm, ray)."
    )
    slurm: SlurmSettings = Field(SlurmSettings(), description="Options of kind slurm.")
    ray: RaySettings = Field(RaySettings(), description="Options of kind ray.")


def parse_settings(changes: Sequence[str]) -> ExecutorSettings:
    """The defaults with `key=value` applied, e.g. kind=slurm or slurm.partition=cpu; raises UserError with one line."""
    try:
        return ExecutorSettings.model_validate(override({}, changes))
    except ValidationError as error:
        raise UserError(f"executor: {explain(error, ExecutorSettings)}") from None
