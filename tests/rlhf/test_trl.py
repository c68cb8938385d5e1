"""Advantages, losses and figures equal those of TRL's trainers on the same numbers. Runs where TRL is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from megalm.rlhf.advantages import group_advantages, leave_one_out_advantages
from megalm.rlhf.losses import Clip, kl_loss, policy_figures, policy_loss, token_weights

WORDS, GROUP, PROMPTS, LENGTH = 20, 4, 3, 6
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # TRL computes some of it in float32
BETA = 0.3


def scores(completions: list[str], **_: Any) -> list[float]:
    """As many different numbers, but for one group that has the same throughout."""
    random = torch.Generator().manual_seed(len(completions))
    drawn = torch.rand(len(completions), generator=random)
    drawn[:GROUP] = 0.1
    return drawn.tolist()


def make_trainer(folder: Path, **options: Any) -> Any:
    """A trainer of TRL around a random model of 20 words, with its own way of drawing completions."""
    words = {f"w{number}": number for number in range(WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", pad_token="w2")
    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, eos_token_id=1, pad_token_id=2, **size))
    trainer, config = (RLOOTrainer, RLOOConfig) if "rloo" in options else (GRPOTrainer, GRPOConfig)
    options.pop("rloo", None)
    arguments = config(
        str(folder),
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=LENGTH,
        report_to="none",
        use_cpu=True,
        bf16=False,
        beta=0.0,
        gradient_checkpointing=False,
        **options,
    )
    rows = Dataset.from_list([{"prompt": f"w{number} w5"} for number in range(5, 5 + PROMPTS)])
    made = trainer(model, scores, args=arguments, train_dataset=rows, processing_class=tokenizer)
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def batch() -> list[dict[str, str]]:
    return [{"prompt": f"w{5 + number // GROUP} w5"} for number in range(PROMPTS * GROUP)]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_group_advantages(tmp_path: Path, scale: str) -> None:
    theirs = make_trainer(tmp_path, scale_rewards=scale)._generate_and_score_completions(batch())
    scores_B = torch.tensor(scores([""] * PROMPTS * GROUP))
    mine_B, level = group_advantages(scores_B, GROUP, divide_by_std=scale == "group")
    # theirs keeps the mean's rounding of the group of equal scores, over 1e-4
    torch.testing.assert_close(
        mine_B, theirs["advantages"], rtol=1e-5, atol=1e-3 if scale == "group" else 1e-6
    )
    assert level == 1


def test_leave_one_out_advantages(tmp_path: Path) -> None:
    theirs = make_trainer(tmp_path, rloo=True)._generate_and_score_completions(batch())
    scores_B = torch.tensor(scores([""] * PROMPTS * GROUP))
    torch.testing.assert_close(leave_one_out_advantages(scores_B, GROUP)[0], theirs["advantages"], **CLOSE)


def numbers() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(Log-probabilities with gradient, old ones, reference's, advantages (B), mask), float32."""
    random = torch.Generator().manual_seed(0)
    shape = PROMPTS * GROUP, LENGTH
    old_BS, reference_BS = (-torch.rand(*shape, generator=random) * 3 for _ in range(2))
    logprobs_BS = (old_BS + 0.4 * torch.randn(*shape, generator=random)).requires_grad_()
    lengths_B1 = torch.randint(1, LENGTH + 1, (shape[0], 1), generator=random)
    mask_BS = (torch.arange(LENGTH) < lengths_B1).int()
    return logprobs_BS, old_BS, reference_BS, torch.randn(shape[0], generator=random), mask_BS


def their_loss(
    trainer: Any, logprobs_BS: Tensor, monkeypatch: pytest.MonkeyPatch, **inputs: Tensor
) -> Tensor:
    """What the trainer makes of log-probabilities that are given in place of its model's."""
    given = logprobs_BS, torch.zeros_like(logprobs_BS), None
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: given)
    ids_BS, mask_BS = torch.zeros(logprobs_BS.shape, dtype=torch.long), inputs["completion_mask"]
    prompts = {"prompt_ids": ids_BS, "prompt_mask": torch.ones_like(ids_BS), "completion_ids": ids_BS}
    counted = {"num_items_in_batch": mask_BS.sum()}
    return trainer._compute_loss(trainer.model, prompts | counted | inputs)


