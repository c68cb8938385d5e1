"""The first weights of a student that begins as some layers of its teacher."""

import shutil
from pathlib import Path

import torch.distributed as dist

from megalm.checkpoint import load_weights, read_config
from megalm.config import Config
from megalm.config.model import MAY_CHANGE
from megalm.convert.layers import check_layers, keep_layers
from megalm.engine.base import Engine
from megalm.errors import UserError


def check_student(config: Config, teacher: Path) -> None:
    """UserError where the student is no copy of the teacher with fewer layers, though it is to begin as one."""
    layers = config.distill.init_from_teacher_layers
    if layers is None:
        return
    theirs = read_config(teacher).model
    check_layers(theirs, layers, teacher)
    others = MAY_CHANGE | {"num_layers"}
    expected = theirs.model_dump(exclude=others)
    for name, value in config.model.model_dump(exclude=others).items():
        if expected[name] != value:
            raise UserError(
                f"model.{name} is {value}, the teacher's {expected[name]}: a student that begins with "
                f"distill.init_from_teacher_layers {layers} has the teacher's shape but for num_layers"
            )


def take_teacher_layers(engine: Engine, config: Config, teacher: Path, directory: Path) -> None:
    """Read those layers of the teacher that the configuration names into the engine, by way of `directory`. Collective."""
    layers, folder = config.distill.init_from_teacher_layers, directory / "teacher_layers"
    assert layers is not None
    wrong: list[str | None] = [None]
    if engine.layout.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
        try:
            keep_layers(teacher, folder, layers)
        except UserError as error:
            wrong = [str(error)]
    dist.broadcast_object_list(wrong, device=engine.layout.device)
    if wrong[0] is not None:
        raise UserError(wrong[0])
    load_weights(engine, folder)
    dist.barrier()
    if engine.layout.rank == 0:
        shutil.rmtree(folder)
