"""The peers of the training-step benchmark: nanoGPT's and Hugging Face's models in a plain torch training step."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from train_step_timing import CLIP, LR, WEIGHT_DECAY, Step

from megalm.config import Config
from megalm.kernels import detect


def torch_step(model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], dtype: str) -> Step:
    """A plain torch training step around a peer's model."""
    device = next(model.parameters()).device
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)

    def step(tokens: torch.Tensor) -> float:
        mixed = torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()
        with mixed:
            loss = loss_of(tokens.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def nanogpt_step(path: Path, config: Config, device: torch.device) -> Step:
    """nanoGPT's model from the user's clone."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    size = config.model
    with contextlib.redirect_stdout(sys.stderr):
        model = module.GPT(
            module.GPTConfig(
                block_size=size.max_sequence_length,
                vocab_size=size.vocab_size,
                n_layer=size.num_layers,
                n_head=size.num_attention_heads,
                n_embd=size.hidden_size,
                dropout=0.0,
                bias=True,
            )
        ).to(device)
    return torch_step(model, lambda t: model(t[:, :-1], t[:, 1:].contiguous())[1], config.precision.dtype)


def _gpt2(config: Config) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    size = config.model
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocab_size,
            n_positions=size.max_sequence_length,
            n_embd=size.hidden_size,
            n_layer=size.num_layers,
            n_head=size.num_attention_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="sdpa",
        )
    )


def _llama(config: Config) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = config.model
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocab_size,
            hidden_size=size.hidden_size,
            intermediate_size=size.ffn_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_attention_heads,
            num_key_value_heads=size.query_groups,
            max_position_embeddings=size.max_sequence_length,
            tie_word_embeddings=size.tie_embeddings,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="flash_attention_2" if detect()["flash_attn"].usable else "sdpa",
        )
    )


def hugging_face_step(config: Config, device: torch.device, compiled: bool = False) -> Step:
    """Hugging Face's GPT-2 or LLaMA with its fastest attention that is here, as it is or through torch.compile."""
    build = _llama if config.model.position_embedding == "rope" else _gpt2
    model = build(config).to(device)
    run = torch.compile(model) if compiled else model

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        logits = run(tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return torch_step(model, loss_of, config.precision.dtype)
