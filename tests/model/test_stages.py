"""Parts of the model on a stage: which layers each holds."""

import pytest

from megalm.model.build import build_chunks
from megalm.parallel.layout import create_layout
from tests.tiny import tiny_config
from tests.worlds import in_world

PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model.num_layers=5", "parallel.pipeline_layers=[3, 2]"), [[[1, 2, 3]], [[4, 5]]]),
        (("model.num_layers=8", VP2), [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]),
        (
            ("model.num_layers=6", VP2, "parallel.pipeline_layers=[0, 3, 1, 2]"),
            [[[], [4]], [[1, 2, 3], [5, 6]]],
        ),
    ],
)
@in_world(2)
def test_each_part_holds_its_layers_and_the_ends_of_the_model(
    overrides: tuple[str, ...], expected: list[list[list[int]]]
) -> None:
    """Also where another layout was made since: the library would ask a global state, which is then that layout's."""
    config = tiny_config("gpt2-tiny", PP2, *overrides)
    layout = create_layout(config.parallel)
    create_layout(tiny_config("gpt2-tiny").parallel)
    chunks = build_chunks(config, layout)
    numbers = [[layer.layer_number for layer in chunk.decoder.layers] for chunk in chunks]
    assert numbers == expected[layout.pp_rank]
    first, last = layout.is_first_stage, layout.is_last_stage
    assert [chunk.pre_process for chunk in chunks] == [first] + [False] * (len(chunks) - 1)
    assert [chunk.post_process for chunk in chunks] == [False] * (len(chunks) - 1) + [last]
