"""A student learns from a teacher alike under every layout: losses, norms, gradients and weights against one process."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from megalm.config import Config, parse_config
from megalm.engine.base import MicroBatch
from megalm.engine.build import build_engine
from megalm.engine.megatron import MegatronEngine
from megalm.model.build import build_model
from megalm.parallel.layout import create_layout
from megalm.train.distill import DistillationLoss
from megalm.train.teacher import Teacher
from tests.parity.hf_weights import from_gpt2
from tests.parity.runs import FP32, FP64, assert_same_run, assert_same_tensors, run
from tests.parity.test_hugging_face import randomize, tensors
from tests.worlds import in_world

DISTILL = ("task=distill", "distill.teacher=unused", "distill.alpha=0.7")
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "TP2": (2, (TP2,)),
    "TP2+SP": (2, (TP2, SP)),
    "PP2": (2, (PP2,)),
    "PP2 (VP2)": (2, (PP2, "parallel.virtual_pipeline_model_parallel_size=2")),
    "CP2": (2, ("parallel.context_parallel_size=2",)),
    "DP2": (2, ()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_student_trains_as_in_one_process(layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    found = run(world_size, "llama-tiny", (*DISTILL, *overrides))
    assert_same_run(found, run(1, "llama-tiny", DISTILL), FP64)


@pytest.mark.parametrize("layout", ["TP2", "TP2+SP", "PP2", "CP2"])
def test_hidden_states_are_matched_as_in_one_process(layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    kind = "distill.hidden_loss=cosine" if layout == "TP2+SP" else "distill.hidden_loss=mse"
    hidden = (*DISTILL, "distill.hidden_loss_weight=5", "distill.hidden_layers=[[2,3],[3,2]]", kind)
    found, expected = run(world_size, "llama-tiny", (*hidden, *overrides)), run(1, "llama-tiny", hidden)
    assert min(more["hidden_loss"] for more in expected.more) > 0.1
    assert_same_run(found, expected, FP64)


@pytest.mark.parametrize(
    ("divergence", "layout"),
    [("divergence=jsd", (TP2, SP)), ("divergence=reverse_kl", (TP2,))],
    ids=["jsd", "reverse_kl"],
)
def test_other_divergences_train_as_in_one_process(divergence: str, layout: tuple[str, ...]) -> None:
    settings = (*DISTILL, f"distill.{divergence}", "distill.jsd_beta=0.3")
    found, expected = run(2, "llama-tiny", (*settings, *layout)), run(1, "llama-tiny", settings)
    # too gentle to be clipped, which `assert_same_run` insists on
    assert found.losses == pytest.approx(expected.losses, rel=FP64.metrics)
    assert found.norms == pytest.approx(expected.norms, rel=FP64.metrics)
    assert_same_tensors(found.gradients, expected.gradients, FP64.gradients)
    assert_same_tensors(found.weights, expected.weights, FP64.weights)


def test_a_student_on_deepspeed_trains_like_megatron() -> None:
    settings = (*DISTILL, "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(2, "llama-tiny", (*settings, "engine=deepspeed", "parallel.zero_stage=3"))
    assert_same_run(found, run(1, "llama-tiny", settings), FP32)


VOCABULARY, LENGTH, ROWS = 131, 24, 2
MATCHED = ("distill.hidden_loss_weight=0.5", "distill.hidden_layers=[[0,1]]")


def hugging_face(width: int, layers: int, seed: int) -> GPT2LMHeadModel:
    settings = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "attn_implementation": "eager"}
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=width, n_layer=layers, n_head=4, **settings
        )
    )
    randomize(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * seed)
    return model.double()


def config_like(hf: GPT2LMHeadModel, *overrides: str) -> Config:
    model = {
        "preset": "gpt2-tiny",
        "vocab_size": VOCABULARY,
        "max_sequence_length": LENGTH,
        "num_layers": hf.config.n_layer,
        "hidden_size": hf.config.n_embd,
        "ffn_hidden_size": 4 * hf.config.n_embd,
        "num_attention_heads": 4,
    }
    sections = {"model": model, "batch": {"seq_length": LENGTH}, "precision": {"dtype": "fp64"}}
    return parse_config(sections, (*DISTILL, "distill.temperature=3", *overrides))


def take_weights(model: torch.nn.Module, hf: GPT2LMHeadModel, config: Config) -> None:
    weights = from_gpt2(tensors(hf, gradients=False), config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


@pytest.mark.parametrize(("width", "matching"), [(32, ()), (64, MATCHED)], ids=["logits", "hidden states"])
@in_world(1)
def test_loss_and_gradients_equal_hugging_face_models(width: int, matching: tuple[str, ...]) -> None:
    student_hf, teacher_hf = hugging_face(64, 2, 0), hugging_face(width, 3, 1)
    config = config_like(student_hf, *matching)
    layout = create_layout(config.parallel)
    student, engine = build_model(config, layout), build_engine(config_like(teacher_hf), layout, train=False)
    assert isinstance(engine, MegatronEngine)
    take_weights(student, student_hf, config)
    take_weights(engine.model, teacher_hf, config_like(teacher_hf))
    window = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = window.roll(-1, dims=1)
    mask = torch.ones(ROWS, LENGTH)
    mask[:, -1], mask[0, :9] = 0, 0
    microbatch = MicroBatch(window, labels, mask)
    Teacher(engine, [1] if matching else [])([microbatch], training=True)
    loss = DistillationLoss(config)
    summed = loss.sum(loss.forward(student, microbatch), microbatch)

    counted = mask.bool()
    mine, theirs = (hf(window, output_hidden_states=True) for hf in (student_hf, teacher_hf))
    logits, target = mine.logits[counted], theirs.logits[counted].detach()
    hard = 0.3 * F.cross_entropy(logits, labels[counted], reduction="sum")
    soft_target = (target / 3).softmax(-1)
    soft = 0.7 * 9 * F.kl_div((logits / 3).log_softmax(-1), soft_target, reduction="sum")
    parts = [hard, soft]
    if matching:  # hidden_states begins with the embedding
        outputs = mine.hidden_states[1][counted], theirs.hidden_states[2][counted].detach()
        parts.append(0.5 * F.mse_loss(*outputs, reduction="sum") / width)
    torch.testing.assert_close(summed, torch.stack(parts), rtol=1e-10, atol=0)

    summed.sum().backward()
    torch.stack(parts).sum().backward()
    gradients = from_gpt2(tensors(student_hf, gradients=True), config.model)
    for name, parameter in student.named_parameters():
        expected = gradients[name]
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-9 * scale)
    assert all(parameter.grad is None for parameter in engine.model.parameters())
