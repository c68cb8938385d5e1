"""Layouts that cannot work are refused here, with the arithmetic, before any process group exists."""

import math

from megalm.config.classify_checks import check_classify
from megalm.config.deepspeed_checks import check_deepspeed
from megalm.config.distill_checks import check_distill
from megalm.config.divides import divides
from megalm.config.evaluate_checks import check_evaluate
from megalm.config.lora_checks import check_lora
from megalm.config.moe_checks import check_expert_ranks, check_moe
from megalm.config.pipeline import check_microbatches, layers_per_chunk
from megalm.config.preference_checks import check_preferences
from megalm.config.quantization_checks import check_quantization
from megalm.config.rlhf_checks import check_rlhf
from megalm.config.samples_checks import check_samples
from megalm.config.schema import Config, ParallelConfig
from megalm.config.training_checks import check_training
from megalm.errors import UserError


def data_parallel_size(config: Config, world_size: int) -> int:
    """Return how many copies of the model `world_size` processes hold; UserError where they cannot share out a batch."""
    parallel, batch = config.parallel, config.batch
    copies = copies_in(parallel, world_size)
    check_expert_ranks(config, copies)
    per_microbatch = batch.micro_batch_size * copies
    if batch.global_batch_size % per_microbatch:
        raise UserError(
            f"batch.global_batch_size {batch.global_batch_size} is not a multiple of micro_batch_size "
            f"{batch.micro_batch_size} x data-parallel size {copies} = {per_microbatch} "
            f"(data-parallel size = {world_size} processes / {parallel.model_parallel_size})"
        )
    check_microbatches(config, copies)
    return copies


def copies_in(parallel: ParallelConfig, world_size: int) -> int:
    """Return how many copies of a model `world_size` processes hold; UserError where it is not a whole number."""
    copies, rest = divmod(world_size, parallel.model_parallel_size)
    if rest or copies == 0:
        sizes = f"TP {parallel.tensor_model_parallel_size} x PP {parallel.pipeline_model_parallel_size}"
        if parallel.context_parallel_size > 1:
            sizes += f" x CP {parallel.context_parallel_size}"
        raise UserError(
            f"the layout needs a multiple of {sizes} = {parallel.model_parallel_size} processes, "
            f"but there are {world_size}: change parallel.* or --nproc"
        )
    return copies


def check(config: Config) -> None:
    """Raise UserError if the model, the batch or the layout cannot work on any number of processes."""
    _check_model(config)
    _check_data(config)
    _check_sft(config)
    _check_architecture(config)
    check_classify(config)
    check_lora(config)
    check_quantization(config)
    check_distill(config)
    check_preferences(config)
    check_rlhf(config)
    check_deepspeed(config)
    _check_parallel(config)
    check_moe(config)
    _check_precision(config)
    _check_schedule(config)
    check_training(config)
    check_samples(config)
    check_evaluate(config)


def _check_model(config: Config) -> None:
    model = config.model
    if model.kv_channels is None:
        divides("model.hidden_size", model.hidden_size, "num_attention_heads", model.num_attention_heads)
    divides("model.num_attention_heads", model.num_attention_heads, "num_query_groups", model.query_groups)
    if model.position_embedding == "rope":
        divides("the width of a head (model.kv_channels)", model.head_dim, "2 (rope turns pairs):", 2)
    if model.position_embedding == "sinusoidal":
        divides("model.hidden_size", model.hidden_size, "2 (sine and cosine):", 2)
    if (
        model.position_embedding in ("learned", "sinusoidal")
        and config.batch.seq_length > model.max_sequence_length
    ):
        raise UserError(
            f"batch.seq_length {config.batch.seq_length} exceeds model.max_sequence_length "
            f"{model.max_sequence_length}, the size of the position table: raise the latter"
        )


def _check_sft(config: Config) -> None:
    if config.task == "sft" and config.data.packing == "cut":
        raise UserError(
            "data.packing `cut` would part answers from their questions: task `sft` takes `drop` (default) or `truncate`"
        )
    if config.task != "sft" and not config.sft.packing:
        raise UserError(f"sft.packing is for task `sft`, this is `{config.task}`: leave it out")


