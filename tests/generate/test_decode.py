"""Generation gives what the training model's forward pass gives, in any batch and under every layout."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megalm.errors import UserError
from megalm.generate.request import GenerationOptions
from megalm.testing import run_distributed
from tests.tiny import VOCABULARY, tiny_config, tiny_model
from tests.worlds import in_world

CONTEXT = 48
PROMPTS = [[1, 2, 3], [5] * 17, [7, 8, 9, 10, 11], [400]]
MODELS = {
    "learned": ("gpt2-tiny",),
    "sinusoidal": (
        "gpt2-tiny",
        "model.position_embedding=sinusoidal",
        "model.init_method_std=1",
        "model.tie_embeddings=false",
    ),
    "rope": ("llama-tiny",),
    "alibi": ("llama-tiny", "model.position_embedding=alibi"),
    # the capacity is for training alone
    "mixtral": ("mixtral-tiny", "model.moe.capacity_factor=0.5"),
}
TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"


def make_generator(model: str, *overrides: str, **keywords: Any) -> Any:
    """A random model with large weights, so that no two tokens are nearly equally likely and texts vary."""
    from megalm.generate.decode import Generator
    from megalm.parallel.layout import create_layout

    preset, *more = MODELS[model]
    config = tiny_config(
        preset, "model.init_method_std=0.2", f"model.max_sequence_length={CONTEXT}", *more, *overrides
    )
    return Generator([tiny_model(config)], create_layout(config.parallel), CONTEXT, **keywords)


def tokens(
    model: str, overrides: tuple[str, ...], options: dict[str, Any], prompts: list[list[int]]
) -> list[list[int]]:
    """Tokens that each prompt is continued with; runs on every rank."""
    generator = make_generator(model, *overrides)
    options = {"max_new_tokens": 20, "greedy": True} | options
    return [c.tokens for c in generator.generate(prompts, GenerationOptions(**options))]


def in_one_process(model: str, **options: Any) -> list[list[int]]:
    return run_distributed(tokens, 1, model, (), options, PROMPTS)[0]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def greedy(model: str) -> list[list[int]]:
    """What one process generates with the cache."""
    found = in_one_process(model)
    assert all(len(row) == 20 for row in found)
    assert min(len(set(row)) for row in found) > 5, "a text that repeats one token proves little"
    return found


def by_whole_passes(model: str) -> list[list[int]]:
    """Greedy continuations by the training model's own forward pass over the whole text, again for each token."""
    network = make_generator(model).chunks[0].eval()
    texts = []
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                text.append(network(torch.tensor([text]))[0, -1].argmax().item())
        texts.append(text[len(prompt) :])
    return texts


def test_greedy_equals_whole_forward_passes_of_the_training_model(
    model: str, greedy: list[list[int]]
) -> None:
    assert run_distributed(by_whole_passes, 1, model)[0] == greedy


def test_prompts_alone_give_what_they_give_in_a_batch(model: str, greedy: list[list[int]]) -> None:
    alone = [run_distributed(tokens, 1, model, (), {}, [prompt])[0][0] for prompt in PROMPTS]
    assert alone == greedy


@pytest.mark.parametrize("parallel", [TP2, PP2])
def test_greedy_under_two_ranks_is_the_same_on_each(
    model: str, greedy: list[list[int]], parallel: str
) -> None:
    assert run_distributed(tokens, 2, model, (parallel,), {}, PROMPTS) == [greedy] * 2


def test_greedy_under_tp2_pp2_is_the_same_on_each(model: str, greedy: list[list[int]]) -> None:
    assert run_distributed(tokens, 4, model, (TP2, PP2), {}, PROMPTS) == [greedy] * 4


SAMPLED = {
    "greedy": False,
    "seed": 11,
    "temperature": 1.5,
    "top_k": 50,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
}


def test_sampling_is_a_function_of_the_seed_and_not_of_the_layout() -> None:
    first = in_one_process("rope", **SAMPLED)
    assert in_one_process("rope", **SAMPLED) == first
    assert in_one_process("rope", **(SAMPLED | {"seed": 12})) != first
    assert run_distributed(tokens, 2, "rope", (TP2,), SAMPLED, PROMPTS) == [first] * 2
    assert run_distributed(tokens, 2, "rope", (PP2,), SAMPLED, PROMPTS) == [first] * 2


