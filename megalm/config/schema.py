"""The configuration's sections and fields, with types, units, defaults and the help text of each."""

from typing import Literal

from pydantic import Field, model_validator

from megalm.config.classify import ClassifyConfig
from megalm.config.distill import DistillConfig
from megalm.config.evaluate import EvaluateConfig
from megalm.config.groups import ParameterGroup
from megalm.config.lora import LoraConfig
from megalm.config.model import ModelConfig
from megalm.config.offload import OffloadConfig
from megalm.config.preferences import DpoConfig, RewardConfig
from megalm.config.quantization import QuantizationConfig
from megalm.config.rlhf import RlhfConfig
from megalm.config.samples import SamplesConfig
from megalm.config.section import Section
from megalm.config.selection import EarlyStoppingConfig, KeepBestConfig
from megalm.config.sft import SftConfig
from megalm.config.watch import WatchConfig


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
    load_optimizer: bool = Field(
        False, description="With `load`: take Adam's moments and count of updates over, too."
    )


class TokenizerConfig(Section):
    """The tokenizer that the token files were made with."""

    path: str | None = Field(
        None, description="Directory or tokenizer.json; its hash is checked against the data."
    )


class DataSource(Section):
    """One token file of a blend, with a weight or a budget: tokens or epochs."""

    path: str = Field(description="Prefix of the .bin/.idx pair.")
    weight: float | None = Field(
        None,
        gt=0,
        description="Share in the blend, relative to the other sources; 1 where nothing else is given.",
    )
    tokens: int | None = Field(
        None, gt=0, description="Budget: so many tokens of this source in the whole run, none of them twice."
    )
    epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Budget: so many passes over this source in the whole run.",
    )


class DataConfig(Section):
    """Token files to train and validate on."""

    train: list[DataSource] = Field(default_factory=list, description="Training blend.")
    valid: list[DataSource] = Field(default_factory=list, description="Validation blend.")
    reset_at_document_end: bool = Field(
        False,
        description="Positions restart and attention stops at document ends; crossing labels do not count.",
    )
    packing: Literal["cut", "truncate", "drop"] | None = Field(
        None,
        description="Pack whole documents into samples (first-fit decreasing), attention within each, in place of windows "
        "of running text; a document longer than batch.seq_length is `cut` into several, loses its end (`truncate`) or is "
        "left out (`drop`, the default of task `sft`).",
    )
    verify: bool = Field(
        False,
        description="Read all token files and check them before the run, as `megalm dataset verify` does; the ranks share "
        "them out. Cut files and a damaged index are refused anyway.",
    )
    prefetch: int = Field(2, ge=0, description="Global batches read ahead by a thread; 0 reads in line.")

    @property
    def documents_apart(self) -> bool:
        """Whether attention stays within documents."""
        return self.reset_at_document_end or self.packing is not None


