"""Plans of large models: quick, without memory, of the right sizes; hints, traffic, and what is left behind."""

import resource
import sys

import pytest

from megalm import kernels
from megalm.config import Config, parse_config
from megalm.testing import run_distributed
from tests.plan.planner import SEQUENCE, VOCABULARY, in_planner, planned, small_config

TP2 = "parallel.tensor_model_parallel_size=2"
PP4 = "parallel.pipeline_model_parallel_size=4"
PP2 = "parallel.pipeline_model_parallel_size=2"
GIB = 2**30
LEARNS = (
    "run.load=base",
    "rlhf.prompts=[{path: prompts}]",
    "rlhf.rewards=[{name: stop}]",
    "rlhf.rollout.responses_per_prompt=2",
    "rlhf.rollout.max_new_tokens=8",
)


def large_config(*overrides: str) -> Config:
    """LLaMA 70 B at TP8 x PP4, sequence 8192, in bf16."""
    sections = {
        "model": {"preset": "llama-70b", "vocab_size": 128256},
        "batch": {"seq_length": 8192, "micro_batch_size": 1, "global_batch_size": 32},
        "precision": {"dtype": "bf16"},
        "parallel": {
            "tensor_model_parallel_size": 8,
            "pipeline_model_parallel_size": 4,
            "sequence_parallel": True,
        },
    }
    return parse_config(sections, overrides)


def _plan_and_grow(config: Config) -> tuple:
    """(plan of 4 x 8 processes, growth of this process's memory in bytes)."""
    from megalm.plan.run import plan

    plan(small_config(TP2, PP2), 1, 4, hints=False)  # what is imported on the way is not the plan's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = plan(config, 4, 8, device_memory=80 * GIB, hints=False)
    unit = 1 if sys.platform == "darwin" else 1024
    return result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def test_70b_model_is_planned_without_memory():
    config = large_config()
    plan, grown = in_planner(_plan_and_grow, config)
    assert grown < 64 * 2**20 < plan.fullest.weights / 50
    assert [stage.stages for stage in plan.stages] == [(0, 0), (1, 2), (3, 3)]
    first, middle, last = plan.stages
    assert [stage.layers for stage in plan.stages] == [20, 20, 20]
    # eight ranks of each stage; norms are on all of them
    held = [sum(stage.parameters.values()) for stage in plan.stages]
    norms = [stage.parameters["norms"] for stage in plan.stages]
    whole = sum(n * (8 * (size - norm) + norm) for n, size, norm in zip((1, 2, 1), held, norms, strict=True))
    assert whole == config.model.num_parameters() == plan.parameters
    # bf16 weights, fp32 gradient sums, fp32 masters and two moments
    for stage, size in zip(plan.stages, held, strict=True):
        assert stage.weights == pytest.approx(2 * size, rel=1e-3)
        assert stage.gradients == pytest.approx(4 * size, rel=1e-3)
        assert stage.optimizer == pytest.approx(12 * size, rel=1e-3)
    assert first.peak > middle.peak > last.peak
    assert plan.fullest is first
    assert sum(first.at_peak.values()) == first.peak


def test_kernels_that_are_not_here_are_planned_as_the_default_and_named():
    config = small_config("model.attention=flash", "precision.dtype=bf16")
    found = planned(config, device="H100")
    assert found.replaced == ([] if kernels.detect()[kernels.FLASH_ATTN.name].usable else ["model.attention"])
    assert found.fullest.peak == planned(small_config("precision.dtype=bf16"), device="H100").fullest.peak


def test_stage_holds_as_many_microbatches_as_stages_follow_and_no_more():
    def activations(global_batch_size: int) -> list[int]:
        config = small_config(PP4, f"batch.global_batch_size={global_batch_size}")
        plan = planned(config, 4)
        return [sum(v for k, v in s.at_peak.items() if k.endswith("MLP")) for s in plan.stages]

    four, many = activations(8), activations(64)
    assert four == many
    first, middle, last = four
    # the peak comes within the last forward pass
    assert 3.5 * last < first < 4 * last
    assert 2.5 * last < middle < 3 * last


def test_stages_with_as_many_layers_but_other_experts_are_planned_apart():
    """Of layers 0-2, 3-5, 6-8 and 9-11 those of even number have experts: two, one, two and one."""
    experts = ("model.moe.num_experts=4", "model.moe.layer_frequency=2", "model.num_layers=12")
    stages = planned(small_config(PP4, *experts), 4).stages
    assert [stage.stages for stage in stages] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert stages[2].parameters["experts"] == 2 * stages[1].parameters["experts"]


