"""The configuration's sections and fields, with types, units, defaults and the help text of each."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from megalm.errors import UserError


class Section(BaseModel):
    """A section: unknown keys are errors, and assignments are checked too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class RunConfig(Section):
    """Where a run lives and what makes it reproducible."""

    dir: str = Field("runs/default", description="Run directory: config, metrics, checkpoints, plots.")
    seed: int = Field(1234, ge=0, description="Seed of initial weights, data order and dropout.")
    resume: Literal["auto", "always", "never"] = Field(
        "auto",
        description="`auto` goes on from the run directory's last good checkpoint if there is one; "
        "`always` insists on one; `never` refuses a directory that has one.",
    )
    load: str | None = Field(
        None, description="Checkpoint directory of another run to take the weights from at the start."
    )


class ModelConfig(Section):
    """Architecture of a decoder-only transformer; a preset fills what is not given."""

    # names of kernels, activations and positions are plain strings here: megalm/model/ knows them, see `check_names`

    preset: str | None = Field(None, description="Name of a preset, e.g. `gpt2-124m` or `llama-7b`.")
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
    layernorm_epsilon: float = Field(1e-5, gt=0, description="Added to the variance inside norms.")
    activation: str = Field(
        "swiglu",
        description="Activation of the MLP: `gelu`, `gelu_tanh`, `relu`, `squared_relu`, or gated: `swiglu`, `geglu`.",
    )
    add_bias_linear: bool = Field(False, description="Biases in all linear layers.")
    add_qkv_bias: bool = Field(False, description="Biases in the query/key/value projection only.")
    tie_embeddings: bool = Field(False, description="Input embedding and output layer share one matrix.")
    hidden_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on embeddings and residuals.")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on attention weights.")
    init_method_std: float = Field(
        0.02, gt=0, description="Standard deviation of initial weights; output projections: / sqrt(2 layers)."
    )
    attention: str = Field(
        "auto",
        description="Core attention: `torch` is scaled_dot_product_attention, `flash` the flash-attn package, `matmul` batched matmuls that keep the "
        "weights (short sequences on a CPU), `plain` the paper's formula; `auto` picks the fastest.",
    )
    norm: str = Field(
        "auto", description="Norm kernel: `torch` is torch's fused one, `plain` the paper's formula."
    )
    cross_entropy: Literal["auto", "fused", "plain"] = Field(
        "auto",
        description="`fused` joins output layer and loss, a chunk of tokens at a time; `plain` holds all logits.",
    )
    cross_entropy_chunk_tokens: int = Field(
        1024, gt=0, description="Tokens whose logits the fused cross entropy holds at a time."
    )

    @property
    def ffn_size(self) -> int:
        """Width inside the MLP."""
        return self.ffn_hidden_size or 4 * self.hidden_size

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
        if self.vocab_size is None:
            raise UserError("model.vocab_size is unknown: set it, or tokenizer.path")
        hidden, head = self.hidden_size, self.head_dim
        query, key_value = self.num_attention_heads * head, self.query_groups * head
        bias, norm_width = self.add_bias_linear, hidden * (2 if self.normalization == "LayerNorm" else 1)
        qkv_bias = (query + 2 * key_value) * (bias or self.add_qkv_bias)
        attention = hidden * (query + 2 * key_value) + qkv_bias + query * hidden + hidden * bias
        up = self.ffn_size * (2 if self.gated else 1)
        mlp = hidden * up + up * bias + self.ffn_size * hidden + hidden * bias
        embeddings = self.vocab_size * hidden * (1 if self.tie_embeddings else 2)
        if self.position_embedding == "learned":
            embeddings += self.max_sequence_length * hidden
        return self.num_layers * (attention + mlp + 2 * norm_width) + norm_width + embeddings

    def flops_per_token(self, seq_length: int) -> float:
        """Floating-point operations of forward and backward for one token, causal attention counted in full.

        6 N + 12 L S (heads x head width), N without embedding tables (PaLM, arXiv:2204.02311, appendix B).
        """
        if self.vocab_size is None:
            raise UserError("model.vocab_size is unknown: set it, or tokenizer.path")
        tables = self.vocab_size * self.hidden_size * (0 if self.tie_embeddings else 1)
        if self.position_embedding == "learned":
            tables += self.max_sequence_length * self.hidden_size
        matrix_parameters = self.num_parameters() - tables
        attention = 12 * self.num_layers * seq_length * self.num_attention_heads * self.head_dim
        return 6 * matrix_parameters + attention


class TokenizerConfig(Section):
    """The tokenizer that the token files were made with."""

    path: str | None = Field(
        None, description="Directory or tokenizer.json; its hash is checked against the data."
    )


class DataSource(Section):
    """One token file of a blend."""

    path: str = Field(description="Prefix of the .bin/.idx pair.")
    weight: float = Field(1.0, gt=0, description="Share in the blend, relative to the other sources.")


