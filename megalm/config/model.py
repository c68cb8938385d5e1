"""The section `model`: architecture, kernels, and what follows from them (sizes, parameters, FLOPs)."""

from typing import Literal

from pydantic import Field

from megalm.config.classify import SequenceHeadConfig
from megalm.config.moe import MoEConfig
from megalm.config.section import Section
from megalm.errors import UserError

MAY_CHANGE = {
    "preset",
    "attention",
    "norm",
    "activation_kernel",
    "rope_kernel",
    "cross_entropy",
    "cross_entropy_chunk_tokens",
    "make_vocab_size_divisible_by",
    "hidden_dropout",
    "attention_dropout",
}
"""Fields that say how a model is computed, padded and regularised, not what it computes: another value, the same model."""


class ModelConfig(Section):
    """Architecture of a transformer; a preset fills what is not given."""

    # names of kernels, activations and positions are plain strings here: megalm/model/ knows them, see `check_names`

    preset: str | None = Field(None, description="Name of a preset, e.g. `gpt2-124m` or `llama-7b`.")
    architecture: Literal["gpt", "bert"] = Field(
        "gpt", description="`gpt`: a decoder that sees the past; `bert`: an encoder that sees the whole text."
    )
    num_layers: int = Field(4, gt=0, description="Transformer layers.")
    hidden_size: int = Field(128, gt=0, description="Width of the residual stream.")
    ffn_hidden_size: int | None = Field(None, gt=0, description="Width inside the MLP; default 4 x hidden.")
    num_attention_heads: int = Field(4, gt=0, description="Query heads.")
    num_query_groups: int | None = Field(
        None, gt=0, description="Key/value heads (grouped-query attention); default: one for each query head."
    )
    kv_channels: int | None = Field(None, gt=0, description="Width of a head; default hidden / heads.")
    max_sequence_length: int = Field(1024, gt=0, description="Longest sequence: size of the position table.")
    vocab_size: int | None = Field(
        None, gt=0, description="Vocabulary; default: the tokenizer's. Padding for the layout is added apart."
    )
    make_vocab_size_divisible_by: int = Field(
        1, gt=0, description="The vocabulary is padded to a multiple of this times the tensor-parallel size."
    )
    position_embedding: str = Field(
        "rope",
        description="How positions enter the model: `learned`, `rope`, `sinusoidal`, `alibi` or `none`.",
    )
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    rope_scaling_factor: float = Field(
        1.0, gt=0, description="LLaMA 3.1 frequency scaling for longer contexts; 1 is off."
    )
    rope_original_max_sequence_length: int = Field(
        8192, gt=0, description="Context length before LLaMA 3.1 frequency scaling."
    )
    normalization: Literal["LayerNorm", "RMSNorm"] = Field("RMSNorm", description="Kind of norm.")
    norm_position: Literal["pre", "post"] = Field(
        "pre",
        description="`pre`: norms at the entry of attention and MLP; `post` (`bert` only): after each residual sum, as in the original BERT.",
    )
    layernorm_epsilon: float = Field(1e-5, gt=0, description="Added to the variance inside norms.")
    activation: str = Field(
        "swiglu",
        description="Activation of the MLP: `gelu`, `gelu_tanh`, `relu`, `squared_relu`, or gated: `swiglu`, `geglu`.",
    )
    add_bias_linear: bool = Field(False, description="Biases in all linear layers.")
    add_qkv_bias: bool = Field(False, description="Biases in the query/key/value projection only.")
    qk_layernorm: bool = Field(
        False, description="Each head's queries and keys are normalized before the rotation, as in Qwen 3."
    )
    num_token_types: int = Field(2, gt=0, description="`bert`: kinds of segments that have an embedding.")
    sentence_head: bool = Field(
        True, description="`bert`: a head that classifies pairs of segments (next sentence, sentence order)."
    )
    tie_embeddings: bool = Field(False, description="Input embedding and output layer share one matrix.")
    hidden_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on embeddings and residuals.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention weights.")
    init_method_std: float = Field(
        0.02, gt=0, description="Standard deviation of initial weights; output projections: / sqrt(2 layers)."
    )
    attention: str = Field(
        "auto",
        description="Core attention: `torch` is scaled_dot_product_attention (on CUDA cuDNN's kernel first), `flash` the flash-attn package, "
        "`te` Transformer Engine, `matmul` batched matmuls that keep the weights (short sequences on a CPU), `plain` the paper's formula; "
        "`auto` picks the fastest measured.",
    )
    norm: str = Field(
        "auto",
        description="Norm kernel: `torch` is torch's fused one; on CUDA `te` (Transformer Engine), `liger`, `apex`; `plain` the paper's formula.",
    )
    activation_kernel: str = Field(
        "auto",
        description="What computes the activation, gate included: `plain` torch's functions, `compile` one kernel by torch.compile, "
        "`liger` on CUDA (swiglu).",
    )
    rope_kernel: str = Field(
        "auto",
        description="What turns queries and keys: `plain` torch's functions; on CUDA `liger` or `te` (Transformer Engine).",
    )
    cross_entropy: Literal["auto", "fused", "plain", "liger"] = Field(
        "auto",
        description="`fused` joins output layer and loss, a chunk of tokens at a time; `liger` the same with Liger's softmax (CUDA, one TP rank); "
        "`plain` holds all logits.",
    )
    cross_entropy_chunk_tokens: int = Field(
        1024, gt=0, description="Tokens whose logits the fused cross entropy holds at a time."
    )
    moe: MoEConfig = Field(default_factory=MoEConfig, description="Mixture of experts.")
    sequence_head: SequenceHeadConfig = Field(
        default_factory=SequenceHeadConfig, description="Head for whole samples."
    )

    @property
    def pooling(self) -> str:
        """Which hidden state the sequence head sees: `last`, `mean` or `first`."""
        default = "first" if self.architecture == "bert" else "last"
        return default if self.sequence_head.pooling == "auto" else self.sequence_head.pooling

    @property
    def pools_with_transform(self) -> bool:
        """Whether a dense layer and tanh come before the sequence head's outputs."""
        default = self.architecture == "bert" and self.pooling == "first"
        return default if self.sequence_head.transform is None else self.sequence_head.transform

    @property
    def ffn_size(self) -> int:
        """Width inside the MLP."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def expert_ffn_size(self) -> int:
        """Width inside an expert."""
        return self.moe.moe_ffn_hidden_size or self.ffn_size

    @property
    def query_groups(self) -> int:
        """Number of key/value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def gated(self) -> bool:
        """Whether the MLP's first matrix also computes a gate, as every `...glu` does (arXiv:2002.05202)."""
        return self.activation.endswith("glu")

    def num_parameters(self) -> int:
        """Trainable parameters, without padding of the vocabulary; needs `vocab_size`."""
        return self._parameters(self.moe.num_experts)

    def num_active_parameters(self) -> int:
        """Those that one token uses: of each layer's experts the `router_top_k` that it goes to, and the shared one."""
        return self._parameters(self.moe.router_top_k)

    def _parameters(self, experts: int) -> int:
        """Parameters with so many experts counted in each layer that has any."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is unknown: set it, or tokenizer.path")
        hidden, head = self.hidden_size, self.head_dim
        query, key_value = self.num_attention_heads * head, self.query_groups * head
        bias, norm_width = self.add_bias_linear, hidden * (2 if self.normalization == "LayerNorm" else 1)
        qkv_bias = (query + 2 * key_value) * (bias or self.add_qkv_bias)
        attention = hidden * (query + 2 * key_value) + qkv_bias + query * hidden + hidden * bias
        moe_layers = sum(self.moe.is_moe_layer(layer) for layer in range(self.num_layers))
        moe = hidden * self.moe.num_experts + experts * self._mlp_parameters(self.expert_ffn_size)
        if self.moe.shared_expert_ffn_hidden_size:
            moe += self._mlp_parameters(self.moe.shared_expert_ffn_hidden_size)
        mlps = moe_layers * moe + (self.num_layers - moe_layers) * self._mlp_parameters(self.ffn_size)
        one_matrix = self.tie_embeddings or self.sequence_head.outputs
        embeddings = self.vocab_size * hidden * (1 if one_matrix else 2)
        if self.position_embedding == "learned":
            embeddings += self.max_sequence_length * hidden
        head_norms = 2 * head * (2 if self.normalization == "LayerNorm" else 1) if self.qk_layernorm else 0
        layers = self.num_layers * (attention + head_norms + 2 * norm_width) + mlps
        return layers + norm_width + embeddings + self._bert_parameters(norm_width) + self._head_parameters()

    def _head_parameters(self) -> int:
        """The sequence head's."""
        hidden, outputs = self.hidden_size, self.sequence_head.outputs
        if not outputs:
            return 0
        return outputs * (hidden + 1) + (hidden * (hidden + 1) if self.pools_with_transform else 0)

    def _mlp_parameters(self, width: int) -> int:
        up = width * (2 if self.gated else 1)
        return self.hidden_size * (up + width) + (up + self.hidden_size) * self.add_bias_linear

    def _bert_parameters(self, norm_width: int) -> int:
        """What an encoder has besides a decoder's parts: token types, the output's transform and bias, the pair's head.

        A post-norm encoder's norm of the embeddings stands for the last norm of the others.
        """
        if self.architecture != "bert":
            return 0
        assert self.vocab_size is not None
        hidden = self.hidden_size
        if self.sequence_head.outputs:
            return self.num_token_types * hidden
        square = hidden * hidden + hidden
        pair = square + 2 * hidden + 2 if self.sentence_head else 0
        return self.num_token_types * hidden + square + norm_width + self.vocab_size + pair

    def flops_per_token(self, seq_length: int) -> float:
        """Floating-point operations of forward and backward for one token, causal attention counted in full.

        6 N + 12 L S (heads x head width), N without embedding tables (PaLM, arXiv:2204.02311, appendix B), of experts
        those that a token goes to. The heads of an encoder see a few tokens only and are not counted.
        """
        if self.vocab_size is None:
            raise UserError("model.vocab_size is unknown: set it, or tokenizer.path")
        head = self.sequence_head.outputs
        # a matrix that the output layer shares is multiplied with each token; a head for samples sees no token
        tables = self.vocab_size * self.hidden_size * (0 if self.tie_embeddings and not head else 1)
        if self.position_embedding == "learned":
            tables += self.max_sequence_length * self.hidden_size
        if head:
            tables += self._head_parameters() + self._bert_parameters(0)
        elif self.architecture == "bert":
            norm_width = self.hidden_size * (2 if self.normalization == "LayerNorm" else 1)
            tables += self.vocab_size * self.hidden_size + self._bert_parameters(norm_width)
        matrix_parameters = self.num_active_parameters() - tables
        attention = 12 * self.num_layers * seq_length * self.num_attention_heads * self.head_dim
        return 6 * matrix_parameters + attention
