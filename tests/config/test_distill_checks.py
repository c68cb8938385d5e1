"""What contradicts itself in a run of task `distill` is refused in one line."""

import pytest

from megalm.config import parse_config
from megalm.errors import UserError

TEACHER = ("task=distill", "distill.teacher=somewhere", "model.num_layers=2")
LAYERS = "distill.init_from_teacher_layers"
HIDDEN = ("distill.hidden_loss_weight=1", "distill.hidden_layers=[[0,1]]")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("distill.teacher=null",), "name its checkpoint in distill.teacher"),
        (("train.compile=model",), "use `blocks`"),
        (("distill.cache=here", "distill.divergence=reverse_kl"), "distill.cache here has the largest ones"),
        ((f"{LAYERS}=[0]",), r"\[0\]: give one number from 0 on for each of model.num_layers 2"),
        ((f"{LAYERS}=[0,-1]",), "from 0 on"),
        ((f"{LAYERS}=[0,1]", "run.load=there"), "both give the first weights"),
        ((f"{LAYERS}=[0,1]", "distill.teacher=null", "distill.cache=here"), "name it in distill.teacher"),
        (("distill.hidden_loss_weight=1",), "name pairs of them in distill.hidden_layers"),
        ((*HIDDEN, "distill.hidden_layers=[[0,1],[2]]"), r"\[2\] is no pair"),
        ((*HIDDEN, "distill.cache=here"), "distill.cache here has only its logits"),
        ((*HIDDEN, "train.recompute.granularity=full"), "use `selective`"),
        ((*HIDDEN, "train.compile=blocks"), "set it to none"),
    ],
)
def test_contradictions_are_refused(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_config({}, (*TEACHER, *overrides))


def test_other_tasks_do_not_mind() -> None:
    parse_config({}, (*HIDDEN, "task=pretrain"))