def test_full_recompute_keeps_no_activation_of_a_layer():
    keeps, recomputes = (
        planned(small_config(f"train.recompute.granularity={kind}")).fullest.at_peak
        for kind in ("none", "full")
    )
    assert recomputes["activations.MLP"] < keeps["activations.MLP"] / 3
    assert recomputes["weights"] == keeps["weights"]


@pytest.mark.parametrize(
    ("settings", "has_one"),
    [
        (("task=dpo", "run.load=base"), True),
        (("task=dpo", "run.load=base", "dpo.cache=cache"), False),
        (("task=dpo", "dpo.reference_free=true"), False),
        (("task=dpo", "run.load=base", "lora.rank=2"), False),
        (("task=dpo", "run.load=base", "lora.rank=2", "dpo.reference=other"), True),
        (("task=grpo", *LEARNS), True),
        (("task=grpo", *LEARNS, "rlhf.kl.coefficient=0"), False),
        (("task=grpo", *LEARNS, "rlhf.offload_frozen=true"), False),
    ],
)
def test_which_runs_keep_a_reference(settings: tuple[str, ...], has_one: bool):
    from megalm.plan.stage import keeps_reference

    assert keeps_reference(small_config(*settings)) == has_one


def test_a_reference_is_one_more_copy_of_the_weights():
    settings = "precision.dtype=bf16", "task=dpo", TP2
    alone = planned(small_config(*settings, "dpo.reference_free=true"), 2).fullest
    stage = planned(small_config(*settings, "run.load=base"), 2).fullest
    assert stage.at_peak["reference"] == pytest.approx(stage.weights, rel=2e-3)
    assert stage.resting == alone.resting + stage.at_peak["reference"]
    assert stage.peak == pytest.approx(alone.peak + stage.at_peak["reference"], rel=1e-3)
    assert "reference" not in alone.at_peak


def test_kernels_are_those_of_the_planned_device():
    """On CUDA no kernel holds scores of S x S, and a norm keeps its input and one number a token."""
    sizes = []
    for length in (1024, 2048):
        overrides = (f"batch.seq_length={length}", "precision.dtype=bf16", "batch.global_batch_size=2")
        sizes.append(planned(small_config(*overrides), device="H100").fullest.at_peak)
    short, long = sizes
    assert long["activations.attention"] == pytest.approx(2 * short["activations.attention"], rel=0.01)
    tokens, norms = 2 * 1024, 4 * 2
    output, statistic = 2 * 128, 4
    assert short["activations.norms"] <= tokens * (output + statistic) * (norms + 1)


def test_bytes_sent_follow_from_the_shapes():
    hidden, width = 2 * SEQUENCE * 128, 4
    pipeline = planned(small_config(PP2), 2)
    for stage in pipeline.stages:  # one tensor a microbatch in one direction
        assert stage.sent["PP"] == pytest.approx(8 * hidden * width, rel=0.001)
    (alone,) = planned(small_config(), 1).stages
    assert not alone.sent
    for overrides in ((), ("parallel.zero_stage=1",)):
        (stage,) = planned(small_config(*overrides), 2).stages
        # a ring of two: half of all gradients out and half of all sums (or new weights) back
        assert stage.sent == {"DP": pytest.approx(sum(stage.parameters.values()) * width, rel=0.001)}
    (stage,) = planned(small_config(TP2, "batch.global_batch_size=4"), 2).stages
    (more,) = planned(small_config(TP2, "batch.global_batch_size=64"), 2).stages
    assert more.sent["TP"] == pytest.approx(16 * stage.sent["TP"], rel=0.01)


@pytest.mark.parametrize("stage", [2, 3])
def test_bytes_that_zero_sends_grow_with_the_microbatches(stage: int):
    settings = ("engine=deepspeed", f"parallel.zero_stage={stage}")
    sent = []
    for batch in (8, 12, 32):  # 2, 3 and 8 microbatches, of which three are gone through
        (plan,) = planned(small_config(*settings, f"batch.global_batch_size={batch}"), 2).stages
        sent.append(plan.sent["DP"])
    whole = 4 * sum(plan.parameters.values())
    assert sent[1] - sent[0] >= 0.5 * whole
    assert sent[2] - sent[1] == pytest.approx(5 * (sent[1] - sent[0]), rel=0.01)