class MlmConfig(Section):
    """Task `mlm`: which tokens are hidden, and what pairs of segments are told apart."""

    mask_probability: float = Field(0.15, gt=0, lt=1, description="Share of the tokens to be predicted.")
    whole_word: bool = Field(True, description="Hide all pieces of a word or none (WordPiece tokenizers).")
    sentence_objective: Literal["sop", "nsp"] = Field(
        "sop",
        description="With `model.sentence_head`: `sop` tells swapped segments from ordered ones (ALBERT), "
        "`nsp` a segment of another document from the next one (BERT).",
    )
    short_sequence_probability: float = Field(
        0.1, ge=0, le=1, description="Share of samples cut to a random length, as shorter texts will be met."
    )


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
    virtual_pipeline_model_parallel_size: int = Field(
        1,
        gt=0,
        description="Parts that each stage holds of the model (VP): with more than one the pipeline is interleaved.",
    )
    pipeline_layers: list[int] | None = Field(
        None,
        description="Layers of each part of the pipeline, PP x VP numbers in the order of the model; default: all alike.",
    )
    account_for_embedding_in_pipeline_split: bool = Field(
        False,
        description="Count the embedding as a layer where the layers are shared out: the first part has one less.",
    )
    account_for_loss_in_pipeline_split: bool = Field(
        False,
        description="Count output layer and loss as a layer where the layers are shared out: the last part has one less.",
    )
    overlap_p2p_comm: bool = Field(
        False, description="Interleaved pipeline: send and receive while computing."
    )
    context_parallel_size: int = Field(
        1, gt=0, description="Ranks that share each sequence, two chunks of it each (CP)."
    )
    expert_model_parallel_size: int = Field(1, gt=0, description="Ranks that share the experts (EP).")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0,
        description="What data-parallel ranks share out instead of each holding all: 0 nothing; 1 the optimizer's state; "
        "2 gradients too; 3 weights too (2 and 3: engine `deepspeed`).",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="`auto`: nccl where CUDA is present."
    )
    overlap_grad_reduce: bool | None = Field(
        None,
        description="Sum gradients over data-parallel ranks a bucket at a time while the backward pass goes on; "
        "default: on NCCL.",
    )
    overlap_param_gather: bool = Field(
        False,
        description="With zero_stage 1: gather updated weights a bucket at a time during the next forward pass; "
        "implies overlap_grad_reduce.",
    )
    ddp_bucket_size: int | None = Field(
        None,
        gt=0,
        description="Elements of a bucket of overlap_grad_reduce; default: 40 million, and 1 million x data-parallel size "
        "where that is more.",
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
    kernel: Literal["auto", "torch", "foreach", "apex"] = Field(
        "auto",
        description="What computes the update: `torch` is torch's fused AdamW, `foreach` torch's list operations, `apex` NVIDIA apex's FusedAdam.",
    )
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
    layer_lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Each layer's learning rate is that of the layer above times this; final norm and heads have the "
        "schedule's, embeddings the lowest.",
    )
    groups: list[ParameterGroup] = Field(
        default_factory=list, description="Parameters with a learning rate or weight decay of their own."
    )


class PrecisionConfig(Section):
    """Number formats."""

    dtype: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32",
        description="Of weights and activations; bf16 and fp16 keep fp32 master weights, fp16 scales the loss.",
    )
    grad_reduce_dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="bf16 and fp16 runs sum gradients over microbatches and ranks in fp32 or in their own format; "
        "fp32 and fp64 runs in their own.",
    )
    initial_loss_scale: float = Field(
        65536.0, gt=0, description="fp16: the loss is multiplied by this at the start; a power of two."
    )
    min_loss_scale: float = Field(
        1.0,
        gt=0,
        description="fp16: the scale never falls below; gradients that overflow here are not finite.",
    )
    loss_scale_window: int = Field(
        1000, gt=0, description="fp16: the scale doubles after so many steps in a row without overflow."
    )
    hysteresis: int = Field(
        2, gt=0, description="fp16: so many overflows since the scale last grew, then each halves it."
    )
    fp8: Literal["none", "e4m3", "hybrid"] = Field(
        "none",
        description="Linear layers of bf16 runs multiply in fp8 through Transformer Engine; `hybrid`: gradients in e5m2.",
    )


class RecomputeConfig(Section):
    """Activations that are computed again in the backward pass instead of kept."""

    granularity: Literal["none", "selective", "full"] = Field(
        "none", description="`selective`: `modules` of each layer; `full`: whole layers."
    )
    modules: list[Literal["core_attn", "layernorm", "mlp", "moe", "shared_experts"]] = Field(
        ["core_attn"],
        min_length=1,
        description="What `selective` computes again: `core_attn` (softmax(QK')V), `layernorm`, `mlp` (of layers without "
        "experts), `moe` (layers of experts, with their communication), `shared_experts`.",
    )
    method: Literal["uniform", "block"] = Field(
        "uniform",
        description="`full`: `uniform` keeps the input of every `num_layers` layers; `block` computes the first `num_layers` "
        "of each pipeline stage again, one at a time, and keeps the others' activations.",
    )
    num_layers: int = Field(1, gt=0, description="`full`: see `method`.")


