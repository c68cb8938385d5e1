"""Loads a checkpoint under any layout for use without training."""

import logging
import os
from pathlib import Path

import torch.distributed as dist

from megalm.checkpoint import load_weights
from megalm.checkpoint.read import damage
from megalm.config import Config
from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.generate.candidates import find_candidates, lay_out, read_newest_config
from megalm.generate.request import ModelRequest
from megalm.generate.tokenizing import open_tokenizer
from megalm.model.kernel_choice import without_unusable
from megalm.parallel.layout import Layout, create_layout
from megalm.tokenizer import Tokenizer

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


def open_model(request: ModelRequest, *kinds: str) -> tuple[Engine, Config, Tokenizer]:
    """Load the checkpoint under the request's layout; UserError if its model is of none of `kinds`. Collective.

    kinds: architectures, CLASSIFIER, REWARD_MODEL.
    """
    return open_checkpoint(request, *kinds)[:3]


def open_checkpoint(request: ModelRequest, *kinds: str) -> tuple[Engine, Config, Tokenizer, Path]:
    """The same, with the checkpoint that was loaded: the newest of a run may be damaged. Collective."""
    request.check_world_size(int(os.environ.get("WORLD_SIZE", "1")))
    candidates = find_candidates(request)
    config = read_newest_config(candidates)
    head = config.model.sequence_head.outputs
    with_head = REWARD_MODEL if config.task == "reward" else CLASSIFIER
    found = with_head if head else config.model.architecture
    if found not in kinds:
        without = " without a sequence head" if kinds[0] in (CLASSIFIER, REWARD_MODEL) else ""
        what = f"a {with_head}" if head else f"a model of architecture `{found}`{without}"
        raise UserError(f"{candidates[0]} holds {what}: use `{_COMMANDS[found]}`")
    tokenizer = open_tokenizer(candidates[0], config)
    config = without_unusable(_with_vocabulary(lay_out(config, request), tokenizer))
    layout = create_layout(config.parallel, config.run.seed)
    engine = build_engine(config, layout, train=False)
    checkpoint = _newest_intact(candidates, layout)
    load_weights(engine, checkpoint)
    return engine, config, tokenizer, checkpoint


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


def _with_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    if config.model.vocab_size is None:
        config.model.vocab_size = tokenizer.vocab_size
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.model.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )
    return config
