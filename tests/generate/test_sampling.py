"""The distribution that is sampled is Hugging Face's, and each draw depends on its seed, sequence and step alone."""

import math

import pytest
import torch
from torch import Tensor

from megalm.generate import sampling
from megalm.generate.request import GenerationOptions
from megalm.generate.sampling import (
    TokenCounts,
    adjust_logits,
    choose,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    shape_logits,
    uniform,
)

VOCABULARY = 97
CPU = torch.device("cpu")
CHI_SQUARE_7_DEGREES_999 = 24.32


def random_logits(rows: int = 6, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def seen_mask(tokens_BT: Tensor) -> Tensor:
    return torch.zeros(len(tokens_BT), VOCABULARY, dtype=torch.bool).scatter(1, tokens_BT, True)


@pytest.mark.parametrize("penalty", [0.8, 1.3, 5.0])
def test_repetition_penalty_equals_hugging_face(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    tokens_BT = torch.randint(VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(1))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens_BT, random_logits())
    torch.testing.assert_close(
        penalize_repetition(random_logits(), seen_mask(tokens_BT), penalty), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize("k", [1, 5, 96, 97, 500])
def test_top_k_equals_hugging_face(k: int) -> None:
    from transformers import TopKLogitsWarper

    expected = TopKLogitsWarper(k)(torch.zeros(6, 1), random_logits())
    torch.testing.assert_close(keep_top_k(random_logits(), k), expected, rtol=0, atol=0)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("likely", [8, 512])
def test_top_p_equals_hugging_face(p: float, likely: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TopPLogitsWarper

    monkeypatch.setattr(sampling, "LIKELY", likely)
    expected = TopPLogitsWarper(p)(torch.zeros(6, 1), random_logits().double())
    torch.testing.assert_close(keep_top_p(random_logits().double(), p), expected, rtol=0, atol=0)


def test_all_together_in_hugging_face_order() -> None:
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(20), TopPLogitsWarper(0.8)])
    logits_BV = random_logits() / 3
    expected = warpers(torch.zeros(6, 1, dtype=torch.long), logits_BV)
    shaped = shape_logits(logits_BV, GenerationOptions(temperature=0.7, top_k=20, top_p=0.8))
    torch.testing.assert_close(shaped, expected, rtol=0, atol=0)
    kept_B = (shaped > -math.inf).sum(1)
    assert kept_B.min() > 1 and kept_B.max() < 20, "each filter has to leave its mark"


def test_greedy_takes_the_likeliest_after_the_penalty() -> None:
    logits_BV = torch.tensor([[1.0, 3.0, 2.9], [1.0, 3.0, 2.9]])
    options = GenerationOptions(greedy=True, repetition_penalty=1.5)
    assert [
        adjust_logits(logits_V, options, counts).argmax().item()
        for logits_V, counts in zip(
            logits_BV, (TokenCounts([1], 3, CPU), TokenCounts([0], 3, CPU)), strict=True
        )
    ] == [2, 1]
    assert choose(logits_BV, [GenerationOptions(greedy=True)] * 2, ["0", "1"], [0, 0]).tolist() == [1, 1]


def test_draws_follow_the_distribution() -> None:
    draws = 20_000
    logits_V = torch.tensor([0.0, 1.0, -math.inf, 2.0, 0.5, -1.0, 1.5, 0.2, 0.9])
    uniform_B = torch.tensor([uniform(7, str(i), 0) for i in range(draws)], dtype=torch.float64)
    counts_V = draw(logits_V.expand(draws, -1), uniform_B).bincount(minlength=9).double()
    expected_V = logits_V.double().softmax(-1) * draws
    real = expected_V > 0
    chi_square = ((counts_V - expected_V)[real] ** 2 / expected_V[real]).sum()
    assert counts_V[2] == 0
    assert chi_square < CHI_SQUARE_7_DEGREES_999


def test_steps_of_one_sequence_are_drawn_apart() -> None:
    pairs = torch.tensor([[uniform(7, "3", step), uniform(7, "3", step + 1)] for step in range(4000)])
    assert len(set(pairs[:, 0].tolist())) == 4000
    assert abs(torch.corrcoef(pairs.T)[0, 1]) < 0.05
    assert abs(pairs.mean() - 0.5) < 0.02


def test_no_draw_picks_an_excluded_token() -> None:
    logits_BV = torch.full((2, 5), -math.inf)
    logits_BV[:, 2] = 0.3
    assert draw(logits_BV, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [2, 2]


def test_a_row_is_drawn_the_same_in_any_batch() -> None:
    logits_BV = random_logits()
    options = [GenerationOptions(seed=5, top_p=0.95, temperature=2.0)] * 6
    names = list("012345")
    together = choose(logits_BV, options, names, [9] * 6).tolist()
    alone = [choose(logits_BV[i : i + 1], options[:1], [names[i]], [9]).item() for i in range(6)]
    assert together == alone
    assert together != choose(logits_BV, options, names, [10] * 6).tolist()
    assert together != choose(logits_BV, options, list("abcdef"), [9] * 6).tolist()
    other_seed = [GenerationOptions(seed=6, top_p=0.95, temperature=2.0)] * 6
    assert together != choose(logits_BV, other_seed, names, [9] * 6).tolist()


def test_each_row_is_drawn_by_its_own_options() -> None:
    logits_BV = random_logits()
    options = [
        GenerationOptions(greedy=True),
        GenerationOptions(temperature=3.0),
        GenerationOptions(top_k=2, seed=4),
        GenerationOptions(greedy=True),
        GenerationOptions(temperature=3.0, seed=9),
        GenerationOptions(min_p=0.3, top_p=0.9),
    ]
    together = choose(logits_BV, options, list("012345"), [0] * 6).tolist()
    alone = [choose(logits_BV[i : i + 1], [options[i]], [str(i)], [0]).item() for i in range(6)]
    assert together == alone


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p_equals_hugging_face(p: float) -> None:
    from transformers import MinPLogitsWarper

    expected = MinPLogitsWarper(p)(torch.zeros(6, 1), random_logits().double())
    torch.testing.assert_close(keep_min_p(random_logits().double(), p), expected, rtol=0, atol=0)


def test_presence_and_frequency_count_the_text_and_biases_add() -> None:
    counts = TokenCounts([0, 1], 5, CPU)
    for token in (2, 2, 3):
        counts.add(token)
    other = counts.copy()
    other.add(4)
    options = GenerationOptions(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={1: -2.0, 3: 1.0})
    assert adjust_logits(torch.zeros(5), options, counts).tolist() == [0.0, -2.0, -1.0, 0.25, 0.0]
    assert adjust_logits(torch.zeros(5), options, other).tolist() == [0.0, -2.0, -1.0, 0.25, -0.75]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}])
