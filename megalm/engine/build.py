"""The engine that the configuration names."""

from megalm.config.schema import Config
from megalm.engine.base import Engine
from megalm.engine.megatron import MegatronEngine
from megalm.model.compiling import compile_model
from megalm.parallel.layout import Layout


def build_engine(config: Config, layout: Layout, train: bool = True) -> Engine:
    """Build the model of this rank and what trains it; `train=False` makes no optimizer."""
    if config.engine == "deepspeed":
        from megalm.engine.deepspeed import DeepSpeedEngine  # it need not be installed

        return DeepSpeedEngine(config, layout, train)
    engine = MegatronEngine(config, layout, train)
    if train:
        for chunk in engine.chunks:
            compile_model(chunk, config)
    return engine
