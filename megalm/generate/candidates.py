"""Which checkpoint is meant, and whether its model can be laid out as asked; imports no torch."""

from pathlib import Path

from megalm.checkpoint.directory import find_checkpoint, list_checkpoints, read_config
from megalm.config import Config
from megalm.config.checks import check
from megalm.config.inference import for_inference
from megalm.config.schema import ParallelConfig
from megalm.errors import UserError
from megalm.generate.request import ModelRequest


def find_candidates(request: ModelRequest) -> list[Path]:
    """The checkpoint that is named, or those of the run directory, newest first."""
    newest = find_checkpoint(request.checkpoint, request.step)
    if request.step is not None or newest == Path(request.checkpoint):
        return [newest]
    return list(reversed(list_checkpoints(request.checkpoint).values()))


def read_newest_config(candidates: list[Path]) -> Config:
    """The configuration, in the newest checkpoint where it is whole: all of a run's describe one model."""
    for path in candidates[:-1]:
        try:
            return read_config(path)
        except UserError:
            continue  # loading will name it
    return read_config(candidates[-1])


def lay_out(config: Config, request: ModelRequest) -> Config:
    """With this use's layout and precision in the place of the training's; UserError where the model cannot be laid out so."""
    parallel = ParallelConfig(
        tensor_model_parallel_size=request.tensor_model_parallel_size,
        pipeline_model_parallel_size=request.pipeline_model_parallel_size,
        backend=config.parallel.backend,
        timeout_minutes=config.parallel.timeout_minutes,
    )
    config = for_inference(config, parallel, request.dtype)  # type: ignore[arg-type]
    check(config)
    return config


def check_layout(request: ModelRequest, world_size: int) -> None:
    """Raise UserError where so many processes cannot run the request's model: before they are started."""
    request.check_world_size(world_size)
    lay_out(read_newest_config(find_candidates(request)), request)