def copies_of_the_model(sequences: list[list[int]]) -> list[list[int]]:
    """Each data-parallel rank continues its own prompt under the number that it has among all."""
    generator = make_generator("rope")
    rank = generator.layout.dp_rank
    options = GenerationOptions(**SAMPLED, max_new_tokens=20)
    return [generator.generate([sequences[rank]], options, [rank])[0].tokens]


def test_a_sequence_number_stands_for_the_place_in_the_batch() -> None:
    together = run_distributed(tokens, 1, "rope", (), SAMPLED, PROMPTS[:2])[0]
    assert [rows[0] for rows in run_distributed(copies_of_the_model, 2, PROMPTS[:2])] == together


@in_world(1)
def test_equal_prompts_are_sampled_apart() -> None:
    rows = make_generator("rope").generate([[1, 2]] * 4, GenerationOptions(max_new_tokens=8))
    assert len({tuple(row.tokens) for row in rows}) == 4


@in_world(1)
@pytest.mark.parametrize("prompt_tokens", [1024, 8])
@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_those_of_the_training_model(name: str, prompt_tokens: int) -> None:
    """Of sampled texts of unlike lengths, whose prompts are read in one pass or in several, beside texts that grow."""
    generator = make_generator(
        name, "precision.dtype=fp32", "model.init_method_std=0.05", prompt_tokens=prompt_tokens
    )
    network = generator.chunks[0].eval()
    options = GenerationOptions(max_new_tokens=20, logprobs=2, temperature=2.0, top_k=50)
    rows = generator.generate(PROMPTS, options)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        whole = torch.tensor([prompt + row.tokens])
        with torch.no_grad():
            logprobs_SV = network(whole)[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        expected = logprobs_SV.gather(-1, torch.tensor(row.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(row.logprobs).double(), expected, rtol=0, atol=1e-5)
        likeliest = logprobs_SV.topk(2)
        for place, top in enumerate(row.top_logprobs):
            assert list(top) == likeliest.indices[place].tolist()
            assert list(top.values()) == pytest.approx(likeliest.values[place].tolist(), abs=1e-5)


def told_of_prompts(model: str, *overrides: str, **limits: Any) -> list[Any]:
    """Of prompts that are read alone, and of one that fills the context: (token, log-probability, likeliest ones) of each place."""
    generator = make_generator(model, "model.init_method_std=0.05", *overrides, **limits)
    options = GenerationOptions(max_new_tokens=0, prompt_logprobs=2, greedy=True)
    prompts = [*PROMPTS[:3], list(range(1, CONTEXT + 2))]
    return [completion.prompt for completion in generator.generate(prompts, options)]


def check_told(model: str, found: list[Any]) -> None:
    """Against one pass of the training model over the whole prompt."""
    network = make_generator(model, "model.init_method_std=0.05").chunks[0].eval()
    for prompt, told in zip([*PROMPTS[:3], list(range(1, CONTEXT + 2))], found, strict=True):
        assert [token.id for token in told] == prompt[1:]
        with torch.no_grad():
            logprobs_SV = network(torch.tensor([prompt[:-1]]))[0].double().log_softmax(-1)
        expected = logprobs_SV.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
        assert [token.logprob for token in told] == pytest.approx(expected.tolist(), abs=1e-5)
        for logprobs_V, token in zip(logprobs_SV, told, strict=True):
            assert list(token.top.values()) == pytest.approx(logprobs_V.topk(2).values.tolist(), abs=1e-5)
            assert [float(logprobs_V[one]) for one in token.top] == pytest.approx(
                list(token.top.values()), abs=1e-5
            )


@in_world(1)
@pytest.mark.parametrize("prompt_tokens", [1024, 8])
@pytest.mark.parametrize("name", MODELS)
def test_logprobs_of_prompts_are_those_of_the_training_model(name: str, prompt_tokens: int) -> None:
    """Read in one pass or in several; a beginning that is remembered is read again."""
    check_told(name, told_of_prompts(name, prompt_tokens=prompt_tokens, prefix_share=0.5))


@pytest.mark.parametrize("parallel", [TP2, PP2])
def test_logprobs_of_prompts_are_the_same_on_every_rank(parallel: str) -> None:
    first, second = run_distributed(told_of_prompts, 2, "rope", parallel)
    assert first == second
    run_distributed(check_told, 1, "rope", first)


@in_world(1)
def test_a_prompt_is_told_once_beside_what_is_written_to_it() -> None:
    generator = make_generator("rope", prompt_tokens=8)
    with generator.running():
        generator.submit([9] * 3, GenerationOptions(max_new_tokens=9))
        number = generator.submit(
            PROMPTS[1], GenerationOptions(max_new_tokens=3, n=2, prompt_logprobs=1, logprobs=1)
        )
        events = []
        while generator.busy:
            events += [event for event in generator.step() if event.request == number]
    (told,) = [event for event in events if event.prompt is not None]
    assert told.sample == 0 and told.completion is None
    done = [event.completion for event in events if event.completion]
    assert [len(one.tokens) for one in done] == [3, 3]
    alone = make_generator("rope").generate(
        [PROMPTS[1]], GenerationOptions(max_new_tokens=0, prompt_logprobs=1)
    )
    expected = [token.logprob for token in alone[0].prompt]
    for prompt in (told.prompt, *(one.prompt for one in done)):
        assert [token.logprob for token in prompt] == pytest.approx(expected, abs=1e-9)


@in_world(1)
def test_logprobs_are_at_each_request_s_own_temperature_where_it_asks_for_that() -> None:
    generator = make_generator("rope", "model.init_method_std=0.05")
    network = generator.chunks[0].eval()
    asked: list[tuple[dict[str, Any], float]] = [
        ({"temperature": 2.0}, 0.0),
        ({"temperature": 0.5, "logprobs": 1, "logprobs_at_temperature": True}, 0.5),
        ({"temperature": 3.0, "logprobs": 2}, 1.0),
        ({"temperature": 1.5, "logprobs": 0, "logprobs_at_temperature": True}, 1.5),
    ]
    with generator.running():
        numbers = [
            generator.submit(prompt, GenerationOptions(max_new_tokens=6, **one))
            for prompt, (one, _) in zip(PROMPTS, asked, strict=True)
        ]
        events = []
        while generator.busy:
            events += generator.step()
    done = {event.request: event.completion for event in events if event.completion}
    for number, prompt, (one, temperature) in zip(numbers, PROMPTS, asked, strict=True):
        row = done[number]
        if not temperature:
            assert row.logprobs is None and row.top_logprobs is None
            continue
        with torch.no_grad():
            logits_SV = network(torch.tensor([prompt + row.tokens]))[0, len(prompt) - 1 : -1]
        logprobs_SV = (logits_SV / temperature).log_softmax(-1)
        expected = logprobs_SV.gather(-1, torch.tensor(row.tokens)[:, None])[:, 0]
        assert row.logprobs == pytest.approx(expected.tolist(), abs=1e-9)
        if not one["logprobs"]:
            assert row.top_logprobs is None
            continue
        likeliest = logprobs_SV.topk(one["logprobs"])
        for place, top in enumerate(row.top_logprobs):
            assert list(top) == likeliest.indices[place].tolist()
            assert list(top.values()) == pytest.approx(likeliest.values[place].tolist(), abs=1e-9)


@in_world(1)
def test_repetition_penalty_counts_prompt_and_text() -> None:
    generator = make_generator("rope")
    prompts = torch.randint(VOCABULARY, (64, 40), generator=torch.Generator().manual_seed(0)).tolist()
    free = generator.generate(prompts, GenerationOptions(greedy=True, max_new_tokens=1))
    assert any(row.tokens[0] in prompt for row, prompt in zip(free, prompts, strict=True))
    rows = generator.generate(
        prompts, GenerationOptions(greedy=True, max_new_tokens=8, repetition_penalty=1e9)
    )
    for row, prompt in zip(rows, prompts, strict=True):
        assert len(set(row.tokens)) == 8
        assert not set(row.tokens) & set(prompt)


@in_world(1)
def test_a_text_ends_with_the_context_and_a_longer_prompt_is_refused() -> None:
    generator = make_generator("learned")
    options = GenerationOptions(greedy=True, max_new_tokens=20)
    longest = [3] * (CONTEXT - 1)
    rows = generator.generate([longest, [1, 2]], options)
    assert [len(row.tokens) for row in rows] == [1, 20]
    assert [row.finish_reason for row in rows] == ["length", "length"]
    with pytest.raises(UserError, match=f"prompt 1 has {CONTEXT} tokens.*context of {CONTEXT}"):
        generator.generate([[1], [3] * CONTEXT], options)


@in_world(1)
def test_the_model_keeps_its_mode_and_can_train_afterwards() -> None:
    generator = make_generator("rope", "model.hidden_dropout=0.5")
    network = generator.chunks[0].train()
    first, second = (
        generator.generate([[1, 2]], GenerationOptions(greedy=True, max_new_tokens=4)) for _ in "ab"
    )
    assert first == second, "dropout has to be off"
    assert network.training
    network(torch.tensor([[1, 2, 3]])).sum().backward()


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    from megalm.tokenizer import train_bpe

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("the end of the text, and of the hand\n" * 10, encoding="utf-8")
    return str(train_bpe([folder / "text.txt"], 280, folder / "tokenizer") and folder / "tokenizer")


@in_world(1)
def test_rows_that_end_leave_the_batch_and_the_others_go_on(tokenizer_path: str) -> None:
    from megalm.generate.forward import Network
    from megalm.tokenizer import load_tokenizer

    options = GenerationOptions(greedy=True, max_new_tokens=20)
    plain = make_generator("rope", tokenizer=load_tokenizer(tokenizer_path))
    free = plain.generate(PROMPTS[:3], options)
    assert all(token < plain.tokenizer.vocab_size for row in free for token in row.tokens), (
        "the others are no text"
    )

    # a token of the first text becomes the one that ends documents
    last = free[0].tokens[6]
    sizes = []
    original = Network.run

    def run(*args: Any) -> Any:
        logits_RV = original(*args)
        sizes.append(len(logits_RV))
        return logits_RV

    Network.run = run
    try:
        name = plain.tokenizer._backend.id_to_token(last)
        ending = make_generator("rope", tokenizer=load_tokenizer(tokenizer_path + "/tokenizer.json", name))
        rows = ending.generate(PROMPTS[:3], options)
    finally:
        Network.run = original
    for row, whole in zip(rows, free, strict=True):
        end = whole.tokens.index(last) + 1 if last in whole.tokens else 20
        assert row.tokens == whole.tokens[:end]
        assert row.finish_reason == ("stop" if last in whole.tokens else "length")
        assert row.text == plain.tokenizer.decode(
            row.tokens[:-1] if row.finish_reason == "stop" else row.tokens
        )
    assert sizes == [
        sum(len(row.tokens) > step for row in rows) for step in range(max(len(r.tokens) for r in rows))
    ]
    assert len(set(sizes)) > 1


def stop_at(tokenizer_path: str, overrides: tuple[str, ...]) -> list[Any]:
    """The greedy text, and what is left of it with a stop string from its middle, with the pieces as they came."""
    from megalm.tokenizer import load_tokenizer

    generator = make_generator("rope", *overrides, tokenizer=load_tokenizer(tokenizer_path))
    whole = generator.generate(PROMPTS[:1], GenerationOptions(greedy=True, max_new_tokens=20))[0]
    middle = whole.text[len(whole.text) // 2 :][:3]
    pieces: list[str] = []
    stopped = generator.generate(
        PROMPTS[:1],
        GenerationOptions(greedy=True, max_new_tokens=20, stop=[middle]),
        on_text=lambda number, piece: pieces.append(piece),
    )[0]
    return [whole.text, middle, stopped.text, stopped.finish_reason, "".join(pieces), len(stopped.tokens)]


@pytest.mark.parametrize("overrides", [(), (TP2,), (PP2,)])
def test_stop_strings_end_the_text_on_every_rank(tokenizer_path: str, overrides: tuple[str, ...]) -> None:
    for result in run_distributed(stop_at, 1 + len(overrides), tokenizer_path, overrides):
        whole, middle, text, reason, pieces, count = result
        assert text == whole[: whole.index(middle)] == pieces
        assert reason == "stop"
        assert count < 20


@in_world(1)
def test_beams_end_at_stop_strings_and_at_the_end_of_a_document(tokenizer_path: str) -> None:
    from megalm.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    generator = make_generator("rope", tokenizer=tokenizer)
    settings: dict[str, Any] = {"beams": 3, "n": 3, "max_new_tokens": 12, "length_penalty": 0.5}
    free = generator.generate(PROMPTS[:1], GenerationOptions(**settings))
    assert all(done.text == tokenizer.decode(done.tokens) for done in free)
    pairs = [done.text[at : at + 2] for done in free for at in range(3, len(done.text) - 1)]
    stop = next(pair for pair in pairs if "\ufffd" not in pair)
    eod = {tokenizer.eod_id: 12.0}
    reasons = []
    for options in (
        GenerationOptions(**settings, stop=[stop]),
        GenerationOptions(**settings, logit_bias=eod),
    ):
        for done in generator.generate(PROMPTS[:1], options):
            tokens, ends = list(done.tokens), done.tokens[-1] == tokenizer.eod_id
            text = tokenizer.decode(tokens[:-1] if ends else tokens)
            assert tokenizer.eod_id not in tokens[:-1]
            if options.stop:
                assert stop not in tokenizer.decode(tokens[:-1]), "it ends with the first"
                ends |= stop in text
                text = text.partition(stop)[0]
            assert done.text == text
            assert done.finish_reason == ("stop" if ends else "length")
            assert len(tokens) == 12 or ends
            reasons.append((bool(options.stop), done.finish_reason))
    assert {(True, "stop"), (False, "stop")} <= set(reasons)


@in_world(1)
def test_what_comes_of_others_is_not_lost_where_a_callback_raises(tokenizer_path: str) -> None:
    from megalm.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path)
    generator = make_generator("rope", tokenizer=tokenizer)
    (letter,) = tokenizer.encode("e")
    numbers: list[int] = []

    def on_text(_: int, piece: str) -> None:
        if numbers:
            raise KeyboardInterrupt
        numbers.append(generator.submit([3], GenerationOptions(greedy=True, max_new_tokens=1)))

    with generator.running():
        with pytest.raises(KeyboardInterrupt):  # in the very step in which the other text ends
            generator.generate(
                [[1, 2]], GenerationOptions(greedy=True, logit_bias={letter: 100.0}), None, on_text
            )
        assert not generator.rows
        assert [(event.request, len(event.completion.tokens)) for event in generator.step()] == [
            (numbers[0], 1)
        ]


@in_world(1)
def test_each_continuation_of_a_beam_decodes_its_last_token_alone(tokenizer_path: str) -> None:
    from megalm.tokenizer import load_tokenizer
    from megalm.tokenizer.streams import ByteStream

    generator = make_generator("rope", tokenizer=load_tokenizer(tokenizer_path))
    options = GenerationOptions(beams=3, max_new_tokens=20, stop=["\x00"])
    pushed = []
    original = ByteStream.push
    ByteStream.push = lambda self, token: (pushed.append(token), original(self, token))[1]
    try:
        generator.generate(PROMPTS[1:2], options)
    finally:
        ByteStream.push = original
    assert 20 <= len(pushed) - len(PROMPTS[1]) <= 20 * 2 * options.beams


@in_world(1)
@pytest.mark.parametrize(("name", "length"), [("learned", CONTEXT), ("rope", 64)])
def test_the_context_is_the_position_table_or_what_was_trained(name: str, length: int) -> None:
    from megalm.generate.decode import context_length

    config = tiny_config(*MODELS[name], f"model.max_sequence_length={CONTEXT}")
    config.batch.seq_length = 64
    assert context_length(config) == length
