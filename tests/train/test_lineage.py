"""From a model back to the raw text: each thing on the way is found, and so is what has changed or gone."""

import json
import shutil
from pathlib import Path

import pytest

from megalm.cli import main
from megalm.compress.quantize import quantize_checkpoint
from megalm.convert.hugging_face import to_hugging_face
from megalm.dataset import build_dataset
from megalm.errors import UserError
from megalm.hashes import sha256_of
from megalm.lineage.tree import Node, trace
from megalm.tokenizer import train_bpe
from tests.train.runs import run_config, train_in_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw.jsonl -> tok, data_train -> base -> tuned -> int8, hf."""
    folder: Path = tmp_path_factory.mktemp("made")
    texts = [f"the {word} and the hand of {word}{n}" for n in range(120) for word in ("sea", "wood")]
    (folder / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_bpe([folder / "raw.jsonl"], 300, folder / "tok")
    build_dataset([folder / "raw.jsonl"], folder / "tok", folder / "data", splits="9,1")
    text = [f"data.train=[{{path: {folder}/data_train}}]", "data.valid=[]", "train.eval_interval=0"]
    text += [f"tokenizer.path={folder / 'tok'}", "model.vocab_size=null", "train.exit_after_steps=1"]
    train_in_world(1, run_config(folder / "base", folder, *text))
    train_in_world(1, run_config(folder / "tuned", folder, *text, f"run.load={folder / 'base'}"))
    quantize_checkpoint(folder / "tuned", folder / "int8", "int8")
    to_hugging_face(folder / "tuned", folder / "hf", compare=False)
    return folder


def only(node: Node, *roles: str) -> Node:
    """Down the tree by roles, each of which stands once."""
    for role in roles:
        [node] = [part for name, part in node.parts if name == role]
    return node


def warnings(node: Node) -> list[tuple[str, list[str]]]:
    return [(Path(each.path).name, each.warnings) for each in node.walk() if each.warnings]


@pytest.mark.parametrize("name", ["int8", "hf"])
def test_the_tree_goes_from_a_converted_model_to_the_raw_text(made: Path, name: str) -> None:
    tree = trace(made / name, verify=True)
    assert tree.kind == {"int8": "checkpoint", "hf": "model"}[name]
    tuned = only(tree, "source", "run")
    assert (tuned.path, tuned.facts["step"], tuned.facts["starts"]) == (str(made / "tuned"), 1, 1)
    base = only(tuned, "weights", "run")
    assert base.path == str(made / "base")
    # the second run's data are told first, the first run's refer to them
    raw = only(base, "data", "input")
    assert (raw.kind, raw.path, raw.facts["sha256"]) == (
        "file",
        str(made / "raw.jsonl"),
        sha256_of(made / "raw.jsonl"),
    )
    assert only(tuned, "data").is_told
    assert only(base, "data", "tokenizer", "trained on").path == str(made / "raw.jsonl")
    assert warnings(tree) == []


def test_a_run_that_goes_on_keeps_what_it_began_with(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "made")
    before = json.loads((folder / "tuned" / "lineage.json").read_text())
    text = [f"data.train=[{{path: {made}/data_train}}]", "data.valid=[]", "train.eval_interval=0"]
    text += [f"tokenizer.path={made / 'tok'}", "model.vocab_size=null", "train.exit_after_steps=1"]
    train_in_world(1, run_config(made / "base", made, *text))  # the model it began with goes on
    train_in_world(1, run_config(folder / "tuned", made, *text, f"run.load={made / 'base'}"))
    after = json.loads((folder / "tuned" / "lineage.json").read_text())
    assert after["models"] == before["models"]
    assert after["starts"][0] == before["starts"][0]
    assert [start["step"] for start in after["starts"]] == [0, 1]
    assert after["starts"][1]["program"]["packages"]["torch"]


def test_what_changed_or_went_is_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = made / "raw.jsonl"
    content = raw.read_bytes()
    try:
        raw.write_bytes(content.replace(b"sea", b"sky"))
        assert warnings(trace(made / "tuned")) == []  # of the same size, and not read
        assert ("raw.jsonl", ["raw.jsonl has changed since it was used"]) in warnings(
            trace(made / "tuned", verify=True)
        )
        raw.write_bytes(content + b"\n")
        assert ("raw.jsonl", ["raw.jsonl has changed since it was used"]) in warnings(trace(made / "tuned"))
        raw.unlink()
        assert ("raw.jsonl", ["it is not there any more"]) in warnings(trace(made / "tuned"))
        capsys.readouterr()
        assert main(["lineage", str(made / "tuned")]) == 1
        assert "! it is not there any more" in capsys.readouterr().out
    finally:
        raw.write_bytes(content)
    data = made / "data_train.json"
    content = data.read_bytes()
    try:
        data.write_text(data.read_text().replace(json.loads(content)["bin_sha256"], "0" * 64))
        assert ("data_train", ["its tokens are others than were used"]) in warnings(trace(made / "base"))
    finally:
        data.write_bytes(content)
    assert main(["lineage", str(made / "tuned"), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["made_of"][0]["role"] == "weights"


def test_what_has_no_record_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        trace(tmp_path / "nothing")
    with pytest.raises(UserError, match="nothing is recorded"):
        trace(made / "raw.jsonl")
    broken = shutil.copytree(made / "hf", tmp_path / "hf")
    (broken / "lineage.json").write_text("[1]")
    with pytest.raises(UserError, match="no record of megalm"):
        trace(broken)
    for odd in ('{"made_of": [{"role": 1}]}', '{"made_of": 3}', '{"made_of": [], "program": 1}'):
        (broken / "lineage.json").write_text(odd)
        with pytest.raises(UserError, match="another form than megalm writes"):
            trace(broken)
    (broken / "lineage.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        trace(broken)
