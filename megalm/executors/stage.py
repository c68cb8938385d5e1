"""A stage of a job: tasks that may run in any order and on any machine, before the next stage begins."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep


class Stage(NamedTuple):
    """One pipeline, run as `tasks` tasks before the next stage begins.

    What its last step yields, if anything, are documents.
    """

    name: str
    tasks: int
    pipeline: "list[PipelineStep]"
