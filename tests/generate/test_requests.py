"""Requests that come and go share the engine without changing each other's texts, within the limit of memory."""

import random
from typing import Any

import pytest
import torch

from megalm.errors import UserError
from megalm.generate.request import GenerationOptions
from tests.generate.test_decode import CONTEXT, PP2, TP2, make_generator
from tests.tiny import VOCABULARY
from tests.worlds import in_world

KINDS: list[dict[str, Any]] = [
    {"greedy": True},
    {"temperature": 1.5, "seed": 3},
    {"top_k": 20, "repetition_penalty": 1.3, "seed": 4},
    {"top_p": 0.9, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"min_p": 0.05, "logit_bias": {7: -100.0, 9: 3.0}, "logprobs": 1},
    {"n": 3, "temperature": 1.2},
    {"beams": 3, "n": 2},
    {"n": 2, "prompt_logprobs": 2},
    {"max_new_tokens": 0, "prompt_logprobs": 1},
]


def requests(count: int) -> list[tuple[list[int], GenerationOptions]]:
    """Prompts and options of all kinds, of unlike lengths."""
    draw = random.Random(5)
    return [
        (
            [draw.randrange(400) for _ in range(draw.choice([2, 3, 9, 17, 30]))],
            GenerationOptions(**{"max_new_tokens": draw.choice([1, 4, 9, 18])} | KINDS[number % len(KINDS)]),
        )
        for number in range(count)
    ]


def run(
    generator: Any, arrivals: dict[int, list[tuple[list[int], GenerationOptions]]]
) -> dict[int, list[Any]]:
    """Hand requests in at the steps that `arrivals` names; the completions of each by its number."""
    found: dict[int, dict[int, Any]] = {}
    step = 0
    with generator.running():
        while generator.busy or any(at >= step for at in arrivals):
            for prompt, options in arrivals.get(step, []):
                found[generator.submit(prompt, options)] = {}
            for event in generator.step():
                if event.completion:
                    found[event.request][event.sample] = event.completion
            step += 1
            assert generator.cache.slots * generator.cache.length <= generator.cache.tokens
            assert len(generator.rows) <= min(generator.max_rows, generator.cache.slots or 1)
    return {number: [texts[sample] for sample in sorted(texts)] for number, texts in found.items()}


def as_told(completion: Any) -> list[float]:
    """What is told of the prompt's tokens, as numbers."""
    return [
        number
        for token in completion.prompt or []
        for number in (token.id, token.logprob, *token.top, *token.top.values())
    ]


def alone(model: str, given: list[tuple[list[int], GenerationOptions]], *overrides: str) -> list[Any]:
    """Each request in an engine of its own."""
    texts = []
    for prompt, options in given:
        texts.append(make_generator(model, *overrides).generate([prompt], options))
    return texts


def arrive_at_any_time(model: str, limits: dict[str, Any], *overrides: str) -> tuple[list[Any], list[Any]]:
    given = requests(27)
    if "cache_tokens" in limits:
        size = make_generator(model, *overrides).network.token_bytes
        limits = {**limits, "cache_bytes": limits["cache_tokens"] * size}
        del limits["cache_tokens"]
    generator = make_generator(model, *overrides, **limits)
    arrivals: dict[int, list[Any]] = {}
    for number, one in enumerate(given):
        arrivals.setdefault(number * number % 17, []).append(one)
    order = [one for step in sorted(arrivals) for one in arrivals[step]]
    found = run(generator, arrivals)
    return list(found.values()), alone(model, order, *overrides)


LIMITS: list[dict[str, Any]] = [
    {},
    {"max_rows": 4, "prompt_tokens": 7},
    {"cache_tokens": 200, "prefix_share": 0.3, "prompt_tokens": 50},
]


