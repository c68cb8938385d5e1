"""Models go from Hugging Face's form to ours, through a parallel layout, and back without a changed bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from megalm.checkpoint import find_checkpoint, load_weights, read_config
from megalm.checkpoint.directory import write_manifest
from megalm.checkpoint.write import CheckpointWriter
from megalm.cli import main
from megalm.convert.run import convert
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.generate.load import open_model
from megalm.generate.request import ModelRequest
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.chat import BUNDLED
from megalm.tokenizer.export import TEMPLATE_NAME
from megalm.tokenizer.training.train import train_tokenizer
from tests.convert.hub import MODELS, VOCABULARY, make, save


def train_step_zero(checkpoint: Path, run_directory: Path) -> None:
    """Load a checkpoint under TP2 x PP2 and save it again from there."""
    config = read_config(checkpoint)
    config.parallel.tensor_model_parallel_size = 2
    config.parallel.pipeline_model_parallel_size = 2
    config.model.make_vocab_size_divisible_by = 8
    layout = create_layout(config.parallel)
    engine = build_engine(config, layout)
    load_weights(engine, checkpoint)
    writer = CheckpointWriter(run_directory, config, engine)
    writer.save(0, {"step": 0, "counters": engine.counters})
    writer.finish()


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: part for path in folder.glob("*.safetensors") for name, part in load_file(path).items()}


def assert_same_files(found: Path, expected: Path) -> None:
    ours, theirs = tensors_in(found), tensors_in(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_through_a_parallel_layout_is_bit_equal(name: str, tmp_path: Path) -> None:
    source = save(name, tmp_path / "hf")
    there = convert(source, tmp_path / "ours")
    assert there["difference"] <= 1e-5
    run_distributed(train_step_zero, 4, tmp_path / "ours", tmp_path / "run")
    back = convert(tmp_path / "run", tmp_path / "back", family=there["family"])
    assert back["difference"] <= 1e-5
    assert_same_files(tmp_path / "back", source)


@pytest.mark.parametrize("name", ["llama3.1", "mistral", "qwen3", "mixtral"])
def test_settings_come_back_from_a_converted_checkpoint(name: str, tmp_path: Path) -> None:
    """A Mistral could be a LLaMA: what it was is kept; so are entries that the model does not know."""
    source = save(name, tmp_path / "hf")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_note": "kept"}))
    convert(source, tmp_path / "ours", compare=False)
    convert(tmp_path / "ours", tmp_path / "back", compare=False)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back")
    )
    assert {key: after.get(key) for key in before} == before
    assert (tmp_path / "back" / "generation_config.json").read_bytes() == (
        source / "generation_config.json"
    ).read_bytes()


def test_bf16_stays_and_other_formats_are_made_on_demand(tmp_path: Path) -> None:
    source = save("llama3", tmp_path / "hf", torch.bfloat16)
    convert(source, tmp_path / "ours", compare=False)
    assert read_config(tmp_path / "ours").precision.dtype == "bf16"
    convert(tmp_path / "ours", tmp_path / "same", compare=False)
    assert_same_files(tmp_path / "same", source)
    convert(tmp_path / "ours", tmp_path / "wide", dtype="fp32", compare=False)
    for name, tensor in tensors_in(tmp_path / "wide").items():
        assert torch.equal(tensor, tensors_in(source)[name].float())
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_logits_are_compared_in_the_format_asked_for(tmp_path: Path) -> None:
    convert(save("mixtral", tmp_path / "hf"), tmp_path / "ours", compare=False)
    assert convert(tmp_path / "ours", tmp_path / "narrow", dtype="bf16")["difference"] <= 1e-5


def test_transformers_is_told_where_a_text_ends(tmp_path: Path) -> None:
    """A tokenizer of ours says it in its own file; config.json's default for a LLaMA is another token."""
    convert(save("llama3", tmp_path / "hf"), tmp_path / "ours", compare=False)
    (tmp_path / "ours" / "hugging_face" / "config.json").unlink()  # as of a run that began here
    (tmp_path / "ours" / "manifest.json").unlink()
    write_manifest(tmp_path / "ours", {})
    (tmp_path / "a.txt").write_text("one text of some words\n")
    train_tokenizer([tmp_path / "a.txt"], tmp_path / "ours" / "tokenizer", "character")
    convert(tmp_path / "ours", tmp_path / "back", compare=False)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "back"), load_tokenizer(tmp_path / "back")
    assert theirs.eos_token_id == ours.eod_id
    assert theirs("words of text")["input_ids"] == ours.encode("words of text")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == ours.eod_id