class TrainConfig(Section):
    """The loop."""

    steps: int = Field(100, ge=0, description="Optimizer steps in all.")
    exit_after_steps: int | None = Field(
        None,
        gt=0,
        description="Save and stop after this many steps of this process; the schedule is unchanged.",
    )
    eval_interval: int = Field(0, ge=0, description="Steps between validations; 0 is off.")
    eval_batches: int = Field(
        8,
        gt=0,
        description="Global batches of one validation; tasks `classify`, `reward` and `dpo` take all data.valid.",
    )
    freeze: list[str] = Field(
        default_factory=list,
        description="Patterns of parameter names (`*`, `?`, `[0-9]`; layers counted over the whole model) that are not "
        "trained; `!` before one: are trained. Of several that match, the last counts.",
    )
    train_last_layers: int | None = Field(
        None,
        ge=0,
        description="Train so many of the last layers, the final norm and the heads alone; `freeze` comes on top. A matrix "
        "that is embedding and output layer in one stays as it is.",
    )
    early_stopping: EarlyStoppingConfig = Field(
        default_factory=EarlyStoppingConfig, description="When to stop before `steps`."
    )
    eval_at_start: bool = Field(
        False, description="Validate before the first step, too: what later validations are compared with."
    )
    eval_by_source: bool = Field(
        False,
        description="Also give loss and perplexity of each source of data.valid by itself, as `loss_NAME`, its file's name.",
    )
    recompute: RecomputeConfig = Field(default_factory=RecomputeConfig, description="Activation recompute.")
    compile: Literal["none", "blocks", "model"] = Field(
        "none",
        description="torch.compile of each transformer layer (`blocks`) or of the whole `model`; on a CPU it needs a C++ compiler.",
    )
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
    keep_best: KeepBestConfig = Field(
        default_factory=KeepBestConfig, description="The best checkpoint is saved and kept, too."
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
    task: Literal["pretrain", "mlm", "sft", "classify", "distill", "reward", "dpo", "ppo", "grpo", "rloo"] = (
        Field(
            "pretrain",
            description="What is learned: `pretrain` the next token, `mlm` the masked ones (BERT), `sft` the assistant's answers "
            "(data of `megalm dataset build --chat`), `classify` labels of texts (`megalm dataset build-labelled`), `distill` the "
            "next token as a larger model sees it, `reward` a number for an answer and `dpo` which answers to prefer (both: "
            "`megalm dataset build-preferences`), `ppo`, `grpo` and `rloo` from rewards for its own answers.",
        )
    )
    engine: Literal["megatron", "deepspeed"] = Field(
        "megatron",
        description="Who runs the training step: `megatron` has every axis, `deepspeed` ZeRO-2, ZeRO-3 and offloading.",
    )
    model: ModelConfig = Field(default_factory=ModelConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    quantization: QuantizationConfig = Field(default_factory=QuantizationConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    mlm: MlmConfig = Field(default_factory=MlmConfig)
    sft: SftConfig = Field(default_factory=SftConfig)
    classify: ClassifyConfig = Field(default_factory=ClassifyConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    dpo: DpoConfig = Field(default_factory=DpoConfig)
    rlhf: RlhfConfig = Field(default_factory=RlhfConfig)
    batch: BatchConfig = Field(default_factory=BatchConfig)
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    offload: OffloadConfig = Field(default_factory=OffloadConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = Field(default_factory=PrecisionConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    samples: SamplesConfig = Field(default_factory=SamplesConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    watch: WatchConfig = Field(default_factory=WatchConfig)

    @model_validator(mode="after")
    def _keep_conversations_whole(self) -> "Config":
        if self.task == "sft" and self.model.architecture == "gpt" and self.data.packing is None:
            self.data.packing = "drop"
        return self
