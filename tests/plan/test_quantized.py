"""The plan of a run on a quantised base: what its weights take, and that no step keeps whole ones."""

from tests.plan.planner import planned, small_config

LORA = ("lora.rank=1", "run.load=base", "precision.dtype=bf16", "model.num_layers=16")
# of a layer: queries, keys and values; output; gate and up; down
SHAPES = ((256, 128), (128, 128), (704, 128), (128, 352))


def test_weights_are_made_whole_one_at_a_time() -> None:
    quantized = ("lora.quantize_base=nf4", "lora.quantize_group_size=32")
    whole, small = (planned(small_config(*LORA, *more), device="H100").stages[0] for more in ((), quantized))
    sizes = [rows * columns for rows, columns in SHAPES]
    bits = 4 + 32 / 32
    # each keeps the sixteen values too, and a place holder of one element
    assert whole.weights - small.weights == 16 * (sum(sizes) * (2 - bits / 8) - len(SHAPES) * (16 * 4 + 2))
    assert small.optimizer == whole.optimizer
    # index, value and product of a weight while it is made, and the weight in the run's format
    one = max(sizes) * (4 + 4 + 4 + 2)
    assert (small.peak - small.resting) - (whole.peak - whole.resting) <= one < 16 * sum(sizes) * 2
