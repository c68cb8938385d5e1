"""The engine that the configuration names."""

from megalm.config.schema import Config
from megalm.engine.base import Engine
from megalm.engine.megatron import MegatronEngine
from megalm.parallel.layout import Layout


def build_engine(config: Config, layout: Layout, train: bool = True) -> Engine:
    """Build the model of this rank and what trains it; `train=False` makes no optimizer."""
    if config.engine == "deepspeed":
        from megalm.engine.deepspeed import DeepSpeedEngine  # it need not be installed

        return DeepSpeedEngine(config, layout, train)
    return MegatronEngine(config, layout, train)
