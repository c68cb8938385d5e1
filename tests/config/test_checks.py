"""Layouts that cannot work are refused with the arithmetic, before torch is even imported."""

import subprocess
import sys

import pytest

from megalm.config import data_parallel_size, parse_config
from megalm.errors import UserError

EP, MOE = "parallel.expert_model_parallel_size", ("model.moe.num_experts=6",)
RECOMPUTE = ("train.recompute.granularity=selective",)
POST_NORM = (
    "task=mlm",
    "model.architecture=bert",
    "model.position_embedding=learned",
    "model.norm_position=post",
)
TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.num_layers=3", f"{PP}=2"], "3 is not a multiple of"),
        (["model.num_attention_heads=6", "model.hidden_size=96", f"{TP}=4"], "num_attention_heads 6"),
        (["model.num_query_groups=1", f"{TP}=2"], "num_query_groups 1"),
        (["model.hidden_size=100", "model.num_attention_heads=3"], "hidden_size 100"),
        (["model.ffn_hidden_size=101", f"{TP}=2"], "ffn_hidden_size 101"),
        (["model.num_attention_heads=4", "model.num_query_groups=3"], "num_query_groups 3"),
        ([f"{PP}=2", "parallel.pipeline_layers=[3, 2]"], "adds up to 5"),
        (["parallel.sequence_parallel=true"], "needs tensor_model_parallel_size > 1"),
        (["parallel.sequence_parallel=true", f"{TP}=2", "batch.seq_length=33"], "seq_length 33"),
        (
            ["parallel.context_parallel_size=3"],
            r"1024 is not a multiple of 2 x parallel.context_parallel_size 3 \(.*\) = 6: 1024 / 6 = 171",
        ),
        (
            [
                "parallel.context_parallel_size=2",
                f"{TP}=4",
                "parallel.sequence_parallel=true",
                "batch.seq_length=12",
            ],
            r"12 is not a multiple of .* \(sequence_parallel\) 4 x context_parallel_size 2 = 8: 12 / 8 = 1.5",
        ),
        (["parallel.zero_stage=3"], "zero_stage 3"),
        (
            ["data.train=[{path: a}, {path: b, tokens: 5, weight: 2.0}]"],
            r"data.train.1 \(b\) has weight and tokens: give one",
        ),
        (["data.train=[{path: a, tokens: 5}, {path: b}]"], "data.train: some sources have a budget"),
        (
            ["data.valid=[{path: a, weight: 1}, {path: b, epochs: 2}]"],
            "data.valid: some sources have a budget",
        ),
        (["data.train=[{path: a, epochs: .inf}]"], "data.train.0.epochs"),
        ([f"{EP}=2"], "expert_model_parallel_size 2 shares out experts, but model.moe.num_experts is 0"),
        ([*MOE, f"{EP}=4"], "num_experts 6 is not a multiple of .*expert_model_parallel_size 4: 6 / 4 = 1.5"),
        ([*MOE, "model.moe.router_top_k=7"], "router_top_k 7 exceeds num_experts 6"),
        ([*MOE, "model.moe.router_top_k=1"], "set norm_topk_prob to false"),
        ([*MOE, "model.add_bias_linear=true"], "experts have no biases"),
        ([*MOE, "model.moe.moe_ffn_hidden_size=101", f"{TP}=2"], "moe_ffn_hidden_size 101"),
        (
            [*MOE, "model.moe.shared_expert_ffn_hidden_size=101", f"{TP}=2"],
            "shared_expert_ffn_hidden_size 101",
        ),
        (["parallel.zero_stage=1", "precision.dtype=fp64"], "fp64"),
        (["parallel.overlap_param_gather=true"], "zero_stage 0"),
        (
            ["parallel.overlap_param_gather=true", "parallel.zero_stage=1", "train.compile=blocks"],
            "train.compile blocks",
        ),
        ([*RECOMPUTE, "train.recompute.modules=[mlp,moe]"], "names moe, but model.moe.num_experts is 0"),
        ([*RECOMPUTE, *MOE, "train.recompute.modules=[shared_experts]"], "there is no shared expert"),
        ([*RECOMPUTE, *MOE, "train.recompute.modules=[mlp]"], "names mlp, but every layer has experts"),
        ([*RECOMPUTE, *POST_NORM, "train.recompute.modules=[layernorm]"], "norms after the layers"),
        (
            ["optimizer.schedule=constant", "optimizer.decay_steps=60"],
            "schedule `constant`, which has no end",
        ),
        (["optimizer.schedule=inverse_sqrt", "optimizer.decay_steps=60"], "which has no end"),
        (
            [
                "parallel.overlap_param_gather=true",
                "parallel.overlap_grad_reduce=false",
                "parallel.zero_stage=1",
            ],
            "overlap_grad_reduce",
        ),
        (["precision.grad_reduce_dtype=bf16"], "bf16 with dtype fp32"),
        (["precision.dtype=bf16", "precision.grad_reduce_dtype=fp16"], "fp16 with dtype bf16"),
        (["precision.initial_loss_scale=1000"], "initial_loss_scale 1000 is no power of two"),
        (["precision.initial_loss_scale=2", "precision.min_loss_scale=4"], "min_loss_scale 4 exceeds"),
        (
            ["train.recompute.granularity=full", "train.recompute.num_layers=3"],
            r"num_layers 3 does not divide the 4 layers of a part of the pipeline",
        ),
        (["model.position_embedding=learned", "batch.seq_length=2048"], "max_sequence_length"),
        (["optimizer.min_lr=1"], "min_lr 1"),
        (["optimizer.warmup_steps=200"], "warmup_steps 200"),
        (
            ["optimizer.schedule=wsd", "optimizer.warmup_steps=50", "optimizer.decay_steps=60"],
            "50 \\+ decay_steps 60",
        ),
    ],
)
def test_impossible_configuration_is_refused_with_its_numbers(overrides, expected):
    with pytest.raises(UserError, match=expected) as caught:
        parse_config({}, overrides)
    assert "\n" not in str(caught.value)


def test_world_size_must_be_a_multiple_of_the_model_parallel_size():
    config = parse_config({}, [f"{TP}=2", f"{PP}=2"])
    assert data_parallel_size(config, 8) == 2
    with pytest.raises(UserError, match=r"TP 2 x PP 2 = 4 processes, but there are 6"):
        data_parallel_size(config, 6)


def test_ranks_that_share_sequences_are_no_copies_of_the_model():
    config = parse_config({}, [f"{TP}=2", "parallel.context_parallel_size=4"])
    assert data_parallel_size(config, 16) == 2
    with pytest.raises(UserError, match=r"TP 2 x PP 1 x CP 4 = 8 processes, but there are 12"):
        data_parallel_size(config, 12)


def test_global_batch_must_be_a_multiple_of_microbatch_times_data_parallel_size():
    config = parse_config({}, ["batch.micro_batch_size=2", "batch.global_batch_size=8"])
    assert data_parallel_size(config, 4) == 4
    with pytest.raises(
        UserError, match=r"8 is not a multiple of micro_batch_size 2 x data-parallel size 3 = 6"
    ):
        data_parallel_size(config, 3)


def test_expert_parallelism_must_divide_the_ranks_that_it_lies_across():
    config = parse_config({}, [*MOE, f"{TP}=2", f"{EP}=2"])
    assert data_parallel_size(config, 8) == 4
    with pytest.raises(UserError, match=r"size 2 does not divide the 1 ranks .* \(data-parallel size 1 x"):
        data_parallel_size(config, 2)


def test_configuration_does_not_import_torch():
    code = "import sys, megalm.config, megalm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