def _check_data(config: Config) -> None:
    for name, sources in (("train", config.data.train), ("valid", config.data.valid)):
        kinds = set()
        for number, source in enumerate(sources):
            given = [kind for kind in ("weight", "tokens", "epochs") if getattr(source, kind) is not None]
            if len(given) > 1:
                raise UserError(
                    f"data.{name}.{number} ({source.path}) has {' and '.join(given)}: give one of them alone"
                )
            kinds.add("a budget" if given and given[0] != "weight" else "a weight")
        if len(kinds) > 1:
            raise UserError(
                f"data.{name}: some sources have a budget (tokens or epochs) and some a weight: give all the same kind"
            )


def _check_architecture(config: Config) -> None:
    model = config.model
    if model.architecture == "gpt":
        if model.norm_position == "post":
            raise UserError("model.norm_position `post` is for model.architecture `bert`: use `pre`")
        return
    if model.position_embedding not in ("learned", "rope", "none"):
        raise UserError(
            f"model.position_embedding `{model.position_embedding}` is for model.architecture `gpt`: use `learned` or `rope`"
        )
    if config.parallel.context_parallel_size > 1:
        raise UserError(
            f"parallel.context_parallel_size {config.parallel.context_parallel_size}: model.architecture `bert` "
            "sees the whole text at once and is not split along it; set it to 1"
        )
    if model.moe.num_experts:
        raise UserError(
            f"model.moe.num_experts {model.moe.num_experts}: experts are for model.architecture `gpt`; set it to 0"
        )
    if config.data.reset_at_document_end:
        raise UserError(
            "data.reset_at_document_end: samples for model.architecture `bert` lie within one document; set it to false"
        )
    if config.data.packing is not None:
        raise UserError(
            f"data.packing `{config.data.packing}`: samples for model.architecture `bert` hold one or two segments; leave it out"
        )
    if config.batch.seq_length < 8:
        raise UserError(
            f"batch.seq_length {config.batch.seq_length} leaves no text between [CLS] and [SEP]s: use 8 or more"
        )


def _check_parallel(config: Config) -> None:
    parallel, model = config.parallel, config.model
    tp = parallel.tensor_model_parallel_size
    size = "parallel.tensor_model_parallel_size"
    divides("model.num_attention_heads", model.num_attention_heads, size, tp)
    divides("model.num_query_groups", model.query_groups, size, tp)
    divides("model.ffn_hidden_size", model.ffn_size, size, tp)
    _check_pipeline(config)
    _check_recompute(config)
    if parallel.sequence_parallel and tp == 1:
        raise UserError(
            "parallel.sequence_parallel splits over the TP ranks: it needs tensor_model_parallel_size > 1"
        )
    _check_sequence(config)
    if parallel.zero_stage > 1 and config.engine == "megatron":
        raise UserError(
            f"parallel.zero_stage {parallel.zero_stage}: engine `megatron` shards the optimizer only (stage 1); "
            "use 0 or 1, or engine=deepspeed"
        )
    if config.precision.dtype == "fp64" and parallel.zero_stage:
        raise UserError(
            "precision.dtype fp64 with parallel.zero_stage 1: the sharded optimizer keeps fp32 state; use zero_stage 0"
        )
    if parallel.overlap_param_gather:
        if parallel.zero_stage != 1:
            raise UserError(
                f"parallel.overlap_param_gather with parallel.zero_stage {parallel.zero_stage}: no weights are gathered "
                "there; use zero_stage 1, or turn it off"
            )
        if config.train.compile != "none":
            raise UserError(
                f"parallel.overlap_param_gather waits for weights inside the model, which train.compile {config.train.compile} "
                "takes over: turn one of the two off"
            )
        if parallel.overlap_grad_reduce is False:
            raise UserError(
                "parallel.overlap_param_gather works on the buckets that overlap_grad_reduce makes: leave that one on"
            )


