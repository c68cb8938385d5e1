"""Attention maps, hidden states and the logit lens equal Hugging Face's with the same weights; so do integrated gradients by a plain sum."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForPreTraining,
)

from megalm.config import Config
from megalm.inspect.subject import Subject
from tests.inspect.subjects import TEXT, config_of, random_subject, word, write_tokenizer
from tests.parity.hf_bert_weights import from_bert, from_megatron_bert, load
from tests.parity.hf_weights import from_gpt2, from_llama
from tests.parity.test_hugging_face import randomize, tensors
from tests.worlds import in_world

EXACT, ROTARY = {"rtol": 1e-9, "atol": 1e-10}, {"rtol": 2e-5, "atol": 2e-5}
"""Hugging Face computes the angles of rotary positions in fp32, whatever the model's format."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


def gpt2(config: Config) -> torch.nn.Module:
    model = config.model
    sizes = {"n_embd": model.hidden_size, "n_layer": model.num_layers, "n_head": model.num_attention_heads}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=model.max_sequence_length,
            tie_word_embeddings=model.tie_embeddings,
            attn_implementation="eager",
            **sizes,
            **dropouts,
        )
    )


def llama(config: Config) -> torch.nn.Module:
    model = config.model
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.query_groups,
            max_position_embeddings=model.max_sequence_length,
            rms_norm_eps=model.layernorm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
            tie_word_embeddings=model.tie_embeddings,
            attn_implementation="eager",
        )
    )


def bert_of(make: Any, configuration: Any) -> Callable[[Config], torch.nn.Module]:
    def build(config: Config) -> torch.nn.Module:
        model = config.model
        return make(
            configuration(
                vocab_size=model.vocab_size,
                hidden_size=model.hidden_size,
                num_hidden_layers=model.num_layers,
                num_attention_heads=model.num_attention_heads,
                intermediate_size=model.ffn_size,
                max_position_embeddings=model.max_sequence_length,
                layer_norm_eps=model.layernorm_epsilon,
                attn_implementation="eager",
            )
        )

    return build


def twins(preset: str, folder: Path) -> tuple[torch.nn.Module, Subject]:
    """Hugging Face's model and ours with the same random weights, in fp64."""
    build, translate = {
        "gpt2-tiny": (gpt2, from_gpt2),
        "llama-tiny": (llama, from_llama),
        "bert-tiny": (bert_of(BertForPreTraining, BertConfig), from_bert),
        "megatron-bert-tiny": (bert_of(MegatronBertForPreTraining, MegatronBertConfig), from_megatron_bert),
    }[preset]
    more = ["task=mlm"] if "bert" in preset else []
    config = config_of(preset, *more)
    hf = build(config).double().eval()
    randomize(hf)
    with torch.no_grad():  # so that attention is far from even
        for parameter in hf.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    subject = random_subject(preset, folder, *more)
    load(subject.model, translate(tensors(hf, gradients=False), config.model))
    return hf, subject


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny", "bert-tiny", "megatron-bert-tiny"])
@in_world(1)
def test_attention_hidden_states_and_lens_equal_hugging_faces(preset: str, folder: Path) -> None:
    from megalm.inspect.lens import log_probabilities
    from megalm.inspect.trace import trace

    hf, subject = twins(preset, folder)
    ids = subject.encode(TEXT)
    with torch.no_grad():
        theirs = hf(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    logits_SV = (theirs.prediction_logits if "bert" in preset else theirs.logits)[0]
    found = trace(subject, ids)
    same = ROTARY if preset == "llama-tiny" else EXACT
    torch.testing.assert_close(found.output, logits_SV, **same)
    assert len(found.attention) == len(theirs.attentions) == 2
    for ours_NSS, theirs_BNSS in zip(found.attention, theirs.attentions, strict=True):
        assert ours_NSS.std() > 0.05
        torch.testing.assert_close(ours_NSS, theirs_BNSS[0], **same)
    # theirs of the last layer lie behind the final norm
    last = len(found.hidden) if preset == "bert-tiny" else len(found.hidden) - 1
    for layer in range(last):
        torch.testing.assert_close(found.hidden[layer], theirs.hidden_states[layer][0], **same)
    for layer, hidden_SH in enumerate(found.hidden):
        expected_SV = logits_SV if layer == 2 else their_lens(hf, preset, theirs.hidden_states[layer])[0]
        torch.testing.assert_close(log_probabilities(subject, hidden_SH), expected_SV.log_softmax(-1), **same)


@torch.no_grad()
def their_lens(hf: Any, preset: str, hidden_BSH: Tensor) -> Tensor:
    if preset == "gpt2-tiny":
        return hf.lm_head(hf.transformer.ln_f(hidden_BSH))
    if preset == "llama-tiny":
        return hf.lm_head(hf.model.norm(hidden_BSH))
    norm = hf.bert.encoder.ln if preset == "megatron-bert-tiny" else torch.nn.Identity()
    return hf.cls.predictions(norm(hidden_BSH))


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny", "bert-tiny"])
@in_world(1)
def test_integrated_gradients_equal_a_plain_sum_over_hugging_faces_model(preset: str, folder: Path) -> None:
    """The paper's sum of many gradients (eq. 3), between the same two embeddings."""
    from megalm.inspect.attribution import explain

    hf, subject = twins(preset, folder)
    ids = subject.encode("cat [MASK] dog ant" if "bert" in preset else TEXT)
    position = ids.index(4) if "bert" in preset else len(ids) - 1
    baseline = 4 if "bert" in preset else subject.tokenizer.eod_id
    found = explain(subject, ids, target="gnu")
    assert found is not None
    assert (found.position, found.target, found.baseline) == (position, word("gnu"), baseline)
    embedding = hf.get_input_embeddings()
    start_SH, end_SH = (embedding(torch.tensor(row)).detach() for row in ([baseline] * len(ids), ids))
    points = 400
    steps_B11 = ((torch.arange(points, dtype=torch.float64) + 0.5) / points)[:, None, None]
    path_BSH = (start_SH + steps_B11 * (end_SH - start_SH)).requires_grad_()
    output = hf(inputs_embeds=path_BSH)
    logits_BSV = output.prediction_logits if "bert" in preset else output.logits
    logits_BSV.log_softmax(-1)[:, position, word("gnu")].sum().backward()
    expected_S = ((end_SH - start_SH) * path_BSH.grad.mean(0)).sum(-1)
    scale = float(expected_S.abs().sum())
    assert scale > 0.1
    found_S = torch.tensor(found.scores, dtype=torch.float64)
    torch.testing.assert_close(found_S, expected_S, rtol=0, atol=3e-3 * scale)
