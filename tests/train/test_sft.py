"""Task `sft` end to end: the loss is Hugging Face's, the chat template travels with the model, unfit data are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megalm.checkpoint import find_checkpoint, read_config
from megalm.config import Config
from megalm.convert.run import convert
from megalm.dataset import build_dataset
from megalm.dataset.pack_stream import PackStream
from megalm.errors import UserError
from megalm.tokenizer.chat import BUNDLED, stored_template
from megalm.tokenizer.load import load_tokenizer
from megalm.train.base_model import check_base_tokenizer
from megalm.train.sft import template_of
from tests.chats import build_chats, make_chats, make_tokenizer, write_chats
from tests.tokenizer.test_bpe import make_texts, write_jsonl
from tests.train.runs import events, run_config, step_lines, train_in_world
from tests.train.test_run import refusal

CHATML = (BUNDLED / "chatml.jinja").read_text()
CHATS = make_chats(20)
LENGTH = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, token files of conversations, and a random LLaMA in Hugging Face's form and in ours."""
    folder: Path = tmp_path_factory.mktemp("sft")
    tokenizer = make_tokenizer(folder)
    build_chats([write_chats(folder / "chats.jsonl", CHATS)], tokenizer, folder / "chats")
    torch.manual_seed(0)
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(reference),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=LENGTH,
        )
    )
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(3)
    hf.save_pretrained(folder / "hf")
    reference.save_pretrained(folder / "hf")
    convert(folder / "hf", folder / "base")
    return folder


def sft_config(folder: Path, run: str, *overrides: str, prefix: str = "chats_train") -> Config:
    """One step on all packs of the conversations."""
    model = read_config(find_checkpoint(folder / "base")).model
    packs = PackStream([(str(folder / "chats_train"), 1.0)], LENGTH, 0, "drop").packs[0].count
    return run_config(
        folder / run,
        folder,
        "task=sft",
        f"model={json.dumps(model.model_dump())}",
        f"tokenizer.path={folder / 'tokenizer'}",
        f"data.train=[{{path: {folder / prefix}}}]",
        "data.valid=[]",
        f"batch={{seq_length: {LENGTH}, micro_batch_size: 1, global_batch_size: {packs}}}",
        "train.steps=1",
        "optimizer.warmup_steps=0",
        *overrides,
    )


def loss_of_hugging_face(folder: Path) -> tuple[float, int]:
    """Mean cross entropy of the assistants' tokens, each conversation alone."""
    reference = PreTrainedTokenizerFast.from_pretrained(folder / "hf")
    model = LlamaForCausalLM.from_pretrained(folder / "hf")
    total, count = 0.0, 0
    for chat in CHATS:
        read = reference.apply_chat_template(
            chat, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = torch.tensor(read["input_ids"]), torch.tensor(read["assistant_masks"])
        labels = torch.where(mask == 1, ids, -100)
        counted = int((labels[1:] != -100).sum())
        with torch.no_grad():
            total += float(model(ids[None], labels=labels[None]).loss) * counted
        count += counted
    return total / count, count


def test_loss_equals_hugging_faces_and_the_template_travels_to_the_export(folder: Path) -> None:
    train_in_world(1, sft_config(folder, "run", f"run.load={folder / 'base'}"))
    expected, counted = loss_of_hugging_face(folder)
    (line,) = step_lines(folder / "run")
    assert line["loss"] == pytest.approx(expected, rel=2e-6) and line["weight"] == counted
    assert any("% padding, 0 of 20 documents left out" in event for event in events(folder / "run"))
    assert (folder / "run" / "tokenizer" / "chat_template.jinja").read_text() == CHATML
    convert(folder / "run", folder / "back", family="llama")
    assert PreTrainedTokenizerFast.from_pretrained(folder / "back").chat_template == CHATML

    lora = ("lora.rank=4", f"run.load={folder / 'base'}")
    train_in_world(1, sft_config(folder, "lora", *lora))
    assert step_lines(folder / "lora")[0]["loss"] == pytest.approx(expected, rel=2e-6)
    assert stored_template(folder / "lora" / "tokenizer") == {"default": CHATML}


def test_a_run_without_a_base_model_says_so(folder: Path) -> None:
    train_in_world(1, sft_config(folder, "alone"))
    assert any("without run.load" in event for event in events(folder / "alone"))


def test_data_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    texts = [write_jsonl(tmp_path / "texts.jsonl", make_texts(60))]
    build_dataset(texts, folder / "tokenizer", folder / "texts", splits="1", workers=1)
    said = refusal(sft_config(folder, "no", prefix="texts_train"))
    assert (
        "texts_train does not say which tokens are answers: build it with `megalm dataset build --chat"
        in said
    )
    assert "set tokenizer.path" in refusal(sft_config(folder, "no", "tokenizer.path=null"))
    with pytest.raises(UserError, match="would part answers from their questions"):
        sft_config(folder, "no", "data.packing=cut")


def test_another_chat_template_than_the_tokenizers_or_the_other_datas_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    build_chats([folder / "chats.jsonl"], folder / "tokenizer", folder / "plain", "plain")
    both = [str(folder / "chats_train"), str(folder / "plain_train")]
    config = sft_config(folder, "no", f"data.train=[{{path: {both[0]}}}, {{path: {both[1]}}}]")
    with pytest.raises(UserError, match="made with different chat templates"):
        template_of(config)
    own = tmp_path / "tokenizer"
    shutil.copytree(folder / "tokenizer", own)
    (own / "chat_template.jinja").write_text(CHATML)
    config = sft_config(folder, "no", f"tokenizer.path={own}")
    assert template_of(config) == {"default": CHATML}
    config = sft_config(folder, "no", f"tokenizer.path={own}", prefix="plain_train")
    with pytest.raises(UserError, match="another chat template than that of the tokenizer"):
        template_of(config)
    # a run that has begun has the template of its first data, also where the tokenizer has none
    begun = tmp_path / "run"
    config = sft_config(folder, "no", f"run.dir={begun}", prefix="plain_train")
    assert template_of(config) is not None
    shutil.copytree(own, begun / "tokenizer")
    with pytest.raises(UserError, match=f"that of the tokenizer {begun / 'tokenizer'}"):
        template_of(config)


def test_a_base_model_of_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "base"
    shutil.copytree(folder / "base", other)
    content = (folder / "tokenizer" / "tokenizer.json").read_text()
    for path in other.rglob("tokenizer.json"):
        path.write_text(content.replace('"e"', '"%"', 1).replace('"f"', '"e"', 1).replace('"%"', '"f"', 1))
    for path in other.rglob("megalm.json"):
        path.unlink()
    said = refusal(sft_config(folder, "no", f"run.load={other}"))
    assert "was trained with another tokenizer" in said
    for path in other.rglob("tokenizer.json"):
        path.write_text(content.replace("<|im_start|>", "<|spare_0|>"))
    config = sft_config(folder, "no", f"run.load={other}")
    check_base_tokenizer(config, load_tokenizer(folder / "tokenizer"))  # a spare token was taken over
