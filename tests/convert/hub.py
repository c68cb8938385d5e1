"""Tiny random models of Hugging Face, one of each family, saved to directories."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf

VOCABULARY, LENGTH = 131, 48
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    "llama2": ("Llama", _SIZES),
    "llama3": ("Llama", {**_GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama3.1": ("Llama", {**_GROUPED, "rope_parameters": _LLAMA31, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": None}),
    "qwen2": ("Qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**_GROUPED, "head_dim": 24}),
    "mixtral": ("Mixtral", {**_GROUPED, "num_local_experts": 4}),
    "bert": ("Bert", _SIZES),
    "megatron-bert": ("MegatronBert", _SIZES),
}


def make(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with weights of which none is zero or equal to another by chance."""
    family, sizes = MODELS[name]
    config = getattr(hf, f"{family}Config")(**{**sizes, "bos_token_id": 1, "eos_token_id": 2, **changes})
    kinds = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForPreTraining"}
    kinds["MegatronBert"] = "MegatronBertForPreTraining"
    model = getattr(hf, kinds.get(family, f"{family}ForCausalLM"))(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.dim() == 1 and key.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if norm else 0.1 * noise)
    return model.to(dtype).eval()


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """Save such a model the way that transformers does."""
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    make(name, dtype, **changes).save_pretrained(folder)
    return folder
