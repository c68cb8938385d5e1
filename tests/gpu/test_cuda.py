"""On a CUDA device fused kernels agree with the plain ones and bf16 follows fp32; skipped without a device."""

import pytest
import torch

from megalm.config import parse_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def losses(dtype: str, *overrides: str) -> list[tuple[float, float]]:
    """Loss and gradient norm of four steps on whatever device the layout chooses."""
    from megalm.engine.base import MicroBatch
    from megalm.engine.megatron import MegatronEngine
    from megalm.parallel.layout import create_layout
    from megalm.train.pretrain import NextTokenLoss

    config = parse_config(
        {"model": {"preset": "llama-tiny", "vocab_size": 509}, "batch": {"seq_length": 64}},
        [f"precision.dtype={dtype}", *overrides],
    )
    layout = create_layout(config.parallel)
    engine = MegatronEngine(config, layout)
    result = []
    for step in range(4):
        tokens = torch.randint(0, 509, (4, 65), generator=torch.Generator().manual_seed(step)).to(
            layout.device
        )
        mask = torch.ones(4, 64, device=layout.device)
        metrics = engine.step([MicroBatch(tokens[:, :-1], tokens[:, 1:], mask)], NextTokenLoss(), 1e-3)
        result.append((metrics.loss, metrics.grad_norm))
    return result


def test_float32_training_agrees_between_torch_and_plain_kernels():
    plain = losses("fp32", "model.attention=plain", "model.norm=plain", "model.cross_entropy=plain")
    fused = losses("fp32")
    assert torch.tensor(fused) == pytest.approx(torch.tensor(plain), rel=2e-5)


def test_bf16_training_follows_float32():
    assert torch.tensor(losses("bf16")) == pytest.approx(torch.tensor(losses("fp32")), rel=2e-2)


def test_both_dispatchers_train_a_mixture_of_experts_alike():
    mixture = ("model.preset=mixtral-tiny", "model.moe.z_loss_coeff=0.01")
    gathered, sent = (
        losses("fp32", *mixture, f"model.moe.dispatcher={name}") for name in ("allgather", "alltoall")
    )
    assert torch.tensor(sent) == pytest.approx(torch.tensor(gathered), rel=2e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_fused_attention_agrees_with_plain_in_bf16(groups):
    from megalm.kernels import detect
    from megalm.model.attention_kernels import flash_attention, plain_attention, torch_attention

    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(2, 8, 128, 64, device="cuda", generator=generator)
    key, value = (torch.randn(2, 8 // groups, 128, 64, device="cuda", generator=generator) for _ in range(2))
    expected = plain_attention(query, key, value, None, 0.0)
    kernels = [torch_attention] + [flash_attention] * detect()["flash_attn"].usable
    for kernel in kernels:
        found = kernel(query.bfloat16(), key.bfloat16(), value.bfloat16(), None, 0.0)
        assert (found.float() - expected).abs().max() < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_last_tokens_alone_agree_with_plain_forward_and_backward(groups, dtype):
    """A context-parallel rank's chunk: more keys than queries, no mask."""
    from megalm.kernels import detect
    from megalm.model.attention_kernels import flash_attention, plain_attention, torch_attention

    generator = torch.Generator("cuda").manual_seed(0)
    shapes = [(2, 8, 64, 64), (2, 8 // groups, 192, 64), (2, 8 // groups, 192, 64)]
    wide = [torch.randn(shape, device="cuda", generator=generator).requires_grad_() for shape in shapes]
    expected = plain_attention(*wide, None, 0.0)
    expected_gradients = torch.autograd.grad(expected.sum(), wide)
    kernels = [torch_attention] + [flash_attention] * detect()["flash_attn"].usable
    for kernel in kernels:
        narrow = [x.detach().to(dtype).requires_grad_() for x in wide]
        found = kernel(*narrow, None, 0.0)
        assert (found.float() - expected).abs().max() < 2e-2
        for left, right in zip(torch.autograd.grad(found.sum(), narrow), expected_gradients, strict=True):
            assert (left.float() - right).abs().max() < 2e-2 * right.abs().max() + 2e-2