class DataConfig(Section):
    """Token files to train and validate on."""

    train: list[DataSource] = Field(default_factory=list, description="Training blend.")
    valid: list[DataSource] = Field(default_factory=list, description="Validation blend.")
    reset_at_document_end: bool = Field(
        False,
        description="Positions restart and attention stops at document ends; crossing labels do not count.",
    )
    prefetch: int = Field(2, ge=0, description="Global batches read ahead by a thread; 0 reads in line.")


class BatchConfig(Section):
    """Sizes of a step."""

    seq_length: int = Field(1024, gt=0, description="Tokens of a sample.")
    micro_batch_size: int = Field(
        1, gt=0, description="Samples of one forward pass on one data-parallel rank."
    )
    global_batch_size: int = Field(8, gt=0, description="Samples of one optimizer step over all ranks.")


class ParallelConfig(Section):
    """The layout: how the model and the batch are spread over processes."""

    tensor_model_parallel_size: int = Field(1, gt=0, description="Ranks that share each matrix (TP).")
    sequence_parallel: bool = Field(
        False, description="Split norms, dropout and residuals along the sequence over the TP ranks (SP)."
    )
    pipeline_model_parallel_size: int = Field(1, gt=0, description="Stages that share the layers (PP).")
    context_parallel_size: int = Field(1, gt=0, description="Ranks that share each sequence (CP).")
    expert_model_parallel_size: int = Field(1, gt=0, description="Ranks that share the experts (EP).")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="0: every rank holds the optimizer state; 1: it is sharded over data-parallel ranks."
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="`auto`: nccl where CUDA is present."
    )
    timeout_minutes: float = Field(30.0, gt=0, description="A collective that waits longer fails.")

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return (
            self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size
        )


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    name: Literal["adamw"] = Field("adamw", description="Optimizer.")
    lr: float = Field(3e-4, gt=0, description="Peak learning rate.")
    min_lr: float = Field(3e-5, ge=0, description="Learning rate at the end of the decay.")
    schedule: Literal["cosine", "linear", "wsd", "constant", "inverse_sqrt"] = Field(
        "cosine", description="Shape after the warm-up; `wsd` is warm-up, stable, linear decay."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from zero.")
    decay_steps: int | None = Field(
        None,
        gt=0,
        description="Step at which min_lr is reached (default: train.steps); for `wsd` the length of the decay.",
    )
    weight_decay: float = Field(
        0.1, ge=0, description="Decoupled decay of matrices; norms and biases have none."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    adam_eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    clip_grad: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 is off.")


class PrecisionConfig(Section):
    """Number formats."""

    dtype: Literal["fp32", "bf16", "fp64"] = Field(
        "fp32", description="Of weights and activations; bf16 keeps fp32 master weights."
    )
    grad_reduce_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="bf16 runs sum gradients over microbatches and ranks in this; others in their own format.",
    )


class RecomputeConfig(Section):
    """Activations that are computed again in the backward pass instead of kept."""

    granularity: Literal["none", "selective", "full"] = Field(
        "none", description="`selective`: the core attention; `full`: whole layers."
    )


class TrainConfig(Section):
    """The loop."""

    steps: int = Field(100, ge=0, description="Optimizer steps in all.")
    exit_after_steps: int | None = Field(
        None,
        gt=0,
        description="Save and stop after this many steps of this process; the schedule is unchanged.",
    )
    eval_interval: int = Field(0, ge=0, description="Steps between validations; 0 is off.")
    eval_batches: int = Field(8, gt=0, description="Global batches of one validation.")
    recompute: RecomputeConfig = Field(default_factory=RecomputeConfig, description="Activation recompute.")
    max_nonfinite_steps: int = Field(
        3,
        gt=0,
        description="After so many skipped steps in a row: back to the last good checkpoint, past the data.",
    )
    max_rollbacks: int = Field(3, ge=0, description="After so many rollbacks the run ends with an error.")


class CheckpointConfig(Section):
    """When to save and what to keep."""

    interval: int = Field(0, ge=0, description="Steps between saves; 0 saves at the end only.")
    keep_last: int = Field(3, gt=0, description="The newest so many are kept.")
    keep_every: int = Field(
        0, ge=0, description="Those at multiples of this many steps are kept too; 0: none."
    )
    async_save: bool = Field(True, description="Write in the background while training goes on.")


class LoggingConfig(Section):
    """What is written down."""

    interval: int = Field(1, gt=0, description="Steps between lines of metrics.jsonl.")
    tensorboard: bool = Field(True, description="Write TensorBoard events to the run directory.")
    progress: bool = Field(True, description="Progress bar on the terminal.")
    plot: bool = Field(True, description="Draw the learning curve at the end.")


class Config(Section):
    """A whole run."""

    run: RunConfig = Field(default_factory=RunConfig)
    task: Literal["pretrain"] = Field("pretrain", description="What is learned.")
    engine: Literal["megatron"] = Field("megatron", description="Who runs the training step.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
