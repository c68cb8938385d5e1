"""Which layers each part of a pipeline holds, in the form that Megatron-Core asks for."""

from collections.abc import Sequence

from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout


class StageLayers(PipelineParallelLayerLayout):
    """Megatron-Core's layout of layers, answering for the stage `rank` of its own instead of the library's global one."""

    def __init__(self, layers: Sequence[int], stages: int, rank: int) -> None:
        """layers: of each part in the order of the model (`layers_per_chunk`)."""
        parts = [[LayerType.decoder] * count for count in layers]
        parts[0].insert(0, LayerType.embedding)
        parts[-1].append(LayerType.loss)
        super().__init__(parts, stages)
        self.parts = parts
        self.rank = rank

    def get_num_layers_to_build(
        self,
        layer_type: LayerType = LayerType.decoder,
        vp_stage: int | None = None,
        pp_rank: int | None = None,
    ) -> int:
        """Layers of that type in one part of this stage."""
        return self.parts[self._part(vp_stage)].count(layer_type)

    def get_layer_offset(
        self,
        layer_type: LayerType = LayerType.decoder,
        vp_stage: int | None = None,
        pp_rank: int | None = None,
    ) -> int:
        """Layers of that type before one part of this stage."""
        return sum(part.count(layer_type) for part in self.parts[: self._part(vp_stage)])

    def _part(self, vp_stage: int | None) -> int:
        return (vp_stage or 0) * self.pipeline_model_parallel_size + self.rank