KINDS = {"grpo": "sequence_mean", "dapo": "token_mean", "bnpo": "token_mean", "dr_grpo": "constant_length"}


@pytest.mark.parametrize("delta", [None, 1.6])
@pytest.mark.parametrize("kind", KINDS)
def test_token_level_losses(
    tmp_path: Path, kind: str, delta: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_grpo(tmp_path, kind, Clip(0.2, 0.28, delta), delta is None, monkeypatch)


def test_sequence_level_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_grpo(tmp_path, "grpo", Clip(0.1, 0.2, level="sequence"), False, monkeypatch)


def check_grpo(folder: Path, kind: str, clip: Clip, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradient, KL and the shares of clipped tokens, with k3 of the reference in the loss."""
    trainer = make_trainer(
        folder,
        loss_type=kind,
        epsilon=clip.low,
        epsilon_high=clip.high,
        delta=clip.dual,
        importance_sampling_level=clip.level,
        use_bias_correction_kl=weighted,
    )
    trainer.beta = BETA  # not before: it would load a reference by the model's name
    logprobs_BS, old_BS, reference_BS, advantages_B, mask_BS = numbers()
    inputs = {"completion_mask": mask_BS, "advantages": advantages_B, "old_per_token_logps": old_BS}
    theirs = their_loss(trainer, logprobs_BS, monkeypatch, ref_per_token_logps=reference_BS, **inputs)
    advantages_BS = advantages_B[:, None].expand_as(old_BS)
    loss_BS = policy_loss(logprobs_BS, old_BS, advantages_BS, mask_BS, clip)
    kl_BS = kl_loss(logprobs_BS, old_BS, reference_BS, mask_BS, "k3", weighted)
    weights_BS, divisor = token_weights(mask_BS, KINDS[kind], LENGTH)  # type: ignore[arg-type]
    mine = ((loss_BS + BETA * kl_BS) * weights_BS).sum() / divisor
    torch.testing.assert_close(mine, theirs, **CLOSE)
    found, wanted = (torch.autograd.grad(loss, logprobs_BS)[0] for loss in (mine, theirs))
    torch.testing.assert_close(found, wanted, **CLOSE)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["kl"] == pytest.approx(float(kl_BS.sum() / mask_BS.sum()), rel=1e-5)
    if clip.level == "token":  # theirs counts responses, not their tokens, where they have one ratio
        figures = policy_figures(logprobs_BS, old_BS, advantages_BS, mask_BS, clip)
        for name in ("low", "high"):
            share = float(figures[f"clipped_{name}"] / mask_BS.sum())
            assert share > 0 and metrics[f"clip_ratio/{name}_mean"] == pytest.approx(share, rel=1e-6)


def test_leave_one_out_gradient_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of RLOO's sum over a response's tokens: a constant length of 1."""
    logprobs_BS, _, _, advantages_B, mask_BS = numbers()
    old_BS = logprobs_BS.detach()
    inputs = {"completion_mask": mask_BS, "advantages": advantages_B, "old_logps": (old_BS * mask_BS).sum(1)}
    theirs = their_loss(make_trainer(tmp_path, rloo=True), logprobs_BS, monkeypatch, **inputs)
    loss_BS = policy_loss(logprobs_BS, old_BS, advantages_B[:, None], mask_BS, Clip())
    weights_BS, divisor = token_weights(mask_BS, "constant_length", 1)
    mine = (loss_BS * weights_BS).sum() / divisor
    found, wanted = (torch.autograd.grad(loss, logprobs_BS)[0] for loss in (mine, theirs))
    torch.testing.assert_close(found, wanted, **CLOSE)
