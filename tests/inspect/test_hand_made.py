"""What inspection finds in models whose answer is known: a copier set by hand, functions with known integrals, drawn arrows."""

import math
from pathlib import Path

import pytest
import torch

from megalm.errors import UserError
from megalm.inspect.subject import Subject
from tests.inspect.subjects import TEXT, VOCABULARY, WORDS, copier, random_subject, word, write_tokenizer
from tests.worlds import in_world

FAMILIES = {
    "gpt2-tiny": (),
    "llama-tiny": (),
    "bert-tiny": ("task=mlm",),
    "alibi": ("model.position_embedding=alibi",),
    "experts": (),
    "head norms": ("model.qk_layernorm=true",),
}
PRESETS = {"alibi": "gpt2-tiny", "experts": "mixtral-tiny", "head norms": "llama-tiny"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


@in_world(1)
def test_the_copiers_head_looks_at_the_token_before(folder: Path) -> None:
    from megalm.inspect.trace import head_figures, trace

    subject = copier(folder)
    ids = subject.encode(TEXT)
    found = trace(subject, ids)
    previous_SS = torch.eye(len(ids), dtype=torch.float64).roll(-1, 1)[1:]
    torch.testing.assert_close(found.attention[0][0, 1:], previous_SS, rtol=0, atol=1e-6)
    # heads without weights look at all tokens before and themselves alike
    alike_SS = torch.ones(len(ids), len(ids), dtype=torch.float64).tril()
    alike_SS /= alike_SS.sum(1, keepdim=True)
    for head_SS in [*found.attention[0][1:], *found.attention[1]]:
        torch.testing.assert_close(head_SS, alike_SS)
    copying, idle = head_figures(found.attention[0])[:2]
    assert copying.on_previous == pytest.approx(1, abs=1e-6) and copying.entropy_bits == pytest.approx(
        0, abs=1e-4
    )
    assert copying.distance == pytest.approx((len(ids) - 1) / len(ids), abs=1e-5)
    harmonic = [1 / n for n in range(1, len(ids) + 1)]
    assert idle.on_itself == idle.on_first == pytest.approx(sum(harmonic) / len(ids))
    assert idle.on_previous == pytest.approx(sum(harmonic[1:]) / (len(ids) - 1))
    assert idle.entropy_bits == pytest.approx(sum(math.log2(n) for n in range(1, len(ids) + 1)) / len(ids))
    assert idle.distance == pytest.approx(sum(n / 2 for n in range(len(ids))) / len(ids))


@in_world(1)
def test_the_lens_sees_the_copy_appear_behind_the_first_layer(folder: Path) -> None:
    from megalm.inspect.lens import logit_lens
    from megalm.inspect.trace import trace

    subject = copier(folder)
    ids = subject.encode(TEXT)
    lens = logit_lens(subject, trace(subject, ids).hidden, top=3)
    assert lens.tokens_LSK.shape == lens.probabilities_LSK.shape == (3, len(ids), 3)
    # before any layer nothing is known; then the token before, and the second layer adds nothing
    torch.testing.assert_close(
        lens.entropy_bits_LS[0], torch.full((len(ids),), math.log2(VOCABULARY), dtype=torch.float64)
    )
    for layer in (1, 2):
        assert lens.tokens_LSK[layer, 1:, 0].tolist() == ids[:-1]
        assert (lens.probabilities_LSK[layer, 1:, 0] > 0.99).all()
        torch.testing.assert_close(lens.kl_bits_LS[layer], torch.zeros(len(ids), dtype=torch.float64))
    assert (lens.kl_bits_LS[0, 1:] > 3).all()


@in_world(1)
def test_the_copiers_prediction_rests_on_the_token_that_it_copies(folder: Path) -> None:
    from megalm.inspect.attribution import explain

    subject = copier(folder)
    ids = subject.encode(TEXT)
    found = explain(subject, ids)
    assert found is not None and (found.position, found.target) == (len(ids) - 1, word("ant"))
    assert found.scores[-2] == pytest.approx(found.logprob - found.baseline_logprob, rel=0.02)
    assert all(abs(score) < 0.02 * found.scores[-2] for score in [*found.scores[:-2], found.scores[-1]])
    earlier = explain(subject, ids, position=2)
    assert earlier is not None and earlier.target == word("bee")
    assert earlier.scores.index(max(earlier.scores)) == 1
    assert earlier.scores[3:] == [0.0] * (len(ids) - 3)  # what comes later is not seen
    assert explain(subject, ids, position=2 - len(ids)) == earlier


@pytest.mark.parametrize("family", FAMILIES)
@in_world(1)
def test_maps_are_what_the_kernels_compute(family: str, folder: Path) -> None:
    """Attention x values is what the layer's own kernel puts out; each row sums to one."""
    from megalm.inspect.trace import trace

    subject = random_subject(PRESETS.get(family, family), folder, *FAMILIES[family])
    outputs, values = [], []
    for layer in subject.block.layers:
        core = layer.self_attention.core_attention
        core.register_forward_hook(lambda module, inputs, output: outputs.append(output[:, 0]))
        core.register_forward_pre_hook(lambda module, inputs: values.append(inputs[2][:, 0]))
    found = trace(subject, subject.encode(TEXT))
    assert len(outputs) == len(found.attention) == 2
    for attention_NSS, value_SGD, output_SH in zip(found.attention, values, outputs, strict=True):
        heads = attention_NSS.shape[0]
        value_NSD = value_SGD.repeat_interleave(heads // value_SGD.shape[1], 1).transpose(0, 1)
        expected_SH = (attention_NSS @ value_NSD).transpose(0, 1).flatten(1)
        torch.testing.assert_close(output_SH, expected_SH)
        torch.testing.assert_close(attention_NSS.sum(-1), torch.ones_like(attention_NSS[..., 0]))


@pytest.mark.parametrize("family", FAMILIES)
@in_world(1)
def test_attributions_are_complete_and_the_lens_ends_in_the_models_own_logits(
    family: str, folder: Path
) -> None:
    from megalm.inspect.attribution import TOLERANCE, explain
    from megalm.inspect.lens import log_probabilities
    from megalm.inspect.trace import trace

    subject = random_subject(PRESETS.get(family, family), folder, *FAMILIES[family])
    ids = subject.encode("cat [MASK] dog" if subject.is_encoder else TEXT)
    with torch.no_grad():
        output = subject.model(subject.tensor(ids))
    logits_SV = (output[0] if subject.is_encoder else output)[0]
    found = trace(subject, ids)
    torch.testing.assert_close(log_probabilities(subject, found.hidden[-1]), logits_SV.log_softmax(-1))
    why = explain(subject, ids)
    assert why is not None and why.position is not None
    assert why.logprob == pytest.approx(logits_SV[why.position].log_softmax(-1).max().item())
    blank = [why.baseline] * len(ids)
    assert why.baseline_logprob == pytest.approx(
        trace(subject, blank).output[why.position].log_softmax(-1)[why.target].item()
    )
    assert sum(why.scores) == pytest.approx(why.logprob - why.baseline_logprob, abs=why.gap * 1.001)
    assert any(why.scores)
    if family != "experts":  # on the path another expert may take over, where the prediction jumps
        assert why.gap <= TOLERANCE * sum(map(abs, why.scores))


def test_integrals_of_known_functions() -> None:
    """Linear: weight x difference, whatever the points; a product: half to each; a power: by the formula."""
    from megalm.inspect.attribution import integrated_gradients

    weights, x, baseline = (
        torch.tensor(row, dtype=torch.float64) for row in ([3, -2, 0], [1, 5, 7], [0, 1, 2])
    )
    linear = integrated_gradients(lambda rows: rows @ weights, x, baseline, points=1)
    torch.testing.assert_close(linear, weights * (x - baseline))
    pair = torch.tensor([4.0, 5.0], dtype=torch.float64)
    product = integrated_gradients(lambda rows: rows.prod(-1), pair, torch.zeros_like(pair), points=2)
    torch.testing.assert_close(product, torch.tensor([10.0, 10.0], dtype=torch.float64))
    powers = integrated_gradients(lambda rows: (rows**3).sum(-1), pair, torch.ones_like(pair), points=40)
    torch.testing.assert_close(powers, pair**3 - 1)


def test_neighbours_are_those_at_the_smallest_angles() -> None:
    from megalm.inspect.neighbours import nearest

    degrees = torch.tensor([0.0, 10.0, 30.0, 90.0, 180.0], dtype=torch.float64)
    lengths = torch.tensor([1.0, 9.0, 0.5, 2.0, 3.0], dtype=torch.float64)  # play no part
    arrows_V2 = lengths[:, None] * torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()], 1)
    matrix_V2 = torch.cat([arrows_V2, torch.zeros(1, 2, dtype=torch.float64)])
    (of_0, of_2) = nearest(matrix_V2, [0, 2], count=3)
    assert [token for token, _ in of_0[:2]] == [1, 2] and [token for token, _ in of_2] == [1, 0, 3]
    assert [cosine for _, cosine in of_2] == pytest.approx([math.cos(math.radians(d)) for d in (20, 30, 60)])
    assert len(nearest(matrix_V2, [0], count=99)[0]) == 5
    assert nearest(matrix_V2, [5], count=1)[0][0][1] == 0


