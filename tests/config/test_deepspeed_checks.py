"""What the engine `deepspeed` does not offer is refused with the reason, and what it alone offers is refused elsewhere."""

import pytest

from megalm.config import parse_config
from megalm.errors import UserError

ENGINE = "engine=deepspeed"


def zero(stage: int) -> str:
    return f"parallel.zero_stage={stage}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            [ENGINE, "parallel.pipeline_model_parallel_size=2"],
            "pipeline_model_parallel_size 2.*engine=megatron",
        ),
        ([ENGINE, "parallel.context_parallel_size=2"], "context_parallel_size 2.*engine=megatron"),
        ([ENGINE, "parallel.expert_model_parallel_size=2"], "expert_model_parallel_size 2.*engine=megatron"),
        ([ENGINE, "precision.dtype=fp64"], "precision.dtype fp64.*fp32 and bf16"),
        ([ENGINE, "precision.dtype=fp16"], "precision.dtype fp16.*fp32 and bf16"),
        ([ENGINE, "parallel.overlap_grad_reduce=true"], "overlap_grad_reduce True: .* buckets of its own"),
        ([ENGINE, zero(1), "parallel.overlap_param_gather=true"], "overlap_param_gather True: .* of its own"),
        ([ENGINE, "parallel.ddp_bucket_size=1000"], "ddp_bucket_size 1000: .*engine=megatron"),
        ([zero(2)], "zero_stage 2.*engine=deepspeed"),
        ([zero(3)], "zero_stage 3.*engine=deepspeed"),
        (["offload.optimizer=cpu"], "offload.optimizer cpu.*engine=deepspeed"),
        ([ENGINE, "offload.optimizer=cpu"], "zero_stage 1 or more, this is 0"),
        ([ENGINE, zero(2), "offload.parameters=cpu"], "offload.parameters cpu needs parallel.zero_stage 3"),
        ([ENGINE, zero(2), "offload.optimizer=nvme"], "offload.optimizer nvme needs parallel.zero_stage 3"),
        ([ENGINE, zero(3), "offload.optimizer=nvme"], "needs offload.nvme_path"),
        (
            [ENGINE, zero(3), "offload.parameters=nvme", "offload.nvme_path=disk"],
            "fp32: .* round the weights to fp16",
        ),
    ],
)
def test_what_an_engine_does_not_offer_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        parse_config({}, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [zero(0)],
        [zero(1), "offload.optimizer=cpu"],
        [zero(2), "offload.optimizer=cpu", "parallel.tensor_model_parallel_size=2", "precision.dtype=bf16"],
        [zero(3), "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"],
        [zero(3), "offload.optimizer=nvme", "offload.parameters=cpu", "offload.nvme_path=disk"],
    ],
)
def test_what_it_offers_is_accepted(overrides: list[str]) -> None:
    assert parse_config({}, [ENGINE, *overrides]).engine == "deepspeed"
