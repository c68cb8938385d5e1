"""Models that are not trained beside the one that is, on the same ranks: teachers, references."""

from pathlib import Path

from megalm.checkpoint import find_checkpoint, load_weights, read_config, tokenizer_of
from megalm.config import Config
from megalm.config.checks import check
from megalm.config.inference import Dtype, for_inference
from megalm.config.schema import ParallelConfig
from megalm.dataset.sidecar import read_sidecar
from megalm.engine.build import build_engine
from megalm.engine.megatron import MegatronEngine
from megalm.errors import UserError
from megalm.model.kernel_choice import without_unusable
from megalm.parallel.layout import Layout
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.load import load_tokenizer


def frozen_config(run: Config, role: str, checkpoint: Path, dtype: Dtype | None) -> Config:
    """The configuration of the model in `checkpoint` as it computes for `run`: its own model, the run's samples and layout.

    UserError, naming its `role`, where the layout does not divide it or its positions end before the run's samples; see
    `as_frozen`.
    """
    stored = read_config(checkpoint)
    if stored.model.architecture != run.model.architecture:
        raise UserError(
            f"the {role} {checkpoint} is of model.architecture `{stored.model.architecture}`, this run's model of "
            f"`{run.model.architecture}`: both must be of one"
        )
    config = as_frozen(run, stored, dtype)
    try:
        check(config)
    except UserError as error:
        raise UserError(f"the {role} {checkpoint} under this run's layout: {error}") from None
    return without_unusable(config)


def as_frozen(run: Config, stored: Config, dtype: Dtype | None) -> Config:
    """The configuration of the model that `stored` describes as it computes, frozen, for `run`, in the run's format by default.

    It shares tensor, sequence, pipeline, context and expert parallelism with the run; its layers fall into equal parts. It
    always runs on engine `megatron`, whole on each data-parallel rank.
    """
    parallel = run.parallel.model_dump(exclude={"pipeline_layers"}) | {
        "zero_stage": 0,
        "overlap_param_gather": False,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
    }
    if not stored.model.moe.num_experts:
        parallel["expert_model_parallel_size"] = 1
    config = for_inference(stored, ParallelConfig(**parallel), dtype or run.precision.dtype)
    config.batch, config.data = run.batch, run.data
    config.model.make_vocab_size_divisible_by = run.model.make_vocab_size_divisible_by
    return config


def check_vocabulary(run: Config, tokenizer: Tokenizer | None, role: str, checkpoint: Path) -> None:
    """UserError where the model in `checkpoint` has another tokenizer, or another number of tokens, than the run."""
    config = read_config(checkpoint)
    theirs = config.model.vocab_size
    if theirs is not None and theirs != run.model.vocab_size:
        raise UserError(
            f"the {role} {checkpoint} has a vocabulary of {theirs}, this model of {run.model.vocab_size}: set "
            f"model.vocab_size={theirs} if they share the tokenizer"
        )
    ours = tokenizer.hash if tokenizer else tokenizer_of_data(run)
    path = tokenizer_of(checkpoint, config)
    if ours is None or path is None:
        return
    found = load_tokenizer(path).hash
    if found != ours:
        raise UserError(
            f"the {role} {checkpoint} was trained with the tokenizer {found}, this run uses {ours}: both must be one"
        )


def tokenizer_of_data(run: Config) -> str | None:
    """Hash of the tokenizer that the training data were made with, as recorded beside them."""
    hashes = ((read_sidecar(source.path) or {}).get("tokenizer_hash") for source in run.data.train)
    return next((found for found in hashes if found), None)


def load_frozen(config: Config, layout: Layout, checkpoint: Path) -> MegatronEngine:
    """The model of `checkpoint`, configured by `frozen_config`, as an engine without optimizer. Collective."""
    engine = build_engine(config, layout, train=False)
    assert isinstance(engine, MegatronEngine)
    for chunk in engine.chunks:
        chunk.requires_grad_(False)
    load_weights(engine, checkpoint)
    return engine


def find_frozen(path: str, role: str) -> Path:
    """The checkpoint at `path`; UserError that names the `role`."""
    try:
        return find_checkpoint(path)
    except UserError as error:
        raise UserError(f"the {role}: {error}") from None