def test_each_filter_alone_can_make_sampling_greedy(narrow: dict[str, float]) -> None:
    logits_BV = random_logits()
    for step in range(20):
        drawn = choose(logits_BV, [GenerationOptions(**narrow)] * 6, list("012345"), [step] * 6)
        assert drawn.equal(logits_BV.argmax(-1))


def test_near_ties_that_change_places_leave_the_draw() -> None:
    numbers = torch.tensor([uniform(7, str(i), 0) for i in range(200)], dtype=torch.float64)
    tied = torch.tensor([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 0.5], dtype=torch.float64)
    swapped = torch.tensor([1.0, 1.0 - 1e-12, 1.0 + 1e-12, 0.5], dtype=torch.float64)
    options = GenerationOptions(top_p=0.99, top_k=4)
    first = draw(shape_logits(tied.expand(200, -1), options), numbers)
    assert first.equal(draw(shape_logits(swapped.expand(200, -1), options), numbers))


def test_no_token_is_drawn_from_behind_the_vocabulary_whatever_the_logits() -> None:
    rows = [[0.0, 1.0, math.nan], [math.nan] * 3, [-math.inf] * 3, [math.inf, 1.0, math.inf]]
    drawn_B = draw(torch.tensor(rows), torch.tensor([0.3, 0.0, 0.9, 0.5], dtype=torch.float64))
    assert all(0 <= token < 3 for token in drawn_B.tolist())
