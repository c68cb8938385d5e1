"""Continuations equal those of Hugging Face's `generate` with the same weights."""

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from megalm.config import ModelConfig
from megalm.generate.request import GenerationOptions
from tests.parity.hf_weights import from_gpt2, from_llama
from tests.tiny import VOCABULARY, tiny_config, tiny_model
from tests.worlds import in_world

CONTEXT = 48
PROMPTS = [[1, 2, 3], [5] * 17, [7, 8, 9, 10, 11], [400]]
COMMON = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}


def gpt2(model: ModelConfig) -> Any:
    sizes = {"n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**COMMON, **sizes))


def llama(model: ModelConfig) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            **COMMON,
            hidden_size=64,
            intermediate_size=model.ffn_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=model.query_groups,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=model.layernorm_epsilon,
        )
    )


FAMILIES = {"gpt2-tiny": (gpt2, from_gpt2), "llama-tiny": (llama, from_llama)}


@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("preset", FAMILIES)
@in_world(1)
def test_greedy_continuation_equals_hugging_face(preset: str, penalty: float) -> None:
    from megalm.generate.decode import Generator
    from megalm.parallel.layout import create_layout

    build, translate = FAMILIES[preset]
    config = tiny_config(preset, f"model.max_sequence_length={CONTEXT}", "model.tie_embeddings=false")
    model = tiny_model(config)
    theirs = build(config.model).double().eval()
    weights = translate(dict(theirs.named_parameters()), config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])

    options = GenerationOptions(greedy=True, max_new_tokens=20, repetition_penalty=penalty)
    rows = Generator([model], create_layout(config.parallel), CONTEXT).generate(PROMPTS, options)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=20,
            repetition_penalty=penalty,
            pad_token_id=0,
        )
        assert row.tokens == expected[0, len(prompt) :].tolist()
        assert len(set(row.tokens)) > 3
