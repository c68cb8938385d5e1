"""Early stopping, best checkpoints, groups and freezing that cannot act are refused with the mend."""

import pytest

from megalm.config import parse_config
from megalm.errors import UserError

EVAL = "train.eval_interval=5"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["train.early_stopping.patience=2"],
            "train.early_stopping looks at validations, and .*eval_interval is 0",
        ),
        (["checkpoint.keep_best.metric=loss"], "checkpoint.keep_best looks at validations"),
        (
            [EVAL, "checkpoint.keep_best.metric=accuracy"],
            "keep_best.metric accuracy: say whether .*mode=min or max",
        ),
        ([EVAL, "train.early_stopping={patience: 1, metric: rouge_l}"], "early_stopping.metric rouge_l: say"),
        (
            [EVAL, "checkpoint.keep_best={metric: rougeL, mode: max}"],
            "keep_best.metric rougeL is measured on answers: add it to samples.metrics",
        ),
        (["run.load_optimizer=true"], "takes the optimizer of the checkpoint in run.load"),
        (["run.load_optimizer=true", "run.load=x", "lora.rank=2"], "lora.rank 2: the loaded weights are not"),
        (["optimizer.groups=[{name: a, match: [x]}, {name: a, match: [y]}]"], "the name a stands 2 times"),
        (["optimizer.groups=[{name: a, match: []}]"], "optimizer.groups.0.match"),
        (["optimizer.groups=[{name: a b, match: [x]}]"], "optimizer.groups.0.name"),
        (["optimizer.groups=[{name: a, match: [x], lr_scale: 0}]"], "optimizer.groups.0.lr_scale"),
        (["optimizer.layer_lr_decay=1.5"], "optimizer.layer_lr_decay"),
        (
            ["train.train_last_layers=9", "model.num_layers=4"],
            "train_last_layers 9 exceeds model.num_layers 4",
        ),
    ],
)
def test_what_cannot_act_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_config({}, overrides)


@pytest.mark.parametrize("metric", ["loss", "perplexity", "lm_loss"])
def test_less_loss_and_perplexity_is_better_unless_told_otherwise(metric: str) -> None:
    config = parse_config(
        {}, [EVAL, f"checkpoint.keep_best.metric={metric}", "train.early_stopping.patience=1"]
    )
    assert config.checkpoint.keep_best.mode is None