def _check_recompute(config: Config) -> None:
    recompute, model = config.train.recompute, config.model
    if recompute.granularity == "full" and recompute.method == "uniform":
        for layers in layers_per_chunk(config):
            if layers % recompute.num_layers:
                raise UserError(
                    f"train.recompute.num_layers {recompute.num_layers} does not divide the {layers} layers of a part of the "
                    "pipeline (train.recompute.method uniform): lower it, or take method block"
                )
    if recompute.granularity != "selective":
        return
    moe = model.moe
    missing = {
        "moe": not moe.num_experts and "model.moe.num_experts is 0",
        "shared_experts": not (moe.num_experts and moe.shared_expert_ffn_hidden_size)
        and "there is no shared expert (model.moe.shared_expert_ffn_hidden_size)",
        "mlp": all(map(moe.is_moe_layer, range(model.num_layers))) and "every layer has experts",
        "layernorm": model.norm_position == "post"
        and "model.norm_position `post` has its norms after the layers",
    }
    for name in recompute.modules:
        if missing.get(name):
            raise UserError(f"train.recompute.modules names {name}, but {missing[name]}: take it out")


def _check_precision(config: Config) -> None:
    precision = config.precision
    if precision.grad_reduce_dtype not in ("fp32", precision.dtype):
        raise UserError(
            f"precision.grad_reduce_dtype {precision.grad_reduce_dtype} with dtype {precision.dtype}: gradients are summed "
            "in fp32 or in the format of the weights; use one of the two"
        )
    if precision.min_loss_scale > precision.initial_loss_scale:
        raise UserError(
            f"precision.min_loss_scale {precision.min_loss_scale:g} exceeds initial_loss_scale "
            f"{precision.initial_loss_scale:g}"
        )
    for name in ("initial_loss_scale", "min_loss_scale"):
        if math.frexp(value := getattr(precision, name))[0] != 0.5:
            raise UserError(f"precision.{name} {value:g} is no power of two: scaling would round gradients")


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


def _check_sequence(config: Config) -> None:
    """A sequence falls into two chunks a context-parallel rank, and under SP each rank's part into one a TP rank."""
    parallel, length = config.parallel, config.batch.seq_length
    tp, cp = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    if cp > 1:
        name = f"2 x parallel.context_parallel_size {cp} (two chunks a rank) ="
        divides("batch.seq_length", length, name, 2 * cp)
    if parallel.sequence_parallel:
        name = "parallel.tensor_model_parallel_size (sequence_parallel)"
        if cp > 1:
            name += f" {tp} x context_parallel_size {cp} ="
        divides("batch.seq_length", length, name, tp * cp)


def _check_schedule(config: Config) -> None:
    optimizer, steps = config.optimizer, config.train.steps
    for name in ("eval_at_start", "eval_by_source"):
        if getattr(config.train, name) and not config.train.eval_interval:
            raise UserError(
                f"train.{name} speaks of validations, and there are none: set train.eval_interval"
            )
    if optimizer.min_lr > optimizer.lr:
        raise UserError(f"optimizer.min_lr {optimizer.min_lr} exceeds optimizer.lr {optimizer.lr}")
    if optimizer.schedule == "wsd" and optimizer.warmup_steps + (optimizer.decay_steps or 0) > steps > 0:
        raise UserError(
            f"optimizer.warmup_steps {optimizer.warmup_steps} + decay_steps {optimizer.decay_steps or 0} exceed "
            f"train.steps {steps}: wsd warms up, stays, then decays within the run"
        )
    if optimizer.decay_steps and optimizer.schedule in ("constant", "inverse_sqrt"):
        raise UserError(
            f"optimizer.decay_steps {optimizer.decay_steps} with schedule `{optimizer.schedule}`, which has no end: "
            "leave it out, or take another schedule"
        )
    decay = optimizer.decay_steps or steps
    if optimizer.schedule in ("cosine", "linear") and steps and optimizer.warmup_steps > decay:
        raise UserError(
            f"optimizer.warmup_steps {optimizer.warmup_steps} exceeds the step {decay} at which the decay ends "
            "(optimizer.decay_steps, else train.steps)"
        )