@pytest.mark.parametrize("kept", [True, False])
def test_answers_of_a_chat_model_end_at_its_end_of_turn_in_transformers(tmp_path: Path, kept: bool) -> None:
    source = save("llama3", tmp_path / "hf", vocab_size=330, eos_token_id=7)
    (tmp_path / "a.txt").write_text("user assistant says what is to be said\n" * 9)
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = train_bpe([tmp_path / "a.txt"], 290, source, special_tokens=special)
    shutil.copyfile(BUNDLED / "chatml.jinja", source / TEMPLATE_NAME)
    convert(source, tmp_path / "ours", compare=False)
    if not kept:  # as of a run that began here
        shutil.rmtree(tmp_path / "ours" / "hugging_face")
        (tmp_path / "ours" / "manifest.json").unlink()
        write_manifest(tmp_path / "ours", {})
    convert(tmp_path / "ours", tmp_path / "back", compare=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    end = tokenizer.special_tokens["<|im_end|>"]
    assert model.generation_config.eos_token_id == [7 if kept else tokenizer.eod_id, end]
    prompt = torch.tensor([[5, 6, 7]])
    written = model.generate(
        prompt, do_sample=False, max_new_tokens=5, sequence_bias={(end,): 1e4}, pad_token_id=0
    )
    assert written[0, 3:].tolist() == [end]
    convert(tmp_path / "back", tmp_path / "again", compare=False)
    convert(tmp_path / "again", tmp_path / "last", compare=False)
    name = "generation_config.json"
    assert (tmp_path / "last" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


@pytest.mark.parametrize("command", ["convert", "merge"])
@pytest.mark.parametrize("place", ["new", "step_00000003/new", "step_00000009"])
def test_nothing_is_written_among_the_checkpoints_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    (tmp_path / "run" / "checkpoints" / "step_00000003").mkdir(parents=True)
    target = tmp_path / "run" / "checkpoints" / place
    assert main([command, str(tmp_path / "run"), str(target)]) == 2
    error = capsys.readouterr().err
    assert "lies among the checkpoints of the run" in error and error.count("\n") == 1
    assert not target.exists()


def test_files_of_bounded_size_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save("llama3", tmp_path / "hf")
    convert(source, tmp_path / "ours", compare=False)
    monkeypatch.setattr("megalm.convert.hugging_face.FILE_BYTES", 100_000)
    convert(tmp_path / "ours", tmp_path / "back")  # transformers reads it for the comparison
    assert len(list((tmp_path / "back").glob("model-*-of-*.safetensors"))) > 2
    assert_same_files(tmp_path / "back", source)
    convert(tmp_path / "back", tmp_path / "again", compare=False)
    convert(tmp_path / "again", tmp_path / "last", compare=False)
    assert_same_files(tmp_path / "last", source)


def test_names_of_old_files_are_understood(tmp_path: Path) -> None:
    """GPT-2's own files lack the prefix and hold masks; old BERTs say gamma and beta; both may be pickles of tensors."""
    model = make("gpt2")
    state = {name.removeprefix("transformer."): part.clone() for name, part in model.state_dict().items()}
    del state["lm_head.weight"]
    state["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    old = tmp_path / "old"
    model.config.save_pretrained(old)
    torch.save(state, old / "pytorch_model.bin")
    convert(old, tmp_path / "ours", compare=False)
    convert(tmp_path / "ours", tmp_path / "back")
    assert_same_files(tmp_path / "back", save("gpt2", tmp_path / "new"))

    bert = make("bert")
    state = bert.state_dict()
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): part
        for name, part in state.items()
    }
    bert.config.save_pretrained(tmp_path / "bert")
    renamed = {name: part.clone() for name, part in renamed.items()}
    save_file(renamed, tmp_path / "bert" / "model.safetensors")
    convert(tmp_path / "bert", tmp_path / "bert_ours", compare=False)


def damaged(name: str, tmp_path: Path, **config: object) -> Path:
    source = save(name, tmp_path / "hf")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return source


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("llama3", {"model_type": "lama"}, "model_type 'lama' has no counterpart here: did you mean 'llama'"),
        ("llama3", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu'"),
        ("llama3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary scaling 'yarn'"),
        ("llama3", {"num_hidden_layers": 3}, "no tensor model.layers.2.input_layernorm.weight"),
        ("llama3", {"num_hidden_layers": 1}, "9 tensors have no counterpart here"),
        ("llama3", {"tie_word_embeddings": True}, "lm_head.weight is not the embedding"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"resid_pdrop": 0.5}, "resid_pdrop and embd_pdrop differ"),
    ],
)
def test_what_we_do_not_compute_is_refused_and_nothing_is_left(
    name: str, config: dict[str, object], said: str, tmp_path: Path
) -> None:
    source = damaged(name, tmp_path, **config)
    with pytest.raises(UserError, match=said):
        convert(source, tmp_path / "ours")
    assert not list(tmp_path.glob("*ours*"))