def test_hints_are_plans_with_that_one_change():
    config = small_config("train.recompute.granularity=none")
    plan = planned(config, 2, device="H100", hints=True)
    peaks = {hint.override: hint.peak for hint in plan.hints}
    assert set(peaks) == {
        "train.recompute.granularity=full",
        "parallel.zero_stage=1",
        "batch.micro_batch_size=1",
    }
    for override, peak in peaks.items():
        assert peak == planned(small_config(override), 2, device="H100").fullest.peak
    assert [hint.saves for hint in plan.hints] == sorted(
        (plan.fullest.peak - p for p in peaks.values()), reverse=True
    )
    assert config.batch.micro_batch_size == 2


def test_fits_says_whether_the_fullest_rank_and_what_is_set_aside_do():
    config = small_config()
    plan = planned(config, device="H100", memory=80 * GIB)
    needed = plan.fullest.peak + plan.reserved
    assert plan.fits and plan.reserved > 0
    assert planned(config, device="H100", memory=needed).fits
    assert not planned(config, device="H100", memory=needed - 1).fits
    assert planned(config).fits is None


def test_estimated_rates_are_flops_over_the_share_of_the_peak():
    config = small_config("precision.dtype=bf16")
    plan = planned(config, 2, device="H100")
    for rate in plan.rates:
        done = plan.flops_per_step / rate["step_seconds"]
        assert done == pytest.approx(rate["mfu"] * 2 * 989.4e12)
        assert rate["tokens_per_second_per_device"] * 2 == pytest.approx(16 * SEQUENCE / rate["step_seconds"])
    assert not planned(config).rates


def test_rendered_plan_names_the_fullest_stage_and_the_hints():
    from megalm.plan.report import render

    plan = planned(small_config(PP2), 2, device="H100", memory=80 * GIB, hints=True)
    text = render(plan)
    assert "fullest: stage 0" in text and "it fits into 80.00 GiB" in text
    assert "train.recompute.granularity=full would save" in text
    assert "planned in" in text and "sent in a step, PP: stage 0" in text


def _world_left_behind() -> tuple:
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megalm.plan.run import plan

    hook = sys.excepthook
    with pytest.raises(ZeroDivisionError):
        from megalm.plan.world import fake_world

        with fake_world(3, 8, "gloo"):
            assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (3, 8, "gloo")
            raise ZeroDivisionError
    plan(small_config(TP2), 1, 2, "cpu")
    real = torch.zeros(3).tolist() == [0.0, 0.0, 0.0] and torch.zeros(1).device.type == "cpu"
    return dist.is_initialized(), parallel_state.model_parallel_is_initialized(), hook is sys.excepthook, real


def test_nothing_of_the_fake_world_is_left_behind():
    assert in_planner(_world_left_behind) == (False, False, True, True)


def _plan_in_a_real_world() -> str:
    from megalm.plan.world import fake_world

    with pytest.raises(RuntimeError) as error, fake_world(0, 2, "gloo"):
        pass
    return str(error.value)


def test_process_of_a_real_world_does_not_plan():
    (message,) = run_distributed(_plan_in_a_real_world, 1)
    assert "joined a world" in message


def test_vocabulary_is_padded_as_the_engine_pads_it():
    (stage,) = planned(small_config(TP2), 2).stages
    assert stage.parameters["embedding"] == (VOCABULARY + 1) // 2 * 128


@pytest.mark.parametrize("engine", ["megatron", "deepspeed"])
def test_frozen_weights_take_no_gradient_and_no_optimizer(engine: str) -> None:
    pipeline = (
        (PP2, "optimizer.layer_lr_decay=0.9") if engine == "megatron" else (TP2, "parallel.zero_stage=2")
    )
    options = ("model.tie_embeddings=false", f"engine={engine}", *pipeline)
    config = small_config(*options, "train.train_last_layers=1")
    *before, last = planned(config, 2).stages
    assert all(stage.gradients == 0 and stage.optimizer < 1000 for stage in before)
    whole = planned(small_config(*options), 2).stages[-1]
    model = config.model
    assert last.weights == whole.weights
    layer = (whole.parameters["attention"] + whole.parameters["MLP"]) / (2 if before else 4)
    trained = layer + model.hidden_size * 3 + whole.parameters.get("head and loss", 0)
    moments, copies = 8, 4 * (engine == "deepspeed")  # DeepSpeed copies fp32 weights, too
    assert last.optimizer == pytest.approx((moments + copies) * trained, rel=0.01)
    assert last.optimizer < whole.optimizer / 1.3
