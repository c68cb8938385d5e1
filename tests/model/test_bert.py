"""An encoder sees the whole text but not padding, counts what is masked, and has as many parameters as published."""

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, BertModel

from megalm.config import parse_config
from megalm.model.state import ForwardState
from megalm.testing import run_distributed
from tests.parity.shards import assemble, pieces_of
from tests.tiny import (
    LR,
    MICRO_BATCH,
    SEQUENCE,
    VOCABULARY,
    random_tokens,
    tiny_config,
    tiny_engine,
    tiny_model,
    tiny_pairs,
    to_microbatches,
)
from tests.worlds import in_world

PRESETS = ["bert-tiny", "megatron-bert-tiny"]
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"


@pytest.mark.parametrize("attention", ["auto", "torch", "plain"])
@pytest.mark.parametrize("preset", PRESETS)
@in_world(1)
def test_tokens_see_both_sides_and_no_padding(preset: str, attention: str) -> None:
    model = tiny_model(tiny_config(preset, f"model.attention={attention}"))
    tokens = random_tokens(2)
    state = ForwardState(segments_BS=torch.zeros_like(tokens))
    state.segments_BS[:, 20:] = -1
    logits, pair = model(tokens, state)
    for changed, seen in ((19, True), (0, True), (20, False), (31, False)):
        other = tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % VOCABULARY
        found, found_pair = model(other, ForwardState(segments_BS=state.segments_BS))
        assert bool((found - logits)[:, 10].any()) is seen
        assert bool((found_pair - pair).any()) is seen
    # a text without padding is the same as it stands alone
    alone, alone_pair = model(tokens[:, :20])
    torch.testing.assert_close(alone, logits[:, :20], rtol=0, atol=1e-12)
    torch.testing.assert_close(alone_pair, pair, rtol=0, atol=1e-12)


@in_world(1)
def test_token_types_default_to_the_first() -> None:
    model = tiny_model(tiny_config("bert-tiny"))
    tokens = random_tokens(2)
    torch.testing.assert_close(
        model(tokens)[0], model(tokens, None, torch.zeros_like(tokens))[0], rtol=0, atol=0
    )
    assert (model(tokens)[0] != model(tokens, None, torch.ones_like(tokens))[0]).any()


@pytest.mark.parametrize("parallel", [(), (TP2,), (TP2, SP)], ids=["one", "TP2", "TP2+SP"])
@in_world(2)
def test_losses_are_those_of_the_logits(parallel: tuple[str, ...]) -> None:
    model = tiny_model(tiny_config("bert-tiny", *parallel))
    tokens, labels = random_tokens(3), random_tokens(3, seed=1)
    mask = (random_tokens(3, seed=2) % 4 == 0) * 0.5
    pairs = torch.tensor([1, -1, 0])
    logits, pair_logits = model(tokens)
    losses = model(tokens, labels=labels, loss_mask=mask, sentence_labels=pairs)
    expected = (-logits.log_softmax(-1).gather(2, labels[..., None])[..., 0] * mask).sum()
    expected_pair = -pair_logits.log_softmax(-1)[[0, 2], [1, 0]].sum()
    torch.testing.assert_close(losses, torch.stack([expected, expected_pair]), rtol=1e-12, atol=0)
    none = model(tokens, labels=labels, loss_mask=mask * 0, sentence_labels=pairs)
    assert none[0] == 0 and none[1] == losses[1]


@in_world(1)
def test_models_count_their_parameters() -> None:
    for preset in PRESETS:
        for change in (
            "model.sentence_head=false",
            "model.tie_embeddings=false",
            "model.normalization=RMSNorm",
        ):
            config = tiny_config(preset, change, "model.num_token_types=3")
            model = tiny_model(config)
            assert sum(p.numel() for p in model.parameters()) == config.model.num_parameters(), change


@pytest.mark.parametrize("preset", ["bert-base", "bert-large"])
def test_presets_have_the_parameters_of_hugging_faces_models(preset: str) -> None:
    model = parse_config(
        {"model": {"preset": preset, "vocab_size": 30522}, "batch": {"seq_length": 512}}
    ).model
    hf = BertConfig(
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.ffn_size,
    )
    with torch.device("meta"):
        whole, encoder = BertForPreTraining(hf), BertModel(hf)
    assert model.num_parameters() == sum(p.numel() for p in whole.parameters())
    if preset == "bert-base":
        assert sum(p.numel() for p in encoder.parameters()) == 109_482_240


def weights_after_dropout(overrides: tuple[str, ...]) -> tuple[list, list[float]]:
    from megalm.model.init import sharded_parameters
    from megalm.train.mlm import MaskedLanguageLoss

    engine = tiny_engine(tiny_config("bert-tiny", *overrides))
    losses = [
        engine.step(
            to_microbatches(tiny_pairs(step), engine.layout, MICRO_BATCH), MaskedLanguageLoss(), LR
        ).loss
        for step in range(3)
    ]
    return pieces_of(sharded_parameters(engine.model, engine.layout)), losses


@pytest.mark.parametrize("parallel", [(TP2,), (TP2, SP)], ids=["TP2", "TP2+SP"])
def test_dropout_leaves_replicas_of_tensor_parallel_ranks_in_step(parallel: tuple[str, ...]) -> None:
    dropout = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
    ranks = run_distributed(weights_after_dropout, 2, (*parallel, *dropout))
    assemble(rank[0] for rank in ranks)  # copies must be equal bit for bit
    assert ranks[0][1] == ranks[1][1]
    assert ranks[0][1] != run_distributed(weights_after_dropout, 2, parallel)[0][1]


@in_world(1)
def test_rows_shorter_than_the_position_table_are_taken() -> None:
    model = tiny_model(tiny_config("bert-tiny"))
    assert model(random_tokens(2, SEQUENCE // 2))[0].shape == (2, SEQUENCE // 2, VOCABULARY)
