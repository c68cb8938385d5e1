"""A student learns from a teacher alike under every layout: losses, norms, gradients and weights against one process."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from megalm.config import Config, parse_config
from megalm.engine.base import MicroBatch
from megalm.model.build import build_model
from megalm.parallel.layout import create_layout
from megalm.train.distill import DistillationLoss
from megalm.train.teacher import TEACHER, LastHidden, run_to_hidden
from tests.parity.hf_weights import from_gpt2
from tests.parity.runs import FP32, FP64, assert_same_run, run
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


def test_the_other_divergences_train_as_in_one_process() -> None:
    jsd = (*DISTILL, "distill.divergence=jsd", "distill.jsd_beta=0.3")
    assert_same_run(run(2, "llama-tiny", (*jsd, TP2, SP)), run(1, "llama-tiny", jsd), FP64)
    reverse = (*DISTILL, "distill.divergence=reverse_kl")
    assert_same_run(run(2, "llama-tiny", (*reverse, TP2)), run(1, "llama-tiny", reverse), FP64)


def test_a_student_on_deepspeed_trains_like_megatron() -> None:
    settings = (*DISTILL, "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(2, "llama-tiny", (*settings, "engine=deepspeed", "parallel.zero_stage=3"))
    assert_same_run(found, run(1, "llama-tiny", settings), FP32)


VOCABULARY, LENGTH, ROWS = 131, 24, 2


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


def config_like(hf: GPT2LMHeadModel) -> Config:
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
    return parse_config(sections, (*DISTILL, "distill.temperature=3"))


@in_world(1)
def test_loss_and_gradients_equal_hugging_face_models() -> None:
    student_hf, teacher_hf = hugging_face(64, 2, 0), hugging_face(32, 3, 1)
    config = config_like(student_hf)
    layout = create_layout(config.parallel)
    student, teacher = (build_model(config_like(hf), layout) for hf in (student_hf, teacher_hf))
    with torch.no_grad():
        for model, hf in ((student, student_hf), (teacher, teacher_hf)):
            weights = from_gpt2(tensors(hf, gradients=False), config_like(hf).model)
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name])
    window = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = window.roll(-1, dims=1)
    mask = torch.ones(ROWS, LENGTH)
    mask[:, -1], mask[0, :9] = 0, 0
    microbatch = MicroBatch(window, labels, mask)
    with torch.no_grad():
        microbatch.scores[TEACHER] = LastHidden(teacher, run_to_hidden(teacher, microbatch))
    loss = DistillationLoss(config)
    summed = loss.sum(loss.forward(student, microbatch), microbatch)

    counted = mask.bool()
    logits, target = student_hf(window).logits[counted], teacher_hf(window).logits[counted].detach()
    hard = 0.3 * F.cross_entropy(logits, labels[counted], reduction="sum")
    soft_target = (target / 3).softmax(-1)
    soft = 0.7 * 9 * F.kl_div((logits / 3).log_softmax(-1), soft_target, reduction="sum")
    torch.testing.assert_close(summed, torch.stack([hard, soft]), rtol=1e-10, atol=0)

    summed.sum().backward()
    (hard + soft).backward()
    gradients = from_gpt2(tensors(student_hf, gradients=True), config.model)
    for name, parameter in student.named_parameters():
        expected = gradients[name]
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-9 * scale)
    assert all(parameter.grad is None for parameter in teacher.parameters())
