"""On a CUDA device every fused kernel agrees with the plain one; each skips where its package cannot be used.

bf16 results are held against the plain kernel in fp64 on the same inputs, and may be off by no more than a small multiple of
what torch's own bf16 kernels are.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megalm.config import parse_config
from megalm.config.model import ModelConfig
from megalm.kernels import detect

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PACKAGE = {"flash": "flash_attn", "te": "transformer_engine", "liger": "liger_kernel", "apex": "apex"}
BF16, FP32 = 2e-2, 1e-4


def need(kernel: str) -> None:
    """Skip where the kernel's package cannot be used."""
    found = detect().get(PACKAGE.get(kernel, ""))
    if found is not None and not found.usable:
        pytest.skip(f"{found.name}: {found.problem}")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))


def outputs_and_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Of inputs that bf16 can hold, computed in `dtype`."""
    leaves = [x.bfloat16().to(dtype).requires_grad_() for x in inputs]
    result = function(*leaves)
    outputs = result if isinstance(result, tuple) else (result,)
    total = sum((y * draw(*y.shape, seed=9 + i).to(y.dtype)).sum() for i, y in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(total, leaves)]


def assert_close(found: list[Tensor], expected: list[Tensor], bound: float) -> None:
    """Largest deviation relative to the largest element."""
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        assert (left - right).abs().max() <= bound * right.abs().max()


@pytest.mark.parametrize("queries", [128, 64], ids=["all", "last"])
@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("kernel", ["torch", "flash", "te"])
def test_attention(kernel: str, groups: int, queries: int) -> None:
    from megalm.model.attention_kernels import ATTENTIONS

    need(kernel)
    if kernel == "torch" and queries < 128:
        pytest.skip("torch's causal kernel takes as many queries as keys")
    inputs = [
        draw(2, heads, tokens, 64, seed=i)
        for i, (heads, tokens) in enumerate([(8, queries), (groups, 128), (groups, 128)])
    ]
    mask = torch.ones(queries, 128, dtype=torch.bool, device="cuda").tril(128 - queries)

    def run(name: str, given: Tensor | None) -> Callable[..., Tensor]:
        return lambda query, key, value: ATTENTIONS[name](query, key, value, given, 0.0)

    expected = outputs_and_gradients(run("plain", mask), inputs, torch.float64)
    found = outputs_and_gradients(run(kernel, None), inputs, torch.bfloat16)
    assert_close(found, expected, BF16)


@pytest.mark.parametrize("groups", [8, 2])
def test_flash_attention_inside_documents(groups: int) -> None:
    from megalm.model.attention_kernels import ATTENTIONS
    from megalm.model.attention_packages import Documents
    from megalm.model.state import ForwardState

    need("flash")
    inputs = [draw(2, heads, 128, 64, seed=i) for i, heads in enumerate([8, groups, groups])]
    begins_BS = torch.rand(2, 128, device="cuda", generator=torch.Generator("cuda").manual_seed(5)) < 0.1
    segments_BS = begins_BS.cumsum(1)
    mask = ForwardState(segments_BS=segments_BS).mask(128, torch.device("cuda"))
    expected = outputs_and_gradients(
        lambda q, k, v: ATTENTIONS["plain"](q, k, v, mask, 0.0), inputs, torch.float64
    )
    found = outputs_and_gradients(
        lambda q, k, v: ATTENTIONS["flash"](q, k, v, Documents.of(segments_BS), 0.0), inputs, torch.bfloat16
    )
    assert_close(found, expected, BF16)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, BF16), (torch.float32, FP32)], ids=["bf16", "fp32"]
)
@pytest.mark.parametrize("with_bias", [True, False], ids=["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("kernel", ["torch", "liger", "apex"])
def test_norm(kernel: str, with_bias: bool, dtype: torch.dtype, bound: float) -> None:
    from megalm.model.norm import NORMS, plain_norm

    need(kernel)
    inputs = [draw(16, 3, 512), draw(512, seed=1), draw(512, seed=2)][: 3 if with_bias else 2]

    def run(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, weight, bias=None: function(x, weight, bias, 1e-5)

    expected = outputs_and_gradients(run(plain_norm), inputs, torch.float64)
    assert_close(outputs_and_gradients(run(NORMS[kernel]), inputs, dtype), expected, bound)


@pytest.mark.parametrize(
    ("kernel", "activation"), [("liger", "swiglu"), ("compile", "swiglu"), ("compile", "gelu_tanh")]
)
def test_activation(kernel: str, activation: str) -> None:
    from megalm.model.activation import ACTIVATION_KERNELS, plain_activation

    need(kernel)
    if kernel == "compile" and not detect()["triton"].usable:
        pytest.skip(f"triton: {detect()['triton'].problem}")
    model = ModelConfig(activation=activation)
    inputs = [draw(16, 3, 512)]
    expected = outputs_and_gradients(plain_activation(model), inputs, torch.float64)
    found = outputs_and_gradients(ACTIVATION_KERNELS[kernel](model), inputs, torch.bfloat16)
    assert_close(found, expected, BF16)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("positions", [False, True], ids=["0...", "given"])
@pytest.mark.parametrize("kernel", ["liger", "te"])
def test_rope(kernel: str, positions: bool, rows: int) -> None:
    from megalm.model.positions import ROPES, Rotary
    from megalm.model.state import ForwardState

    need(kernel)
    rotary = Rotary(ModelConfig(hidden_size=512, num_attention_heads=8))
    positions_BS = torch.randint(0, 500, (rows, 32), device="cuda") if positions else None
    inputs = [draw(32, rows, 8, 64), draw(32, rows, 2, 64, seed=1)]

    def run(name: str) -> Callable[..., tuple[Tensor, ...]]:
        # a fused kernel may write over what it is given: here leaves of the graph
        state = ForwardState(positions_BS=positions_BS)
        return lambda query, key: ROPES[name](rotary, query.clone(), key.clone(), state)

    expected = outputs_and_gradients(run("plain"), inputs, torch.float64)
    assert_close(outputs_and_gradients(run(kernel), inputs, torch.bfloat16), expected, BF16)


def test_liger_cross_entropy() -> None:
    import torch.distributed as dist

    from megalm.model.cross_entropy import linear_cross_entropy
    from megalm.parallel.layout import create_layout

    need("liger")
    group: dist.ProcessGroup = create_layout(parse_config({}).parallel).groups.tp
    labels_T = torch.randint(0, 509, (96,), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    mask_T = torch.rand(96, device="cuda", generator=torch.Generator("cuda").manual_seed(2))
    inputs = [draw(96, 64), draw(509, 64, seed=3)]

    def run(liger: bool) -> Callable[..., Tensor]:
        return lambda hidden, weight: linear_cross_entropy(
            hidden, weight, labels_T, mask_T, 0, group, 32, liger
        )

    expected = outputs_and_gradients(run(False), inputs, torch.float64)
    assert_close(outputs_and_gradients(run(True), inputs, torch.bfloat16), expected, BF16)


def losses(*overrides: str, steps: int = 4) -> list[tuple[float, float]]:
    """Loss and gradient norm of some steps of a small LLaMA in bf16."""
    from megalm.engine.base import MicroBatch
    from megalm.engine.build import build_engine
    from megalm.model.kernel_choice import check_kernels
    from megalm.parallel.layout import create_layout
    from megalm.train.pretrain import NextTokenLoss

    config = parse_config(
        {
            "model": {
                "preset": "llama-15m",
                "vocab_size": 512,
                "hidden_size": 256,
                "num_attention_heads": 4,
                "num_query_groups": 2,
            },
            "batch": {"seq_length": 64, "micro_batch_size": 4},
            "precision": {"dtype": "bf16"},
        },
        overrides,
    )
    check_kernels(config)
    layout = create_layout(config.parallel)
    engine = build_engine(config, layout)
    result = []
    for step in range(steps):
        tokens = torch.randint(0, 512, (4, 65), generator=torch.Generator().manual_seed(step)).cuda()
        mask = torch.ones(4, 64, device="cuda")
        metrics = engine.step([MicroBatch(tokens[:, :-1], tokens[:, 1:], mask)], NextTokenLoss(), 1e-3)
        result.append((metrics.loss, metrics.grad_norm))
    return result


CHOICES = [
    ("model.attention", "flash"),
    ("model.attention", "te"),
    ("model.norm", "te"),
    ("model.norm", "liger"),
    ("model.norm", "apex"),
    ("model.activation_kernel", "liger"),
    ("model.activation_kernel", "compile"),
    ("model.rope_kernel", "liger"),
    ("model.rope_kernel", "te"),
    ("model.cross_entropy", "liger"),
    ("optimizer.kernel", "foreach"),
    ("optimizer.kernel", "apex"),
    ("train.compile", "blocks"),
    ("train.compile", "model"),
]


@pytest.mark.parametrize(("field", "name"), CHOICES)
def test_training_with_each_kernel_follows_the_default(field: str, name: str) -> None:
    need(name)
    found, expected = losses(f"{field}={name}"), losses()
    assert found[0] == pytest.approx(expected[0], rel=1e-2)
    # norms of later steps wander in bf16
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=1e-2)


@pytest.mark.parametrize("form", ["e4m3", "hybrid"])
def test_training_in_fp8_follows_bf16(form: str) -> None:
    need("te")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    found = [loss for loss, _ in losses(f"precision.fp8={form}", steps=10)]
    expected = [loss for loss, _ in losses(steps=10)]
    assert found == pytest.approx(expected, rel=5e-2)
    assert found != expected, "nothing ran in fp8"


@pytest.mark.parametrize(("before", "after"), [("torch", "apex"), ("apex", "torch")])
def test_optimizer_state_moves_between_kernels(before: str, after: str) -> None:
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout

    need("apex")
    engines = []
    for kernel in (before, after):
        config = parse_config(
            {"model": {"preset": "llama-tiny", "vocab_size": 509}, "precision": {"dtype": "bf16"}},
            [f"optimizer.kernel={kernel}"],
        )
        engines.append(build_engine(config, create_layout(config.parallel)))
    source, target = engines
    state = source.state()
    stored = {shard.key: shard.dtype for shard in state.values()}
    assert stored.keys() >= {shard.key for shard in target.empty_state(stored, True).values()}
    target.load({place: shard.data for place, shard in state.items()})
    target.counters = source.counters
    again = target.state()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[place].data, again[place].data) for place in state)
