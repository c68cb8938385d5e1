"""How a pipeline cuts the layers into parts, and what share of a step it waits."""

from megalm.config.schema import Config
from megalm.errors import UserError


def layers_per_chunk(config: Config) -> list[int]:
    """Layers of each part of the model, in the order of the layers: stages x virtual stages numbers.

    Part i lies on stage i mod PP. The embedding is before the layers of the first part, the output layer and the loss are
    after those of the last. Raises UserError where the layers cannot be cut so.
    """
    parallel = config.parallel
    if parallel.pipeline_layers is None:
        return _equal_parts(config)
    layers, count = parallel.pipeline_layers, _count(config)
    if parallel.account_for_embedding_in_pipeline_split or parallel.account_for_loss_in_pipeline_split:
        raise UserError(
            "parallel.pipeline_layers says where the layers go, so parallel.account_for_embedding_in_pipeline_split and "
            "account_for_loss_in_pipeline_split have nothing to say: remove one or the other"
        )
    if len(layers) != count:
        raise UserError(
            f"parallel.pipeline_layers {layers} has {len(layers)} numbers: give {count}, one for each of {_product(config)}"
        )
    if sum(layers) != config.model.num_layers:
        raise UserError(
            f"parallel.pipeline_layers {layers} adds up to {sum(layers)} layers, but model.num_layers is "
            f"{config.model.num_layers}"
        )
    if min(layers) < 0 or 0 in layers[1:-1]:
        raise UserError(
            f"parallel.pipeline_layers {layers}: each part needs a layer; only the first (embedding alone) and the last "
            "(loss alone) may have 0"
        )
    return list(layers)


def bubble_fraction(config: Config, data_parallel_size: int) -> float:
    """Share of a step that a stage waits: (PP - 1) / (VP x microbatches + PP - 1), arXiv:2104.04473, section 2.2.

    It holds for parts of equal work and communication that takes no time.
    """
    parallel = config.parallel
    waiting = parallel.pipeline_model_parallel_size - 1
    work = parallel.virtual_pipeline_model_parallel_size * microbatches_of_step(config, data_parallel_size)
    return waiting / (work + waiting)


def check_microbatches(config: Config, data_parallel_size: int) -> None:
    """Raise UserError if the microbatches of a step do not suit an interleaved pipeline."""
    parallel, batch = config.parallel, config.batch
    stages = parallel.pipeline_model_parallel_size
    microbatches = microbatches_of_step(config, data_parallel_size)
    if parallel.virtual_pipeline_model_parallel_size > 1 and microbatches % stages:
        raise UserError(
            f"an interleaved pipeline takes microbatches in groups of PP {stages}, but a step has {microbatches} "
            f"(global_batch_size {batch.global_batch_size} / (micro_batch_size {batch.micro_batch_size} x data-parallel "
            f"size {data_parallel_size})): change batch.* or set parallel.virtual_pipeline_model_parallel_size to 1"
        )


def _equal_parts(config: Config) -> list[int]:
    parallel, model = config.parallel, config.model
    before = int(parallel.account_for_embedding_in_pipeline_split)
    after = int(parallel.account_for_loss_in_pipeline_split)
    count, total = _count(config), model.num_layers + before + after
    if total % count:
        counted = f"model.num_layers {model.num_layers}"
        counted += " + 1 for the embedding" * before + " + 1 for the loss" * after
        counted += f" = {total}" if total > model.num_layers else ""
        raise UserError(
            f"{counted} is not a multiple of {_product(config)}: {total} / {count} = {total / count:.3g}; change one, or "
            "give the layers of each part in parallel.pipeline_layers"
        )
    layers = [total // count] * count
    layers[0] -= before
    layers[-1] -= after
    return layers


def microbatches_of_step(config: Config, data_parallel_size: int) -> int:
    """Microbatches that each data-parallel rank computes in one step."""
    return config.batch.global_batch_size // (config.batch.micro_batch_size * data_parallel_size)


def _count(config: Config) -> int:
    return config.parallel.pipeline_model_parallel_size * config.parallel.virtual_pipeline_model_parallel_size


def _product(config: Config) -> str:
    stages = config.parallel.pipeline_model_parallel_size
    chunks = config.parallel.virtual_pipeline_model_parallel_size
    if chunks == 1:
        return f"parallel.pipeline_model_parallel_size {stages}"
    return f"PP {stages} x VP {chunks} = {stages * chunks}"
