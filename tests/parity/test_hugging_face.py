"""Logits, loss and gradients equal those of Hugging Face's GPT-2, LLaMA and Mixtral with the same weights, in fp32."""

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from megalm.config import Config, parse_config
from tests.parity.hf_weights import from_gpt2, from_llama, from_mixtral
from tests.tiny import tiny_model
from tests.worlds import in_world

VOCABULARY, LENGTH, ROWS = 131, 96, 2
LLAMA31_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def config_of(preset: str, model: dict) -> Config:
    fields = {"preset": preset, "vocab_size": VOCABULARY, "max_sequence_length": LENGTH, **model}
    return parse_config({"model": fields, "batch": {"seq_length": LENGTH}})


def randomize(hf: torch.nn.Module) -> None:
    """Weights large enough for attention to be far from uniform; norms and biases random too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.1 * noise)


def tensors(hf: torch.nn.Module, gradients: bool) -> dict[str, Tensor]:
    return {name: p.grad if gradients else p.detach() for name, p in hf.named_parameters()}


def assert_same_model(hf: torch.nn.Module, config: Config, translate) -> None:
    """Compare logits, the mean loss over next tokens, and every parameter's gradient."""
    randomize(hf)
    model = tiny_model(config)
    weights = translate(tensors(hf, gradients=False), config.model)
    assert {name for name, _ in model.named_parameters()} == weights.keys()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.shape == weights[name].shape, name
            parameter.copy_(weights[name])

    window = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    output = hf(window, labels=window)
    torch.testing.assert_close(model(window), output.logits, rtol=1e-5, atol=1e-5)

    labels = window.roll(-1, dims=1)
    mask = torch.ones(ROWS, LENGTH)
    mask[:, -1] = 0
    loss = model(window, labels=labels, loss_mask=mask) / mask.sum()
    torch.testing.assert_close(loss, output.loss, rtol=1e-6, atol=0)

    loss.backward()
    output.loss.backward()
    gradients = translate(tensors(hf, gradients=True), config.model)
    for name, parameter in model.named_parameters():
        scale = float(gradients[name].abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            parameter.grad,
            gradients[name],
            rtol=0,
            atol=2e-5 * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("tied", [True, False])
@in_world(1)
def test_gpt2_equals_hugging_face(tied: bool) -> None:
    hf = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=64,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    )
    assert_same_model(hf, config_of("gpt2-tiny", {"tie_embeddings": tied}), from_gpt2)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@in_world(1)
def test_llama_equals_hugging_face(groups: int, tied: bool) -> None:
    check_llama(
        {"num_query_groups": groups, "tie_embeddings": tied}, {"rope_type": "default", "rope_theta": 10000.0}
    )


@in_world(1)
def test_llama_with_another_rotary_base_equals_hugging_face() -> None:
    check_llama({"rope_theta": 500.0}, {"rope_type": "default", "rope_theta": 500.0})


@in_world(1)
def test_llama31_rotary_scaling_equals_hugging_face() -> None:
    scaling = {
        "rope_theta": LLAMA31_SCALING["rope_theta"],
        "rope_scaling_factor": LLAMA31_SCALING["factor"],
        "rope_original_max_sequence_length": LLAMA31_SCALING["original_max_position_embeddings"],
    }
    check_llama(scaling, LLAMA31_SCALING)


@in_world(1)
def test_llama_with_heads_wider_than_hidden_size_over_heads_equals_hugging_face() -> None:
    check_llama({"kv_channels": 32}, {"rope_type": "default", "rope_theta": 10000.0})


@in_world(1)
def test_qwen3_equals_hugging_face() -> None:
    """Queries and keys of each head are normalized before they are turned."""
    model = {"qk_layernorm": True, "kv_channels": 24}
    check_llama(model, {"rope_type": "default", "rope_theta": 10000.0}, Qwen3ForCausalLM, Qwen3Config)


@pytest.mark.parametrize("top_k", [2, 3])
@in_world(1)
def test_mixtral_equals_hugging_face(top_k: int) -> None:
    config = config_of("mixtral-tiny", {"moe": {"router_top_k": top_k}})
    fields = config.model
    hf = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=fields.hidden_size,
            intermediate_size=fields.ffn_size,
            num_hidden_layers=fields.num_layers,
            num_attention_heads=fields.num_attention_heads,
            num_key_value_heads=fields.query_groups,
            max_position_embeddings=LENGTH,
            rms_norm_eps=fields.layernorm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": fields.rope_theta},
            num_local_experts=fields.moe.num_experts,
            num_experts_per_tok=top_k,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )
    assert_same_model(hf, config, from_mixtral)


def check_llama(
    model: dict, rope: dict, hf_class: type = LlamaForCausalLM, hf_config: type = LlamaConfig
) -> None:
    config = config_of("llama-tiny", model)
    fields = config.model
    hf = hf_class(
        hf_config(
            vocab_size=VOCABULARY,
            hidden_size=fields.hidden_size,
            intermediate_size=fields.ffn_size,
            num_hidden_layers=fields.num_layers,
            num_attention_heads=fields.num_attention_heads,
            num_key_value_heads=fields.query_groups,
            head_dim=fields.head_dim,
            max_position_embeddings=LENGTH,
            rms_norm_eps=fields.layernorm_epsilon,
            rope_parameters=rope,
            tie_word_embeddings=fields.tie_embeddings,
            attn_implementation="eager",
        )
    )
    assert_same_model(hf, config, from_llama)
