"""The parameters of a decoder by our names, and how tensor parallelism cuts each."""

from collections.abc import Iterator

from megalm.config.model import ModelConfig

ROWS = ("word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_qkv.bias")
HALVES = ("linear_fc1.weight", "linear_fc1.bias")
COLUMNS = ("linear_proj.weight", "linear_fc2.weight")


def decoder_parameters(model: ModelConfig) -> Iterator[str]:
    """Names of all parameters of a decoder, in the order of the layers (`megalm.model.init.canonical_name`)."""
    norm = ("weight", "bias") if model.normalization == "LayerNorm" else ("weight",)
    both = ("weight", "bias") if model.add_bias_linear else ("weight",)
    qkv = ("weight", "bias") if model.add_qkv_bias else both
    yield "embedding.word_embeddings.weight"
    if model.position_embedding == "learned":
        yield "embedding.position_embeddings.weight"
    for layer in range(model.num_layers):
        prefix = f"decoder.layers.{layer}"
        yield from (f"{prefix}.input_layernorm.{kind}" for kind in norm)
        yield from (f"{prefix}.self_attention.linear_qkv.{kind}" for kind in qkv)
        for part in "qk" if model.qk_layernorm else "":
            yield from (f"{prefix}.self_attention.{part}_layernorm.{kind}" for kind in norm)
        yield from (f"{prefix}.self_attention.linear_proj.{kind}" for kind in both)
        yield from (f"{prefix}.pre_mlp_layernorm.{kind}" for kind in norm)
        yield from (f"{prefix}.mlp.{name}" for name in _mlp(model, layer, both))
    yield from (f"decoder.final_layernorm.{kind}" for kind in norm)
    if not model.tie_embeddings:
        yield "output_layer.weight"


def _mlp(model: ModelConfig, layer: int, kinds: tuple[str, ...]) -> Iterator[str]:
    linear = [f"{name}.{kind}" for name in ("linear_fc1", "linear_fc2") for kind in kinds]
    if not model.moe.is_moe_layer(layer):
        yield from linear
        return
    yield "router.weight"
    for expert in range(model.moe.num_experts):
        yield from (f"experts.{expert}.experts.{name}" for name in linear)
    if model.moe.shared_expert_ffn_hidden_size:
        yield from (f"shared_experts.{name}" for name in linear)


def fused_norm_name(name: str, mlp: bool = True) -> str:
    """What Transformer Engine's layers call a norm, which they keep with the matrix behind it; `mlp`: the MLP's norm, too."""
    name = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
    return name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_") if mlp else name