@in_world(1)
@pytest.mark.parametrize("limits", LIMITS, ids=["roomy", "few rows", "little memory"])
@pytest.mark.parametrize("model", ["learned", "rope", "alibi", "mixtral"])
def test_a_request_gets_the_same_texts_whatever_else_is_in_the_batch(
    model: str, limits: dict[str, Any]
) -> None:
    together, apart = arrive_at_any_time(model, limits)
    for one, other in zip(together, apart, strict=True):
        assert [c.tokens for c in one] == [c.tokens for c in other]
        assert [c.finish_reason for c in one] == [c.finish_reason for c in other]
        for mine, theirs in zip(one, other, strict=True):
            assert (mine.logprobs is None) == (theirs.logprobs is None)
            assert mine.logprobs is None or mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-9)
            assert as_told(mine) == pytest.approx(as_told(theirs), abs=1e-9)
            assert mine.score is None or mine.score == pytest.approx(theirs.score, abs=1e-6)


@in_world(1)
@pytest.mark.parametrize("model", ["learned", "rope", "alibi"])
def test_recorded_steps_give_the_same_texts(model: str) -> None:
    """What CUDA graphs play back, played back by Python: fixed tensors, rows that are filled up, lengths that are rounded."""
    recorded = []

    def capture(step: Any) -> Any:
        recorded.append(step())
        return step

    limits = {"cache_tokens": 200, "prefix_share": 0.3, "capture": capture}
    together, apart = arrive_at_any_time(model, limits)
    assert [[c.tokens for c in one] for one in together] == [[c.tokens for c in one] for one in apart]
    assert len({len(logits) for logits in recorded}) > 1


@pytest.mark.parametrize("parallel", [TP2, PP2])
def test_under_two_ranks_too(parallel: str) -> None:
    from megalm.testing import run_distributed

    texts = [
        [[c.tokens for c in one] for one in together]
        for together, _ in run_distributed(arrive_at_any_time, 2, "rope", LIMITS[2], parallel)
    ]
    ((single, _),) = run_distributed(arrive_at_any_time, 1, "rope", LIMITS[2])
    assert texts == [[[c.tokens for c in one] for one in single]] * 2


@in_world(1)
def test_n_texts_of_a_prompt_are_drawn_apart_and_the_first_is_that_of_one() -> None:
    generator = make_generator("rope")
    one = generator.generate([[1, 2, 3], [4]], GenerationOptions(max_new_tokens=8))
    many = generator.generate([[1, 2, 3], [4]], GenerationOptions(max_new_tokens=8, n=5))
    assert [many[0].tokens, many[5].tokens] == [row.tokens for row in one]
    assert len({tuple(row.tokens) for row in many}) == 10


