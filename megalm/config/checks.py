"""Layouts that cannot work are refused here, with the arithmetic, before any process group exists."""

from megalm.config.checks_deepspeed import check_deepspeed
from megalm.config.pipeline import check_microbatches, layers_per_chunk
from megalm.config.schema import Config
from megalm.errors import UserError


def data_parallel_size(config: Config, world_size: int) -> int:
    """Return how many copies of the model `world_size` processes hold; UserError where it is not a whole number."""
    parallel, batch = config.parallel, config.batch
    copies, rest = divmod(world_size, parallel.model_parallel_size)
    if rest or copies == 0:
        sizes = f"TP {parallel.tensor_model_parallel_size} x PP {parallel.pipeline_model_parallel_size}"
        if parallel.context_parallel_size > 1:
            sizes += f" x CP {parallel.context_parallel_size}"
        raise UserError(
            f"the layout needs a multiple of {sizes} = {parallel.model_parallel_size} processes, "
            f"but there are {world_size}: change parallel.* or --nproc"
        )
    per_microbatch = batch.micro_batch_size * copies
    if batch.global_batch_size % per_microbatch:
        raise UserError(
            f"batch.global_batch_size {batch.global_batch_size} is not a multiple of micro_batch_size "
            f"{batch.micro_batch_size} x data-parallel size {copies} = {per_microbatch} "
            f"(data-parallel size = {world_size} processes / {parallel.model_parallel_size})"
        )
    check_microbatches(config, copies)
    return copies


def check(config: Config) -> None:
    """Raise UserError if the model, the batch or the layout cannot work on any number of processes."""
    _check_model(config)
    check_deepspeed(config)
    _check_parallel(config)
    _check_schedule(config)


def _divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise UserError(
            f"{name} {value} is not a multiple of {by_name} {by}: {value} / {by} = {value / by:.3g}"
        )


def _check_model(config: Config) -> None:
    model = config.model
    if model.kv_channels is None:
        _divides("model.hidden_size", model.hidden_size, "num_attention_heads", model.num_attention_heads)
    _divides("model.num_attention_heads", model.num_attention_heads, "num_query_groups", model.query_groups)
    if model.position_embedding == "rope":
        _divides("the width of a head (model.kv_channels)", model.head_dim, "2 (rope turns pairs):", 2)
    if model.position_embedding == "sinusoidal":
        _divides("model.hidden_size", model.hidden_size, "2 (sine and cosine):", 2)
    if (
        model.position_embedding in ("learned", "sinusoidal")
        and config.batch.seq_length > model.max_sequence_length
    ):
        raise UserError(
            f"batch.seq_length {config.batch.seq_length} exceeds model.max_sequence_length "
            f"{model.max_sequence_length}, the size of the position table: raise the latter"
        )


def _check_parallel(config: Config) -> None:
    parallel, model = config.parallel, config.model
    tp = parallel.tensor_model_parallel_size
    size = "parallel.tensor_model_parallel_size"
    _divides("model.num_attention_heads", model.num_attention_heads, size, tp)
    _divides("model.num_query_groups", model.query_groups, size, tp)
    _divides("model.ffn_hidden_size", model.ffn_size, size, tp)
    _check_pipeline(config)
    if parallel.sequence_parallel:
        if tp == 1:
            raise UserError(
                "parallel.sequence_parallel splits over the TP ranks: it needs tensor_model_parallel_size > 1"
            )
        _divides("batch.seq_length", config.batch.seq_length, size + " (sequence_parallel)", tp)
    for name, value in (
        ("context_parallel_size", parallel.context_parallel_size),
        ("expert_model_parallel_size", parallel.expert_model_parallel_size),
    ):
        if value > 1:
            raise UserError(
                f"parallel.{name} {value}: engine `{config.engine}` does not offer this axis yet; set it to 1"
            )
    if parallel.zero_stage > 1 and config.engine == "megatron":
        raise UserError(
            f"parallel.zero_stage {parallel.zero_stage}: engine `megatron` shards the optimizer only (stage 1); "
            "use 0 or 1, or engine=deepspeed"
        )
    if config.precision.dtype == "fp64" and parallel.zero_stage:
        raise UserError(
            "precision.dtype fp64 with parallel.zero_stage 1: the sharded optimizer keeps fp32 state; use zero_stage 0"
        )


def _check_pipeline(config: Config) -> None:
    parallel = config.parallel
    stages, chunks = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size
    if chunks > 1 and stages == 1:
        raise UserError(
            f"parallel.virtual_pipeline_model_parallel_size {chunks} interleaves the stages of a pipeline: it needs "
            "pipeline_model_parallel_size > 1"
        )
    if parallel.overlap_p2p_comm and chunks == 1:
        raise UserError(
            "parallel.overlap_p2p_comm acts in an interleaved pipeline: it needs virtual_pipeline_model_parallel_size > 1"
        )
    layers_per_chunk(config)


def _check_schedule(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    if optimizer.min_lr > optimizer.lr:
        raise UserError(f"optimizer.min_lr {optimizer.min_lr} exceeds optimizer.lr {optimizer.lr}")
    if optimizer.schedule == "wsd" and optimizer.warmup_steps + (optimizer.decay_steps or 0) > steps > 0:
        raise UserError(
            f"optimizer.warmup_steps {optimizer.warmup_steps} + decay_steps {optimizer.decay_steps or 0} exceed "
            f"train.steps {steps}: wsd warms up, stays, then decays within the run"
        )
    decay = optimizer.decay_steps or steps
    if optimizer.schedule in ("cosine", "linear") and steps and optimizer.warmup_steps > decay:
        raise UserError(
            f"optimizer.warmup_steps {optimizer.warmup_steps} exceeds the step {decay} at which the decay ends "
            "(optimizer.decay_steps, else train.steps)"
        )
