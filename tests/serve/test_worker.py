"""What a copy's world does with what the front tells it."""

from pathlib import Path
from typing import Any

from megalm.testing import run_distributed


def open_after_cancel(run: str) -> tuple[list[int], list[int], bool]:
    """To be called in a world: the requests open before and after one of two is cancelled, and whether anything is left in the end."""
    from megalm.generate.decode import Generator, context_length
    from megalm.generate.load import open_model
    from megalm.generate.request import ModelRequest
    from megalm.serve.wire import CANCEL, SUBMIT
    from megalm.serve.worker import WritingWorld

    engine, config, tokenizer = open_model(ModelRequest(checkpoint=run), "gpt")
    world = WritingWorld(Generator(engine.chunks, engine.layout, context_length(config), tokenizer), None)
    options: dict[str, Any] = {"max_new_tokens": 20, "n": 2}
    with world.generator.running():
        for number in (7, 8):
            world._obey({"op": SUBMIT, "id": number, "prompt": [5, 6], "options": options, "sequence": 0})
        world._tell(world.generator.step())
        before = [row.request.number for row in world.generator.rows]
        world._obey({"op": CANCEL, "id": 7})
        after = [row.request.number for row in world.generator.rows]
        while world.generator.busy:
            world._tell(world.generator.step())
    return before, after, bool(world.open)


def test_a_cancelled_request_leaves_the_model_and_the_others_end(run: Path) -> None:
    before, after, is_left = run_distributed(open_after_cancel, 1, str(run))[0]
    assert (before, after, is_left) == ([1, 1, 2, 2], [2, 2], False)
