"""How layers are cut into parts, what is refused, and that the stated bubble is that of the schedule."""

import pytest

from megalm.config import data_parallel_size, parse_config
from megalm.config.pipeline import bubble_fraction, layers_per_chunk
from megalm.errors import UserError

PP, VP = "parallel.pipeline_model_parallel_size", "parallel.virtual_pipeline_model_parallel_size"
COUNT_EMBEDDING = "parallel.account_for_embedding_in_pipeline_split=true"
COUNT_LOSS = "parallel.account_for_loss_in_pipeline_split=true"


@pytest.mark.parametrize(
    ("layers", "overrides", "expected"),
    [
        (4, (), [4]),
        (8, (f"{PP}=2",), [4, 4]),
        (8, (f"{PP}=2", f"{VP}=2"), [2, 2, 2, 2]),
        (6, (f"{PP}=4", COUNT_EMBEDDING, COUNT_LOSS), [1, 2, 2, 1]),
        (7, (f"{PP}=2", f"{VP}=2", COUNT_LOSS), [2, 2, 2, 1]),
        (3, (f"{PP}=2", f"{VP}=2", COUNT_EMBEDDING), [0, 1, 1, 1]),
        (4, (COUNT_EMBEDDING, COUNT_LOSS), [4]),
        (4, (f"{PP}=2", "parallel.pipeline_layers=[3, 1]"), [3, 1]),
        (4, (f"{PP}=4", "parallel.pipeline_layers=[0, 2, 2, 0]"), [0, 2, 2, 0]),
    ],
)
def test_layers_are_cut_into_parts(layers: int, overrides: tuple[str, ...], expected: list[int]) -> None:
    assert layers_per_chunk(parse_config({}, [f"model.num_layers={layers}", *overrides])) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            (f"{PP}=3",),
            "model.num_layers 4 is not a multiple of parallel.pipeline_model_parallel_size 3: 4 / 3",
        ),
        ((f"{PP}=2", f"{VP}=3"), r"num_layers 4 is not a multiple of PP 2 x VP 3 = 6: 4 / 6"),
        (
            (f"{PP}=2", COUNT_LOSS),
            r"num_layers 4 \+ 1 for the loss = 5 is not a multiple of .* 2: 5 / 2 = 2.5",
        ),
        ((f"{VP}=2",), "virtual_pipeline_model_parallel_size 2 .* needs pipeline_model_parallel_size > 1"),
        ((f"{PP}=2", "parallel.overlap_p2p_comm=true"), "overlap_p2p_comm .* needs virtual"),
        ((f"{PP}=2", "parallel.pipeline_layers=[4]"), r"has 1 numbers: give 2, one for each"),
        (
            (f"{PP}=2", f"{VP}=2", "parallel.pipeline_layers=[2, 2]"),
            r"give 4, one for each of PP 2 x VP 2 = 4",
        ),
        ((f"{PP}=2", "parallel.pipeline_layers=[3, 2]"), r"adds up to 5 layers, but model.num_layers is 4"),
        ((f"{PP}=4", "parallel.pipeline_layers=[2, 0, 1, 1]"), "only the first \\(embedding alone\\)"),
        ((f"{PP}=2", "parallel.pipeline_layers=[5, -1]"), "each part needs a layer"),
        ((f"{PP}=2", "parallel.pipeline_layers=[2, 2]", COUNT_EMBEDDING), "remove one or the other"),
    ],
)
def test_impossible_parts_are_refused_with_their_numbers(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        parse_config({}, ["model.num_layers=4", *overrides])
    assert "\n" not in str(caught.value)


def test_interleaved_pipeline_needs_microbatches_in_groups_of_its_stages() -> None:
    settings = ["model.num_layers=8", "batch.micro_batch_size=2", "batch.global_batch_size=24", f"{PP}=4"]
    plain, interleaved = parse_config({}, settings), parse_config({}, [*settings, f"{VP}=2"])
    assert data_parallel_size(plain, 8) == 2
    assert data_parallel_size(interleaved, 4) == 1
    with pytest.raises(
        UserError, match=r"groups of PP 4, but a step has 6 \(.* 24 / .* 2 x .* 2\)"
    ) as caught:
        data_parallel_size(interleaved, 8)
    assert "\n" not in str(caught.value)


def waiting_share(stages: int, chunks: int, microbatches: int) -> float:
    """Share of a step that the first stage waits in the schedule of arXiv:2104.04473, figure 4, played task by task.

    A stage's tasks run in a fixed order, each as soon as the task before it on the neighbour is done. Forward takes 1 and
    backward 2 of a unit.
    """
    groups = range(0, microbatches, stages)
    order = [(m, chunk) for first in groups for chunk in range(chunks) for m in range(first, first + stages)]
    if chunks == 1:
        order = [(m, 0) for m in range(microbatches)]
    forward = [("F", chunk, m) for m, chunk in order]
    backward = [("B", chunks - 1 - chunk, m) for m, chunk in order]
    queues = []
    for stage in range(stages):
        ahead = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages
        ahead = min(ahead, len(forward))
        pairs = zip(forward[ahead:], backward, strict=False)
        steady = [task for pair in pairs for task in pair]
        queues.append([*forward[:ahead], *steady, *backward[len(forward) - ahead :]])
    done: dict[tuple[str, int, int], float] = {}
    clock, last = [0.0] * stages, stages * chunks - 1
    while any(queues):
        for stage, queue in enumerate(queues):
            if not queue:
                continue
            kind, chunk, m = queue[0]
            part = chunk * stages + stage
            if kind == "F":
                needed = ("F", part - 1, m) if part else None
            else:
                needed = ("B", part + 1, m) if part < last else ("F", part, m)
            if needed is not None and needed not in done:
                continue
            start = max(clock[stage], done[needed] if needed else 0.0)
            clock[stage] = done[kind, part, m] = start + (1 if kind == "F" else 2)
            queue.pop(0)
    return 1 - 3 * chunks * microbatches / max(clock)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_bubble_is_that_of_the_schedule(stages: int, chunks: int, groups: int) -> None:
    microbatches = groups * stages
    config = parse_config(
        {},
        [
            f"model.num_layers={stages * chunks}",
            f"{PP}={stages}",
            f"{VP}={chunks}",
            f"batch.global_batch_size={2 * microbatches}",
        ],
    )
    assert bubble_fraction(config, 2) == pytest.approx(waiting_share(stages, chunks, microbatches), rel=1e-12)


def test_no_pipeline_no_bubble() -> None:
    assert bubble_fraction(parse_config({}), 1) == 0
