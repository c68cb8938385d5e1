"""What a build adds to plain texts: origins and names, prompts that do not count, and fill-in-the-middle."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import Extras, IndexedDataset, build_dataset, show, split, verify
from megalm.dataset.fim import FimTokens, draws, rearrange, undo
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.documents import expand_inputs, read_documents
from tests.tokenizer.test_bpe import make_texts, write_jsonl

pytestmark = pytest.mark.usefixtures("small_pieces")
FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, JSONL with names and prompts (plain and compressed), and a text file."""
    folder: Path = tmp_path_factory.mktemp("extras")
    train_bpe([write_jsonl(folder / "train.jsonl", make_texts(100))], 400, folder / "t", special_tokens=FIM)
    (folder / "in").mkdir()
    lines = [
        json.dumps(
            {"id": f"név-{n}" if n % 3 else n, "text": text, "prompt": "" if n % 7 == 0 else f"ask {n % 50}?"}
        )
        for n, text in enumerate([*make_texts(300, seed=2), "", "same", "same"])
    ]
    (folder / "in" / "a.jsonl").write_text("\n".join(lines[::2]) + "\n", "utf-8")
    (folder / "in" / "b.jsonl.gz").write_bytes(gzip.compress(("\n\n".join(lines[1::2])).encode()))
    return folder


def build(folder: Path, out: Path, extras: Extras, **settings) -> dict:
    settings = {"workers": 1, "splits": "1", **settings}
    return build_dataset([folder / "in"], folder / "t", out, extras=extras, **settings)


def read_line(path: str, offset: int) -> dict:
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rb") as file:
        file.seek(offset)
        return json.loads(file.readline())


def test_origins_lead_back_to_the_line_of_each_document(folder, tmp_path):
    build(folder, tmp_path / "d", Extras(id_key="id"))
    dataset, tokenizer = IndexedDataset(tmp_path / "d_train"), load_tokenizer(folder / "t")
    seen = set()
    for number in range(dataset.num_documents):
        origin = dataset.origins.origin(number)
        line = read_line(origin.path, origin.offset)
        assert tokenizer.decode(dataset[number][:-1].tolist()) == line["text"]
        assert origin.name == str(line["id"])
        seen.add(origin)
    assert len(seen) == dataset.num_documents == 302
    (shown,) = show(tmp_path / "d_train", tokenizer, first=5)
    assert shown["origin"] == dataset.origins.origin(5)._asdict()
    assert verify(tmp_path / "d_train")["verified"]


def test_origins_change_nothing_else_and_need_no_names(folder, tmp_path):
    build(folder, tmp_path / "d", Extras())
    build(folder, tmp_path / "e", Extras(origins=True))
    for suffix in ("bin", "idx", "crc"):
        assert (tmp_path / f"d_train.{suffix}").read_bytes() == (tmp_path / f"e_train.{suffix}").read_bytes()
    assert not (tmp_path / "d_train.origins").exists()
    assert IndexedDataset(tmp_path / "e_train").origins.origin(0).name == ""
    plain, traced = (json.loads((tmp_path / f"{name}_train.json").read_text("utf-8")) for name in "de")
    assert traced.pop("origins") is True and traced.pop("origins_sha256")
    assert plain == traced


@pytest.mark.parametrize(
    "extras", [Extras(id_key="id"), Extras(prompt_key="prompt"), Extras(fim_rate=0.5, origins=True)]
)
def test_extras_do_not_depend_on_workers_or_sizes_of_pieces(folder, tmp_path, monkeypatch, extras):
    found = []
    for name, workers in (("one", 1), ("two", 2), ("large", 1)):
        if name == "large":
            monkeypatch.undo()
        (tmp_path / name).mkdir()
        build(folder, tmp_path / name / "d", extras, workers=workers, splits="80,20")
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert found[0] == found[1] == found[2]
    assert build(folder, tmp_path / "one" / "d", extras, splits="80,20")["train"]["documents"] > 200
    with pytest.raises(UserError, match="comes from other inputs or settings"):
        build(folder, tmp_path / "one" / "d", Extras(), splits="80,20")


def test_prompts_stand_first_and_do_not_count(folder, tmp_path):
    build(folder, tmp_path / "d", Extras(prompt_key="prompt", id_key="id"), splits="50,50")
    tokenizer = load_tokenizer(folder / "t")
    sides: list[set[str]] = []
    for part in ("train", "valid"):
        dataset = IndexedDataset(tmp_path / f"d_{part}")
        starts = dataset.document_starts(np.arange(dataset.num_documents + 1))
        prompts = set()
        for number, (start, stop) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
            origin = dataset.origins.origin(number)
            line = read_line(origin.path, origin.offset)
            asked = tokenizer.encode(line["prompt"])
            assert dataset[number].tolist() == [*asked, *tokenizer.encode(line["text"]), tokenizer.eod_id]
            counted = dataset.loss_mask.read(start, stop - start)
            assert not counted[: len(asked)].any() and counted[len(asked) :].all()
            if line["prompt"]:
                prompts.add(line["prompt"])
        sides.append(prompts)
    assert len(sides[0]) > 10 and len(sides[1]) > 10 and sides[0].isdisjoint(sides[1])

    build(folder, tmp_path / "w", Extras(prompt_key="prompt", id_key="id"))
    split(tmp_path / "w_train", tmp_path / "s", shares="50,50", tokenizer=tokenizer)
    for part in ("train", "valid"):
        for suffix in ("bin", "idx", "mask"):
            assert (tmp_path / f"s_{part}.{suffix}").read_bytes() == (
                tmp_path / f"d_{part}.{suffix}"
            ).read_bytes()


