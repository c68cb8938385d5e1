"""Megatron-Core runs on the CPU, every cure takes hold in the supported version, and torch stays as it was."""

import importlib.metadata
import io
import logging
import os
import subprocess
import sys
import warnings
from types import ModuleType

import pytest
import torch

from megalm.parallel import _cpu_device, _rewrite, cpu
from megalm.parallel._expected import ENTRY_POINTS, EXPECTED, SUPPORTED_VERSION
from megalm.parallel._rewrite import CPU_DEVICE, CpuLoader, rewrite
from megalm.testing import run_distributed

HOW_TO_MEND = "see megalm/parallel/_expected.py for how to take a new megatron-core on"


def run_in_fresh_process(code: str) -> str:
    """Run Python code where nothing is imported yet and no GPU is seen; returns what it printed."""
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def without_hook(monkeypatch):
    """As in a process that has neither installed the support nor imported Megatron-Core."""
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, cpu._CpuFinder)])
    monkeypatch.delitem(sys.modules, cpu.PACKAGE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_installed_megatron_core_is_the_supported_version():
    installed = importlib.metadata.version("megatron-core")
    assert installed == SUPPORTED_VERSION, f"megatron-core {installed} is installed; {HOW_TO_MEND}"


def test_every_rewrite_and_rebinding_takes_hold_and_importing_is_silent():
    imports = "".join(f"import {name}\n" for name in ENTRY_POINTS)
    printed = run_in_fresh_process(
        f"from megalm.parallel import cpu\ncpu.install()\n{imports}print(*cpu.differences(), sep='\\n')"
    )
    version = importlib.metadata.version("megatron-core")
    assert printed.strip() == "", f"megatron-core {version}: {printed}\n{HOW_TO_MEND}"


def test_differences_names_a_row_that_became_void(monkeypatch):
    monkeypatch.setitem(EXPECTED, "megatron.core.no_such_module", {"torch.cuda": 3})
    assert "megatron.core.no_such_module: expected {'torch.cuda': 3}, found {}" in cpu.differences()


def test_torch_is_left_as_it_was():
    imports = "".join(f"import {name}\n" for name in ENTRY_POINTS)
    run_in_fresh_process(f"""
import torch, torch.distributed, torch.utils.data

def holders():
    return torch, torch.cuda, torch.cuda.random, torch.distributed, torch.nn.functional, torch.Tensor, torch.nn.Module

before = [dict(vars(holder)) for holder in holders()]
from megalm.parallel import cpu
cpu.install()
{imports}
for holder, names in zip(holders(), before):
    changed = [name for name, value in names.items() if name[:2] != "__" and getattr(holder, name) is not value
               and vars(holder).get(name) is not value]
    assert not changed, (holder, changed)
assert not torch.cuda.is_available()
import megatron.core.tensor_parallel.layers as layers
assert layers.torch is torch
""")


def test_installing_twice_adds_one_import_hook(without_hook):
    cpu.install()
    cpu.install()
    assert sum(isinstance(finder, cpu._CpuFinder) for finder in sys.meta_path) == 1


def test_nothing_is_installed_where_cuda_is(without_hook, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu.install()
    assert not any(isinstance(finder, cpu._CpuFinder) for finder in sys.meta_path)


def test_importing_megatron_core_before_install_is_refused(without_hook, monkeypatch):
    monkeypatch.setitem(sys.modules, cpu.PACKAGE, ModuleType(cpu.PACKAGE))
    with pytest.raises(RuntimeError, match="imported before"):
        cpu.install()


def test_an_untested_version_is_announced(without_hook, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    with pytest.warns(UserWarning, match=r"megatron-core 9\.9 on the CPU is untested"):
        cpu.install()


def test_only_known_noise_is_silenced(without_hook):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        cpu.install()
        code = compile("import warnings\nwarnings.warn(text)", "library", "exec")
        exec(
            code,
            {
                "__name__": "megatron.core.optimizer",
                "text": "Transformer Engine and Apex are not installed. F",
            },
        )
        exec(code, {"__name__": "megatron.core.optimizer", "text": "gradients are wrong"})
        exec(code, {"__name__": "users.code", "text": "Apex is not installed"})
    assert [str(warning.message) for warning in heard] == ["gradients are wrong", "Apex is not installed"]


def test_what_was_rewritten_is_kept_until_the_source_or_the_rules_change(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file, rewritten = tmp_path / "library.py", []

    def count(source: bytes, path: str):
        rewritten.append(source)
        return rewrite(source, path)

    def load() -> tuple[object, dict, int]:
        told: dict = {}
        loader = CpuLoader(
            "library", str(file), lambda name, counts: told.update(counts), lambda module: None
        )
        names = {CPU_DEVICE: _cpu_device}
        exec(loader.get_code("library"), names)
        return names["x"], told, len(rewritten)

    monkeypatch.setattr(_rewrite, "rewrite", count)
    file.write_text("x = 'cuda', 1")
    assert [load(), load()] == [(("cpu", 1), {"'cuda'": 1}, 1)] * 2
    file.write_text("x = 'cuda', 2")  # as long as before, and within the same second
    assert [load(), load()] == [(("cpu", 2), {"'cuda'": 1}, 2)] * 2
    [kept] = (tmp_path / "__pycache__").iterdir()
    for number, damaged in enumerate((b"", kept.read_bytes()[:20], b"no byte code"), start=3):
        kept.write_bytes(damaged)
        assert [load(), load()] == [(("cpu", 2), {"'cuda'": 1}, number)] * 2
    monkeypatch.setattr(_rewrite, "_RULES", b"others")
    assert load()[2] == load()[2] == 6
    kept.unlink()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert load()[2] == 7 and not kept.exists()


def execute(source: str) -> dict:
    """Run `source` as a rewritten library module would run."""
    code, _ = rewrite(source.encode(), "library.py")
    names = {CPU_DEVICE: _cpu_device}
    exec(code, names)
    return names


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("x = torch.zeros(2, device=torch.cuda.current_device())", "torch.cuda"),
        ("x = torch.zeros(2, device='cuda')", "'cuda'"),
        ("x = torch.zeros(2).cuda(non_blocking=True)", ".cuda()"),
        ("x = torch.zeros(2).pin_memory()", ".pin_memory()"),
        ("x = torch.zeros(2, pin_memory=True)", "pin_memory="),
        ("x = torch.cuda.FloatTensor([0, 0])", "torch.cuda"),
        ("x = torch.zeros(2)\nassert x.type() == 'torch.cuda.FloatTensor'", "'torch.cuda.*Tensor'"),
        (
            "x = torch.bfloat16\nx = torch.zeros(2)\nassert isinstance(x, torch.cuda.FloatTensor)",
            "torch.cuda",
        ),
        ("with torch.cuda.stream(torch.cuda.Stream(device='cuda')):\n    x = torch.zeros(2)", "torch.cuda"),
    ],
)
def test_a_reach_for_the_gpu_lands_on_the_cpu(source, rule):
    source = f"import torch\n{source}\n"
    assert rewrite(source.encode(), "library.py")[1][rule] >= 1
    tensor = execute(source)["x"]
    assert tensor.device.type == "cpu" and torch.equal(tensor, torch.zeros(2))


def test_text_that_merely_mentions_cuda_is_kept_and_lines_stay():
    source = '"""Copies to cuda."""\nname = "cuda rng state"\nraise KeyError(name)\n'
    code, counts = rewrite(source.encode(), "library.py")
    assert not counts and code.co_consts[0] == "Copies to cuda."
    with pytest.raises(KeyError) as error:
        exec(code, {})
    assert error.traceback[-1].lineno + 1 == 3 and "cuda rng state" in str(error.value)


def test_events_measure_milliseconds():
    start, end = _cpu_device.Event(enable_timing=True), _cpu_device.Event(enable_timing=True)
    start._seconds, end._seconds = 1.0, 1.25
    assert start.elapsed_time(end) == 250.0


def test_what_has_no_cpu_twin_is_answered_by_torch_cuda():
    assert _cpu_device.is_available is torch.cuda.is_available
    with pytest.raises(AttributeError):
        _ = _cpu_device.no_such_name


# --- Megatron-Core at work, in one gloo process -------------------------------------------------------------------------------

SEQUENCE, BATCH, VOCABULARY = 16, 2, 64


def build_model(**changes):
    """A two-layer GPTModel with the library's own local spec."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1)
    fields = dict(
        num_layers=2, hidden_size=32, num_attention_heads=4, hidden_dropout=0.0, attention_dropout=0.0
    )
    config = TransformerConfig(**(fields | changes), finalize_model_grads_func=finalize_model_grads)
    spec = get_gpt_layer_local_spec()
    return GPTModel(config, spec, VOCABULARY, SEQUENCE, position_embedding_type="rope")


def token_losses(model):
    """Loss of every token of one fixed batch, (B, S)."""
    tokens = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(SEQUENCE).expand(BATCH, -1)
    mask = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)[None, None]
    return model(tokens[:, :-1], positions, mask, labels=tokens[:, 1:])


def forward_backward_with_recomputed_dropout():
    fields = dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    gradients = []
    for recompute in ({}, fields):
        from megatron.core import parallel_state, tensor_parallel

        if parallel_state.model_parallel_is_initialized():
            parallel_state.destroy_model_parallel()
        tensor_parallel.get_cuda_rng_tracker().reset()
        model = build_model(hidden_dropout=0.1, attention_dropout=0.1, **recompute)
        token_losses(model).mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    return gradients


def test_gpt_model_builds_and_recomputed_dropout_gives_the_same_gradients():
    plain, recomputed = run_distributed(forward_backward_with_recomputed_dropout, 1)[0]
    assert plain.keys() == recomputed.keys()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=0, msg=name)


def draws_of_the_rng_tracker():
    from megatron.core import parallel_state, tensor_parallel

    written = io.StringIO()
    handler = logging.StreamHandler(written)
    logging.getLogger("megatron.core.tensor_parallel.random").addHandler(handler)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    tracker = tensor_parallel.get_cuda_rng_tracker()
    outside = []
    for forked in (False, True):
        torch.manual_seed(3)
        outside.append(torch.rand(2))
        if forked:
            with tracker.fork():
                inside = torch.rand(2)
        outside.append(torch.rand(2))
    with tracker.fork():
        inside_again = torch.rand(2)
    logging.getLogger("megatron.core.tensor_parallel.random").removeHandler(handler)
    return outside, inside, inside_again, written.getvalue()


def test_rng_tracker_forks_its_own_stream_of_the_cpu_generator():
    outside, inside, inside_again, messages = run_distributed(draws_of_the_rng_tracker, 1)[0]
    assert torch.equal(outside[0], outside[2]) and torch.equal(outside[1], outside[3])
    assert not torch.equal(inside, inside_again) and not torch.equal(inside, outside[1])
    assert messages == ""


def save_and_load(directory):
    from megatron.core import dist_checkpointing

    model = build_model()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    dist_checkpointing.save(model.sharded_state_dict(), directory)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(dist_checkpointing.load(model.sharded_state_dict(), directory))
    return {name: torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters()}


def test_distributed_checkpoint_gives_back_every_weight(tmp_path):
    equal = run_distributed(save_and_load, 1, str(tmp_path))[0]
    assert equal and all(equal.values()), equal


def train(bf16, steps):
    """Losses and gradient norms of the library's schedule, DDP and DistributedOptimizer; and step 1 of plain autograd."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
    from megatron.core.transformer.module import Float16Module

    dtype = torch.bfloat16 if bf16 else torch.float32
    model = build_model(bf16=bf16, params_dtype=dtype)
    loss = token_losses(model).mean()
    loss.backward()
    gradients = [parameter.grad.float() for parameter in model.parameters()]
    plain = loss.item(), torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    model.zero_grad()

    wrapped = Float16Module(model.config, model) if bf16 else model
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=True)
    wrapped = DistributedDataParallel(model.config, ddp_config, wrapped)
    optimizer_config = OptimizerConfig(
        optimizer="adam",
        lr=1e-2,
        clip_grad=1.0,
        use_distributed_optimizer=True,
        bf16=bf16,
        log_num_zeros_in_grad=True,
    )
    optimizer = get_megatron_optimizer(optimizer_config, [wrapped])
    history = []
    for _ in range(steps):
        wrapped.zero_grad_buffer()
        optimizer.zero_grad()
        reduced = get_forward_backward_func()(
            forward_step_func=lambda batches, chunk: (
                token_losses(chunk),
                lambda losses: (losses.float().mean(), {"loss": losses.detach().float().mean()}),
            ),
            data_iterator=None,
            model=[wrapped],
            num_microbatches=2,
            seq_length=SEQUENCE,
            micro_batch_size=BATCH,
            forward_only=False,
        )
        updated, gradient_norm, zeros = optimizer.step()
        assert updated and zeros is not None
        history.append((reduced[0]["loss"].item(), gradient_norm))
    return plain, history


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 2e-2)], ids=["fp32", "bf16"])
def test_schedule_ddp_and_sharded_optimizer_train_like_plain_autograd(bf16, tolerance):
    plain, history = run_distributed(train, 1, bf16, 5)[0]
    assert history[0] == pytest.approx(plain, rel=tolerance)
    assert history[-1][0] < history[0][0] - 0.5
