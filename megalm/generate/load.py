"""Loads a checkpoint under any layout for use without training."""

import logging
import os
from pathlib import Path

import torch.distributed as dist

from megalm.checkpoint import find_checkpoint, list_checkpoints, load_weights, read_config, tokenizer_of
from megalm.checkpoint.directory import tokenizer_places
from megalm.checkpoint.read import damage
from megalm.config import Config
from megalm.config.checks import check
from megalm.config.inference import for_inference
from megalm.config.schema import ParallelConfig
from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.generate.request import ModelRequest
from megalm.model.kernel_choice import without_unusable
from megalm.parallel.layout import Layout, create_layout
from megalm.tokenizer import Tokenizer, load_tokenizer

CLASSIFIER, REWARD_MODEL = "classifier", "reward model"
"""Kinds of models with a sequence head, whatever their architecture."""

logger = logging.getLogger(__name__)

# what each kind of model is good for here
_COMMANDS = {
    "gpt": "megalm generate",
    "bert": "megalm embed",
    CLASSIFIER: "megalm classify",
    REWARD_MODEL: "megalm score",
}


def open_model(request: ModelRequest, kind: str) -> tuple[Engine, Config, Tokenizer]:
    """Load the checkpoint under the request's layout; UserError if its model is of another kind. Collective.

    kind: the architecture, CLASSIFIER or REWARD_MODEL.
    """
    request.check_world_size(int(os.environ.get("WORLD_SIZE", "1")))
    candidates = _candidates(request)
    config = _read_config(candidates)
    head = config.model.sequence_head.outputs
    with_head = REWARD_MODEL if config.task == "reward" else CLASSIFIER
    found = with_head if head else config.model.architecture
    if found != kind:
        without = " without a sequence head" if kind in (CLASSIFIER, REWARD_MODEL) else ""
        what = f"a {with_head}" if head else f"a model of architecture `{found}`{without}"
        raise UserError(f"{candidates[0]} holds {what}: use `{_COMMANDS[found]}`")
    tokenizer = _open_tokenizer(candidates[0], config)
    config = without_unusable(_adapted(config, request, tokenizer))
    layout = create_layout(config.parallel, config.run.seed)
    engine = build_engine(config, layout, train=False)
    load_weights(engine, _newest_intact(candidates, layout))
    return engine, config, tokenizer


def _candidates(request: ModelRequest) -> list[Path]:
    """The checkpoint that is named, or those of the run directory, newest first."""
    newest = find_checkpoint(request.checkpoint, request.step)
    if request.step is not None or newest == Path(request.checkpoint):
        return [newest]
    return list(reversed(list_checkpoints(request.checkpoint).values()))


def _read_config(candidates: list[Path]) -> Config:
    """The configuration, in the newest checkpoint where it is whole: all of a run's describe one model."""
    for path in candidates[:-1]:
        try:
            return read_config(path)
        except UserError:
            continue  # `_newest_intact` will name it
    return read_config(candidates[-1])


def _newest_intact(candidates: list[Path], layout: Layout) -> Path:
    """The first candidate whose checksums hold. Collective.

    Not `megalm.checkpoint.newest_intact`, which sets damaged checkpoints aside: this command changes nothing.
    """
    shared = [candidates]
    dist.broadcast_object_list(shared, device=layout.device)
    for path in shared[0][:-1]:
        wrong = damage(path, layout)
        if wrong is None:
            return path
        if layout.rank == 0:
            logger.warning("%s; trying the checkpoint before it", wrong)
    return shared[0][-1]  # loading it tells what is wrong with it


def _adapted(config: Config, request: ModelRequest, tokenizer: Tokenizer) -> Config:
    """With this use's layout and precision in the place of the training's."""
    parallel = ParallelConfig(
        tensor_model_parallel_size=request.tensor_model_parallel_size,
        pipeline_model_parallel_size=request.pipeline_model_parallel_size,
        backend=config.parallel.backend,
        timeout_minutes=config.parallel.timeout_minutes,
    )
    config = for_inference(config, parallel, request.dtype)  # type: ignore[arg-type]
    if config.model.vocab_size is None:
        config.model.vocab_size = tokenizer.vocab_size
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.model.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )
    check(config)
    return config


def _open_tokenizer(checkpoint: Path, config: Config) -> Tokenizer:
    found = tokenizer_of(checkpoint, config)
    if found is None:
        raise UserError(
            f"{checkpoint}: no tokenizer in it or in its run and none in its config.yaml; copy the model's to "
            f"{tokenizer_places(checkpoint)[-1]}"
        )
    config.tokenizer.path = str(found)  # where the copy lies that goes with the checkpoint
    return load_tokenizer(found)