def test_rearranged_documents_hold_their_text_in_three_parts(folder, tmp_path):
    build(folder, tmp_path / "d", Extras(fim_rate=0.6, fim_spm_rate=0.3))
    dataset, tokenizer = IndexedDataset(tmp_path / "d_train"), load_tokenizer(folder / "t")
    prefix, middle, suffix = (tokenizer.token_id(token) for token in FIM)
    kinds: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    for number in range(dataset.num_documents):
        ids = dataset[number].tolist()
        assert ids.pop() == tokenizer.eod_id
        if ids[0] != prefix:
            kinds["plain"] += 1
            assert not {prefix, middle, suffix} & set(ids)
            texts[tokenizer.decode(ids)] += 1
            continue
        assert [ids.count(token) for token in (prefix, middle, suffix)] == [1, 1, 1]
        kinds["spm" if ids[1] == suffix else "psm"] += 1
        before, _, rest = tokenizer.decode(ids[1:]).partition(FIM[2])
        behind, _, between = rest.partition(FIM[1])
        texts[before + between + behind] += 1
        assert tokenizer.decode(undo(ids, FimTokens(prefix, middle, suffix))) == before + between + behind
    written = [document.text for path in expand_inputs([folder / "in"]) for document in read_documents(path)]
    assert texts == Counter(text for text in written if text)
    assert 150 < kinds["psm"] + kinds["spm"] < 212
    assert 0.2 < kinds["spm"] / (kinds["psm"] + kinds["spm"]) < 0.4
    record = dataset.sidecar
    assert record["fim_tokens"] == {"prefix": prefix, "middle": middle, "suffix": suffix}
    assert (record["fim_rate"], record["fim_spm_rate"]) == (0.6, 0.3)

    build(folder, tmp_path / "p", Extras(fim_rate=0.6, fim_spm_rate=0.3), splits="70,30")
    split(tmp_path / "d_train", tmp_path / "s", shares="70,30", tokenizer=tokenizer)
    for part in ("train", "valid"):
        assert (tmp_path / f"s_{part}.bin").read_bytes() == (tmp_path / f"p_{part}.bin").read_bytes()


def test_cuts_are_even_over_the_text_and_depend_on_seed_and_place():
    offsets = list(range(20_000))
    drawn = draws(7, 3, offsets)
    assert np.array_equal(drawn[5:6], draws(7, 3, [5]))
    for other in (draws(8, 3, offsets), draws(7, 4, offsets)):
        assert (other == drawn).mean() < 0.001
    for column in drawn.T:
        assert np.abs(np.histogram(column, 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    tokens = FimTokens(1, 2, 3)
    cuts = Counter()
    for draw in drawn.tolist():
        _, prefix, _, suffix, _, middle = rearrange("abc", [0, 1, *draw[2:]], 1.0, 0.5, tokens)
        assert prefix + middle + suffix == "abc"
        cuts[len(prefix), len(middle)] += 1
    # two of the four places between characters, with repetition: 16 ordered pairs
    for (prefix, middle), count in cuts.items():
        assert abs(count / 20_000 - (1 if middle == 0 else 2) / 16) < 0.01, (prefix, middle)
    assert rearrange("abc", [0.5, 0, 0, 1 - 1e-16], 0.5, 1, tokens) == ["abc"]
    assert rearrange("abc", [0.4, 0, 0.3, 0.99], 0.5, 1, tokens) == [1, 3, "", 2, "a", "bc"]


def test_wrong_extras_are_named(folder, tmp_path):
    cases = [
        (
            Extras(id_key="name"),
            r"a.jsonl line 1 has no name under 'name' \(found keys id, text, prompt\)",
        ),
        (Extras(prompt_key="promt"), "no document has a prompt under 'promt'; name the key"),
        (Extras(prompt_key="id"), "has a (int|str) under 'id'|a.jsonl line 1 has a int under 'id'"),
    ]
    for extras, message in cases:
        with pytest.raises(UserError, match=message):
            build(folder, tmp_path / "d", extras)
    for settings, message in (
        ({"fim_rate": 1.5}, "fim_rate is 1.5"),
        ({"fim_spm_rate": -1}, "fim_spm_rate is -1"),
        ({"fim_spm_rate": 0.9}, "fim_spm_rate is 0.9 without a fim_rate"),
        ({"fim_rate": 0.5, "prompt_key": "p"}, "do not go together"),
    ):
        with pytest.raises(UserError, match=message):
            Extras(**settings)
    train_bpe([folder / "train.jsonl"], 300, tmp_path / "plain")
    with pytest.raises(UserError, match="has no special tokens <|fim_prefix|>"):
        build_dataset([folder / "in"], tmp_path / "plain", tmp_path / "d", extras=Extras(fim_rate=0.5))
    (tmp_path / "x.txt").write_text("some text")
    with pytest.raises(UserError, match="found no JSON object"):
        build_dataset([tmp_path / "x.txt"], folder / "t", tmp_path / "d", extras=Extras(id_key="id"))
