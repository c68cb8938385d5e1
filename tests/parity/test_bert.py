"""BERT equals Hugging Face's with the same weights, and trains under every layout like one process; fp64."""

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, MegatronBertConfig, MegatronBertForPreTraining

from megalm.config import Config
from tests.parity.hf_bert_weights import from_bert, from_megatron_bert, load
from tests.parity.runs import FP32, FP64, assert_same_run, run
from tests.parity.test_hugging_face import randomize, tensors
from tests.tiny import tiny_config, tiny_model
from tests.worlds import in_world

VOCABULARY, LENGTH, ROWS = 131, 48, 4
KINDS = {
    "bert-tiny": (BertConfig, BertForPreTraining, from_bert),
    "megatron-bert-tiny": (MegatronBertConfig, MegatronBertForPreTraining, from_megatron_bert),
}


def config_of(preset: str) -> Config:
    sizes = (f"model.vocab_size={VOCABULARY}", f"model.max_sequence_length={LENGTH}")
    return tiny_config(preset, "task=mlm", f"batch.seq_length={LENGTH}", *sizes)


def hugging_face(preset: str, config: Config) -> torch.nn.Module:
    make_config, make_model, _ = KINDS[preset]
    fields = config.model
    hf = make_model(
        make_config(
            vocab_size=VOCABULARY,
            hidden_size=fields.hidden_size,
            num_hidden_layers=fields.num_layers,
            num_attention_heads=fields.num_attention_heads,
            intermediate_size=fields.ffn_size,
            max_position_embeddings=LENGTH,
            layer_norm_eps=fields.layernorm_epsilon,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
    ).double()
    randomize(hf)
    return hf


def pairs() -> dict[str, Tensor]:
    """Rows of different lengths, each with a second segment; masked tokens, one row without; a pair without class."""
    generator = torch.Generator().manual_seed(1)
    lengths_B1 = torch.tensor([[LENGTH], [30], [7], [41]])
    order_1S = torch.arange(LENGTH)[None]
    real_BS = order_1S < lengths_B1
    masked_BS = (torch.rand(ROWS, LENGTH, generator=generator) < 0.3) & real_BS
    masked_BS[3] = False
    return {
        # id 0 is padding alone: Hugging Face lets no gradient through its embedding
        "tokens": torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=generator) * real_BS,
        "types": ((order_1S >= lengths_B1 // 2) & real_BS).long(),
        "real": real_BS,
        "labels": torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator),
        "masked": masked_BS,
        "sentences": torch.tensor([1, 0, -1, 0]),
    }


@pytest.mark.parametrize("preset", KINDS)
@in_world(1)
def test_bert_equals_hugging_face(preset: str) -> None:
    from megalm.model.state import ForwardState

    config, translate = config_of(preset), KINDS[preset][2]
    hf, model = hugging_face(preset, config), tiny_model(config)
    load(model, translate(tensors(hf, gradients=False), config.model))
    batch = pairs()
    real_BS = batch["real"]
    state = ForwardState(segments_BS=real_BS.long())
    expected = hf(batch["tokens"], attention_mask=real_BS.long(), token_type_ids=batch["types"])
    tokens_BSV, pairs_B2 = model(batch["tokens"], state, batch["types"])
    same = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(tokens_BSV[real_BS], expected.prediction_logits[real_BS], **same)
    torch.testing.assert_close(pairs_B2, expected.seq_relationship_logits, **same)

    mask_BS = batch["masked"].double()
    losses = model(
        batch["tokens"],
        state,
        batch["types"],
        labels=batch["labels"],
        loss_mask=mask_BS,
        sentence_labels=batch["sentences"],
    )
    loss = losses[0] / mask_BS.sum() + losses[1] / (batch["sentences"] >= 0).sum()
    # Hugging Face takes means over what is not -100, and adds them
    output = hf(
        batch["tokens"],
        attention_mask=real_BS.long(),
        token_type_ids=batch["types"],
        labels=batch["labels"].where(batch["masked"], -100),
        next_sentence_label=batch["sentences"].where(batch["sentences"] >= 0, -100),
    )
    torch.testing.assert_close(loss, output.loss, rtol=1e-12, atol=0)

    loss.backward()
    output.loss.backward()
    gradients = translate(tensors(hf, gradients=True), config.model)
    for name, parameter in model.named_parameters():
        scale = float(gradients[name].abs().max())
        assert scale > 0, name
        deviation = float((parameter.grad - gradients[name]).abs().max())
        assert deviation <= 1e-11 * scale, f"{name} deviates by {deviation / scale:.1e}"


TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
LAYOUTS = {
    "TP2": (2, (TP2,)),
    "TP2+SP": (2, (TP2, SP)),
    "PP2": (2, (PP2,)),
    "PP2xVP2": (2, (PP2, "parallel.virtual_pipeline_model_parallel_size=2")),
    "DP2": (2, ()),
    "TP2xPP2": (4, (TP2, PP2)),
    "TP2+SPxPP2": (4, (TP2, SP, PP2)),
}
MLM = "task=mlm"


@pytest.mark.parametrize("preset", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_bert_like_one_process(layout: str, preset: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    found = run(world_size, preset, (MLM, *overrides))
    assert_same_run(found, run(1, preset, (MLM,)), FP64)


@pytest.mark.parametrize("layout", ["TP2+SP", "TP2xPP2"])
@pytest.mark.parametrize(
    "change",
    ["model.tie_embeddings=false", "model.position_embedding=rope", "train.recompute.granularity=full"],
)
def test_other_encoders_train_like_one_process(change: str, layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    expected = run(1, "bert-tiny", (MLM, change), resets=True)
    assert_same_run(run(world_size, "bert-tiny", (MLM, change, *overrides), resets=True), expected, FP64)


DEEPSPEED = "engine=deepspeed"
SHARDED = {
    "ZeRO-1": (2, ("parallel.zero_stage=1",)),
    "deepspeed-ZeRO-2": (2, (DEEPSPEED, "parallel.zero_stage=2")),
    "deepspeed-ZeRO-3": (2, (DEEPSPEED, "parallel.zero_stage=3")),
    "deepspeed-TP2": (2, (DEEPSPEED, TP2)),
}


@pytest.mark.parametrize("layout", SHARDED)
def test_sharded_engines_train_bert_like_one_process_in_fp32(layout: str) -> None:
    world_size, overrides = SHARDED[layout]
    fp32 = (MLM, "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(world_size, "bert-tiny", (*fp32, *overrides))
    assert_same_run(found, run(1, "bert-tiny", fp32), FP32)
