"""Requests that are cancelled, interrupted or fail leave nothing behind, and the others go on where they were."""

from typing import Any

import pytest

from megalm.generate.request import GenerationOptions
from tests.generate.test_decode import make_generator
from tests.worlds import in_world


@in_world(1)
def test_what_is_cancelled_leaves_and_the_others_go_on() -> None:
    generator = make_generator("rope", max_rows=3)
    options = GenerationOptions(greedy=True, max_new_tokens=10)
    prompts = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]
    expected = [row.tokens for row in generator.generate(prompts, options)]
    with generator.running():
        numbers = [generator.submit(prompt, options) for prompt in prompts]
        found = {}
        for step in range(60):
            if step == 3:
                generator.cancel(numbers[0])
            if step == 4:
                generator.cancel(numbers[4])  # still waiting
            for event in generator.step():
                if event.completion:
                    found[event.request] = event.completion.tokens
    assert not generator.busy
    assert found == {number: expected[place] for place, number in enumerate(numbers) if place in (1, 2, 3)}


@in_world(1)
def test_an_interrupted_call_leaves_nothing_behind() -> None:
    generator = make_generator("rope")
    options = GenerationOptions(greedy=True, max_new_tokens=10)
    expected = generator.generate([[1, 2]], options)
    proceed = generator._proceed
    generator._proceed = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        generator.generate([[3, 4], [5]], options)
    generator._proceed = proceed
    assert not generator.busy
    assert generator.generate([[1, 2]], options) == expected


@in_world(1)
def test_what_comes_of_a_request_beside_a_call_is_told_by_the_next_step() -> None:
    generator = make_generator("rope")
    options = GenerationOptions(greedy=True, max_new_tokens=6)
    prompts = [[1, 2], [3], [4, 5, 6]]
    expected = [row.tokens for row in generator.generate(prompts, options)]
    with generator.running():
        beside, gone = (generator.submit(prompt, options) for prompt in (prompts[0], [7]))
        longer = GenerationOptions(greedy=True, max_new_tokens=9)
        assert [row.tokens[:6] for row in generator.generate(prompts[1:], longer)] == expected[1:]
        assert not generator.rows, "all have ended in the call"
        assert generator.busy
        generator.cancel(gone)
        events = generator.step()
        assert [(event.request, event.completion.tokens) for event in events] == [(beside, expected[0])]
        assert not generator.busy
        assert generator.step() == []


@in_world(1)
def test_after_an_interrupt_in_the_middle_others_go_on_where_they_were() -> None:
    """Texts that were handed in before, beside and between those of the call that is interrupted: they change slots."""
    generator = make_generator("rope", prompt_tokens=7)
    options = GenerationOptions(greedy=True, max_new_tokens=12)
    prompts = [[1, 2], [3] * 9, [4, 5, 6]]
    expected = [row.tokens for row in generator.generate(prompts, options)]
    found: dict[int, list[int]] = {}
    proceed, count = generator._proceed, 0

    def interrupted() -> Any:
        nonlocal count
        count += 1
        if count == 1:
            numbers.append(generator.submit(prompts[1], options))
        if count == 5:
            numbers.append(generator.submit(prompts[2], options))
            generator._held += proceed()
            raise KeyboardInterrupt
        return proceed()

    with generator.running():
        numbers = [generator.submit(prompts[0], options)]
        generator.step()
    generator._proceed = interrupted
    with pytest.raises(KeyboardInterrupt):
        generator.generate([[9, 8], [7]], options)
    generator._proceed = proceed
    with generator.running():
        while generator.busy:
            for event in generator.step():
                if event.completion:
                    found[event.request] = event.completion.tokens
    assert found == dict(zip(numbers, expected, strict=True))


@in_world(1)
@pytest.mark.parametrize("part", ["network.run", "chooser.choose"])
def test_after_a_step_that_failed_all_go_on_where_they_were(part: str) -> None:
    generator = make_generator("rope", prompt_tokens=7)
    options = GenerationOptions(greedy=True, max_new_tokens=8)
    prompts = [[1, 2], [3] * 20]
    expected = [row.tokens for row in generator.generate(prompts, options)]
    many = GenerationOptions(max_new_tokens=8, n=2)
    expected += [row.tokens for row in generator.generate([[4, 5]], many)]
    owner, name = (getattr(generator, part.partition(".")[0]), part.partition(".")[2])
    run, passes = getattr(owner, name), 0

    def fail_at_times(*arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        found = run(*arguments)
        if passes % 2:
            raise MemoryError
        return found

    setattr(owner, name, fail_at_times)
    found: dict[tuple[int, int], list[int]] = {}
    with generator.running():
        for prompt in prompts:
            generator.submit(prompt, options)
        generator.submit([4, 5], many)
        for _ in range(50):
            try:
                events = generator.step()
            except MemoryError:
                continue
            found |= {
                (event.request, event.sample): event.completion.tokens for event in events if event.completion
            }
    assert [found[key] for key in sorted(found)] == expected