@in_world(1)
def test_texts_are_encoded_as_the_model_knows_them_and_mistakes_are_one_line(folder: Path) -> None:
    from megalm.inspect.attribution import explain

    decoder = random_subject("gpt2-tiny", folder)
    encoder = random_subject("bert-tiny", folder, "task=mlm")
    assert decoder.encode("cat bee") == [word("cat"), word("bee")]
    assert encoder.encode("cat [MASK]bee") == [2, word("cat"), 4, word("bee"), 3]
    assert [encoder.spell(n) for n in (2, word("cat"))] == ["[CLS]", WORDS[2]]
    assert decoder.token("[SEP]", "--token") == 3
    assert explain(encoder, encoder.encode("cat bee")) is None
    with pytest.raises(UserError, match="--token 'cat bee' is 2 tokens of the model's"):
        decoder.token("cat bee", "--token")
    with pytest.raises(UserError, match="--position 2: the text has 2 tokens; give 0 to 1"):
        explain(decoder, decoder.encode("cat bee"), position=2)
    with pytest.raises(UserError, match="has 33 tokens, and the model takes 32"):
        decoder.encode("cat " * 33)
    with pytest.raises(UserError, match="--text is empty"):
        decoder.encode("")
    with pytest.raises(UserError, match="--begin-token is of models that continue"):
        Subject(encoder.model, encoder_config(), encoder.tokenizer, "[CLS]")
    assert Subject(decoder.model, decoder_config(), decoder.tokenizer, "[CLS]").encode("cat") == [
        2,
        word("cat"),
    ]


def encoder_config():
    from tests.inspect.subjects import config_of

    return config_of("bert-tiny", "task=mlm")


def decoder_config():
    from tests.inspect.subjects import config_of

    return config_of("gpt2-tiny")