@in_world(1)
@pytest.mark.parametrize("model", ["learned", "rope"])
def test_prompts_that_begin_alike_are_read_once_and_give_the_same_texts(model: str) -> None:
    shared = torch.randint(400, (35,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [[*shared, number] for number in range(5)] + [shared, shared[:33], [9]]
    options = GenerationOptions(max_new_tokens=6, seed=2)
    without = make_generator(model)
    expected = [row.tokens for row in without.generate(prompts, options)]
    generator = make_generator(model, prefix_share=0.5)
    read = []
    parts = generator._parts
    generator._parts = lambda grown: (found := parts(grown), read.extend(p.count for p in found))[0]
    for _ in range(2):
        for prompt, sequence, tokens in zip(prompts, range(len(prompts)), expected, strict=True):
            assert generator.generate([prompt], options, [sequence])[0].tokens == tokens
    assert generator.prefixes.hits == 32 * (len(prompts) - 2 + len(prompts) - 1)
    assert sum(read) + generator.prefixes.hits == 2 * sum(map(len, prompts))
    generator.forget()
    before = generator.prefixes.hits
    generator.generate(prompts[:1], options)
    assert generator.prefixes.hits == before


@in_world(1)
def test_requests_that_cannot_work_are_refused_and_leave_the_others_alone() -> None:
    room = 60 * make_generator("rope").network.token_bytes
    generator = make_generator("rope", max_rows=4, cache_bytes=room)
    options = GenerationOptions(greedy=True, max_new_tokens=20)
    expected = generator.generate([[1, 2]], options)[0].tokens
    with generator.running():
        generator.submit([1, 2], options)
        tokens = []
        for prompt, wrong, message in (
            ([], {}, "the prompt is empty"),
            ([1] * CONTEXT, {}, "context of 48"),
            ([1, VOCABULARY], {}, f"has the token {VOCABULARY}, but ids go from 0 to"),
            ([1], {"n": 5}, "at most 4 are open at a time"),
            ([1] * 20, {"n": 2}, "holds 60"),
            ([1], {"stop": ["x"]}, "need a tokenizer"),
            ([1], {"logit_bias": {-1: 1.0}}, "logit_bias names the token -1"),
            ([1], {"logprobs": 1000}, "at most the"),
            ([1], {"prompt_logprobs": 1000}, "at most the"),
            ([1], {"prompt_logprobs": 0, "max_new_tokens": 0}, "it must have 2 to 49"),
            ([1] * 50, {"prompt_logprobs": 0, "max_new_tokens": 0}, "it must have 2 to 49"),
        ):
            with pytest.raises(UserError, match=message):
                generator.submit(prompt, GenerationOptions(**{"max_new_tokens": 20} | wrong))
            tokens += [event.completion for event in generator.step() if event.completion]
        while generator.busy:
            tokens += [event.completion for event in generator.step() if event.completion]
    assert [done.tokens for done in tokens] == [expected]


def under_load(
    given: list[tuple[list[int], dict[str, Any]]], room: int
) -> tuple[dict[int, list[list[int]]], list[str], int]:
    """Hand in a request a step; the texts of each that is taken, what the others were told, and how many waited at most.

    Keys, values and remembered beginnings together never take more than `room` tokens' memory.
    """
    token_bytes = make_generator("rope").network.token_bytes
    limits = {"max_rows": 6, "prompt_tokens": 16, "prefix_share": 0.3}
    generator = make_generator("rope", cache_bytes=room * token_bytes, **limits)
    found: dict[int, dict[int, list[int]]] = {}
    refused, waited, left = [], 0, list(enumerate(given))
    places: dict[int, int] = {}
    with generator.running():
        while left or generator.busy:
            if left:
                place, (prompt, options) = left.pop(0)
                try:
                    places[generator.submit(prompt, GenerationOptions(**options))] = place
                except UserError as error:
                    refused.append(str(error))
            for event in generator.step():
                if event.completion:
                    texts = found.setdefault(places[event.request], {})
                    texts[event.sample] = event.completion.tokens
            held = [*generator.cache.layers, *generator.prefixes._blocks.values()]
            assert sum(tensor.numel() * tensor.itemsize for tensor in held) <= room * token_bytes
            waited = max(waited, len(generator._waiting))
    assert found.keys() == set(places.values()), "each that was taken comes to its end"
    return {place: [texts[n] for n in sorted(texts)] for place, texts in found.items()}, refused, waited


@in_world(1)
def test_under_any_load_memory_stays_within_its_limit_and_what_cannot_work_changes_nothing() -> None:
    draw = random.Random(11)
    possible = [
        (
            [draw.randrange(400) for _ in range(draw.choice([2, 5, 20, 33]))],
            {"max_new_tokens": draw.choice([1, 5, 12]), **KINDS[number % len(KINDS)]},
        )
        for number in range(42)
    ]
    impossible: list[tuple[list[int], dict[str, Any]]] = [
        ([], {}),
        ([3] * CONTEXT, {}),
        ([1], {"n": 7}),
        ([1] * 40, {"n": 4, "max_new_tokens": 8}),
        ([1, 2], {"top_p": 2.0}),
        ([1, 2], {"beams": 2, "temperature": 0.5}),
        ([1, VOCABULARY], {}),
    ]
    expected, refused, waited = under_load(possible, 200)
    assert len(expected) == len(possible) and not refused
    assert waited > 3
    mixed = [*possible]
    for number, one in enumerate(impossible):
        mixed.insert(1 + 6 * number, one)
    found, refused, _ = under_load(mixed, 200)
    assert len(refused) == len(impossible)
    assert [found[place] for place in sorted(found)] == [expected[place] for place in sorted(expected)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_p": 1.5}, "--min-p is 1.5"),
        ({"n": 0}, "--n is 0"),
        ({"beams": 2, "n": 3}, "at most the number of beams, 2"),
        ({"beams": 2, "temperature": 0.5}, "beams are searched, not sampled"),
        ({"logprobs": -1}, "--logprobs is -1"),
        ({"prompt_logprobs": -1}, "--prompt-logprobs is -1"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"max_new_tokens": 0, "prompt_logprobs": 0, "n": 2}, "--n is 2"),
        ({"beams": 2, "prompt_logprobs": 0}, "--prompt-logprobs"),
        ({"presence_penalty": float("nan")}, "--presence-penalty is nan"),
        ({"logit_bias": {1: float("inf")}}, "--logit-bias"),
        ({"temperature": float("inf")}, "--temperature is inf"),
        ({"temperature": 1e-40}, "--temperature is 1e-40"),
        ({"logit_bias": {1: 1e39}}, "--logit-bias"),
        ({"repetition_penalty": 1e-40}, "--repetition-penalty"),
        ({"frequency_penalty": -1e39}, "--frequency-penalty"),
    ],
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationOptions(**wrong)


@in_world(1)
@pytest.mark.parametrize(
    "shape", [{}, {"temperature": 0.7, "top_k": 12}, {"top_p": 0.8, "temperature": 1.4}, {"min_p": 0.1}]
)
def test_texts_follow_the_distribution_of_the_model(shape: dict[str, Any]) -> None:
    """First and second tokens of many texts, by chi-square, against the training model's probabilities."""
    from megalm.generate.sampling import shape_logits

    generator = make_generator("rope", "model.vocab_size=40", "model.init_method_std=0.1")
    options = GenerationOptions(max_new_tokens=2, n=50, **shape)
    rows = generator.generate([[1, 2, 3]] * 80, options)
    network = generator.chunks[0].eval()
    with torch.no_grad():
        first_V = shape_logits(network(torch.tensor([[1, 2, 3]]))[:, -1], options)[0].softmax(-1)
        texts = torch.tensor([[1, 2, 3, token] for token in range(40)])
        second_VV = shape_logits(network(texts)[:, -1], options).softmax(-1)
    expected_VV = len(rows) * first_V[:, None] * second_VV
    seen_VV = torch.zeros(40, 40)
    for row in rows:
        seen_VV[tuple(row.tokens)] += 1
    assert not seen_VV[expected_VV == 0].any()
    often = expected_VV >= 5
    seen = torch.cat([seen_VV[often], seen_VV[~often].sum()[None]])
    expected = torch.cat([expected_VV[often], expected_VV[~often].sum()[None]])
    kept = expected > 0
    chi_square = ((seen - expected)[kept] ** 2 / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    assert freedom > 20
    # Wilson and Hilferty's approximation of the quantile that one in 10,000 exceeds
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3


@in_world(1)
@pytest.mark.parametrize("leaves", ["by its end", "cancelled"])
def test_a_prompt_that_is_read_in_parts_may_change_its_slot_in_between(leaves: str) -> None:
    generator = make_generator("rope", prompt_tokens=7)
    options = GenerationOptions(greedy=True, max_new_tokens=8)
    long = [5, 6, 7, 8] * 8
    expected = generator.generate([long], options)[0].tokens
    with generator.running():
        first = generator.submit(
            [1, 2], GenerationOptions(greedy=True, max_new_tokens=2 if leaves == "by its end" else 9)
        )
        second = generator.submit(long, options)
        generator.step()
        assert [row.request.number for row in generator.rows] == [first, second]
        assert generator.rows[1].cached == 5
        events = generator.step()
        if leaves == "cancelled":
            generator.cancel(first)
        assert [row.request.number for row in generator.rows] == [second], "into the first slot"
        while generator.busy:
            events += generator.step()
    done = {event.request: event.completion for event in events if event.completion}
    assert done[second].tokens == expected


@in_world(1)
def test_steps_are_recorded_anew_where_other_memory_lies_at_the_same_address() -> None:
    recorded = []

    def capture(step: Any) -> Any:
        recorded.append(step())
        return step

    room = 6144 * make_generator("rope").network.token_bytes
    generator = make_generator("rope", capture=capture, cache_bytes=room)
    cache, options = generator.cache, GenerationOptions(greedy=True, max_new_tokens=8)
    expected = generator.generate([[1, 2]], options)[0].tokens
    with generator.running():
        cache.reserve(8, 512, 0)
        generator.submit([1, 2], options)
        generator.step()
        generator.step()
        before, old = len(recorded), cache.layers[0]
        cache.reserve(1, 768, 1)
        new = cache.layers[0]
        cache.layers[0] = old.flatten()[: new.numel()].view(new.shape).copy_(new.clone())
        assert cache.layers[0].data_ptr() == old.data_ptr()
        events = [event for _ in range(6) for event in generator.step()]
    assert len(recorded) > before
    assert events[-1].completion.tokens == expected


@in_world(1)
def test_forgetting_gives_the_memory_back_and_the_next_text_is_the_same() -> None:
    generator = make_generator("rope", prefix_share=0.5)
    options = GenerationOptions(greedy=True, max_new_tokens=4)
    first = generator.generate([[1] * 40], options)
    assert generator.cache.slots
    generator.forget()
    assert not any(layer.numel() for layer in generator.cache.layers)
    assert generator.generate([[1] * 40], options) == first


def test_remembered_beginnings_never_exceed_their_share() -> None:
    from megalm.generate.cache import SlotCache
    from megalm.generate.prefix import BLOCK, PrefixCache

    cache = SlotCache(1, 1, 2, 2048, torch.float32, torch.device("cpu"))
    cache.reserve(1, 10 * BLOCK, 0)
    prefixes = PrefixCache(4 * BLOCK)
    read, sizes = cache.read, []
    cache.read = lambda *where: (sizes.append(len(prefixes._blocks)), read(*where))[1]
    for text in (range(0, 96), range(1000, 1064), range(0, 96), range(2000, 2320), range(0, 160)):
        prefixes.store(list(text), cache, 0)
        assert len(prefixes._blocks) <= 4
    assert max(sizes) < 4, "a block is made while there is room for it"


def test_of_beginnings_that_were_used_the_ends_go_first() -> None:
    from megalm.generate.cache import SlotCache
    from megalm.generate.prefix import BLOCK, PrefixCache

    cache = SlotCache(1, 1, 2, 2048, torch.float32, torch.device("cpu"))
    cache.reserve(1, 10 * BLOCK, 0)
    prefixes = PrefixCache(4 * BLOCK)
    used, other = list(range(3 * BLOCK)), list(range(1000, 1000 + 2 * BLOCK))
    prefixes.store(used, cache, 0)
    assert prefixes.load([*used, 1], cache, 0) == 3 * BLOCK
    prefixes.store(other, cache, 0)
    assert prefixes.load([*used, 1], cache, 0) == 2 * BLOCK
    assert prefixes.load([*other, 1], cache, 0) == 2 * BLOCK


def test_a_beginning_is_known_by_all_tokens_before_it_and_the_last_token_is_left_to_compute() -> None:
    from megalm.generate.cache import SlotCache
    from megalm.generate.prefix import BLOCK, PrefixCache

    cache = SlotCache(1, 1, 2, 2048, torch.float32, torch.device("cpu"))
    cache.reserve(1, 10 * BLOCK, 0)
    prefixes = PrefixCache(4 * BLOCK)
    prefixes.store(range(2 * BLOCK), cache, 0)
    assert prefixes.load(range(2 * BLOCK), cache, 0) == BLOCK
    other = [*range(1000, 1000 + BLOCK), *range(BLOCK, 2 * BLOCK), 1]
    assert prefixes.load(other, cache, 0) == 0
    prefixes.store(other, cache, 0)
    assert prefixes.load([*range(2 * BLOCK), 1], cache, 0) == 2 * BLOCK
    assert len(prefixes._blocks) == 4, "the same tokens after others are others"


@pytest.mark.parametrize("early", [True, False])
def test_a_search_ends_early_only_if_asked_to_while_a_better_text_still_grows(early: bool) -> None:
    from megalm.generate.beams import BeamSearch

    options = GenerationOptions(beams=2, early_stopping=early)
    search = BeamSearch(options, 9, eod_id=0, text=None)
    search.advance([-0.1, -3.0, -4.0, -5.0], [0, 0, 0, 0], [1, 0, 2, 3])
    assert [beam.tokens for beam in search.growing] == [[1], [2]]
    search.advance([-0.2, -3.5, -4.5, -6.0], [0, 0, 1, 1], [1, 0, 1, 2])
    assert [beam.tokens for beam in search.ended] == [[1, 0], [0]]
    assert [beam.tokens for beam in search.growing] == ([] if early else [[1, 1], [2, 1]])