def test_a_model_that_computes_something_else_is_found_by_its_logits(tmp_path: Path) -> None:
    source = save("llama3", tmp_path / "hf", rms_norm_eps=1e-6)
    convert(source, tmp_path / "ours", compare=False)
    like = damaged("llama3", tmp_path / "other")
    config = tmp_path / "ours" / "hugging_face" / "config.json"
    assert config.exists()
    run = convert(tmp_path / "ours", tmp_path / "back", like=like, compare=True)
    assert run["difference"] <= 1e-5

    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unknown_scale": 3}))
    weights = tensors_in(source)
    weights["model.norm.weight"] *= 1.5
    convert(source, tmp_path / "first", compare=False)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    from megalm.convert.check import compare_logits

    with pytest.raises(UserError, match="logits differ by .* --no-check converts all the same"):
        compare_logits(tmp_path / "first", source)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    source = save("llama3", tmp_path / "hf")
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not a file of tensors"):
        convert(source, tmp_path / "ours")
    (source / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        convert(source, tmp_path / "ours")
    torch.save({"model.norm.weight": print}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: not a file of tensors"):
        convert(source, tmp_path / "ours")
    (source / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        convert(source, tmp_path / "ours")
    with pytest.raises(UserError, match="no such directory"):
        convert(tmp_path / "nowhere", tmp_path / "ours")


def test_a_damaged_checkpoint_is_not_converted(tmp_path: Path) -> None:
    convert(save("llama3", tmp_path / "hf"), tmp_path / "ours", compare=False)
    path = find_checkpoint(tmp_path / "ours") / "tensors" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="content differs from the manifest"):
        convert(tmp_path / "ours", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_target_must_be_new(tmp_path: Path) -> None:
    source = save("llama3", tmp_path / "hf")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "file").touch()
    with pytest.raises(UserError, match="ours exists; choose another path"):
        convert(source, tmp_path / "ours")


def test_tokenizer_and_chat_template_travel_with_the_model(tmp_path: Path) -> None:
    """Same ids on both sides; a run that begins with the converted weights finds the tokenizer beside them."""
    texts = ["the quick brown fox", "jumps over the lazy dog"] * 20
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=list("abc"),
    )
    tokenizer.train_from_iterator(texts, trainer)
    source = save("llama3", tmp_path / "hf")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(source)
    convert(source, tmp_path / "ours", compare=False)
    convert(tmp_path / "ours", tmp_path / "back", compare=False)
    text = "the lazy fox jumps"
    ids = fast(text)["input_ids"]
    assert load_tokenizer(tmp_path / "ours" / "tokenizer").encode(text) == ids
    again = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert again(text)["input_ids"] == ids
    assert again.chat_template == fast.chat_template
    request = ModelRequest(checkpoint=str(tmp_path / "ours"))
    _, config, found = open_model(request, "gpt")
    assert found.encode(text) == ids and config.model.vocab_size == VOCABULARY
