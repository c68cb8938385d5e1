"""Building: the same bytes whatever the workers, kills and packing; every document once, in the right split."""

import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard

from megalm.dataset import IndexedDataset, build_dataset, verify
from megalm.errors import UserError
from megalm.tasks import Task, run_tasks
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.kills import killed
from tests.tokenizer.test_bpe import make_texts, write_jsonl

pytestmark = pytest.mark.usefixtures("small_pieces")
SPLITS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([write_jsonl(folder / "a.jsonl", make_texts(100))], 400, folder / "t")
    return folder / "t"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 600 documents in all, of which 20 are empty and 50 copies of one text."""
    folder = tmp_path_factory.mktemp("source")
    texts = make_texts(530, seed=1) + [""] * 20 + ["the same words again"] * 50
    write_jsonl(folder / "a.jsonl", texts[0::3])
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[1::3]).encode()
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[2::3]).encode()
    (folder / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    return folder


def files_of(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(prefix.parent.glob(f"{prefix.name}*"))}


def texts_of(prefix: Path, tokenizer_path: Path) -> list[str]:
    dataset, tokenizer = IndexedDataset(prefix), load_tokenizer(tokenizer_path)
    documents = [dataset[i].tolist() for i in range(len(dataset))]
    assert all(document[-1] == tokenizer.eod_id for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def source_texts(source: Path) -> list[str]:
    from megalm.tokenizer.documents import expand_inputs, read_documents

    return [document.text for path in expand_inputs([source]) for document in read_documents(path)]


def test_every_document_comes_once_and_copies_stay_in_one_split(source, tokenizer_path, tmp_path):
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1, splits="80,10,10")
    built = [texts_of(tmp_path / f"d_{split}", tokenizer_path) for split in SPLITS]
    assert Counter(itertools.chain(*built)) == Counter(text for text in source_texts(source) if text)
    assert all(set(one).isdisjoint(other) for one in built for other in built if one is not other)
    assert 0.7 < len(built[0]) / 580 < 0.9
    assert len(built[1]) > 20 and len(built[2]) > 20


def test_split_of_a_text_depends_on_nothing_else(source, tokenizer_path, tmp_path):
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1, splits="50,50")
    files = sorted(source.iterdir(), reverse=True)
    build_dataset(files, tokenizer_path, tmp_path / "e", workers=1, splits="50,50", seed=9)
    for split in ("train", "valid"):
        one, other = (texts_of(tmp_path / f"{name}_{split}", tokenizer_path) for name in "de")
        assert Counter(one) == Counter(other)
        assert one != other


def test_documents_are_shuffled_over_all_inputs(source, tokenizer_path, tmp_path):
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1, splits="1")
    place = {text: i for i, text in enumerate(source_texts(source))}
    order = [place[text] for text in texts_of(tmp_path / "d_train", tokenizer_path)]
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.15
    copies = [i for i, text in enumerate(order) if text == place["the same words again"]]
    assert max(copies) - min(copies) > len(order) / 2, "copies lie side by side"


def test_result_does_not_depend_on_workers_or_sizes_of_pieces(source, tokenizer_path, tmp_path, monkeypatch):
    for name in ("one", "two", "large"):
        (tmp_path / name).mkdir()
    build_dataset([source], tokenizer_path, tmp_path / "one" / "d", workers=1)
    build_dataset([source], tokenizer_path, tmp_path / "two" / "d", workers=2)
    monkeypatch.undo()
    build_dataset([source], tokenizer_path, tmp_path / "large" / "d", workers=1)
    expected = files_of(tmp_path / "one" / "d")
    assert {name.rpartition(".")[2] for name in expected} == {"bin", "crc", "idx", "json"}
    assert files_of(tmp_path / "two" / "d") == files_of(tmp_path / "large" / "d") == expected


def test_runs_beyond_the_limit_of_open_files_are_read_all_the_same(
    source, tokenizer_path, tmp_path, monkeypatch
):
    from megalm.dataset.runs import RunReader

    at_once: list[int] = []
    now: set[RunReader] = set()

    def noted(function, change):
        def call(reader):
            function(reader)
            change(reader)
            at_once.append(len(now))

        return call

    monkeypatch.setattr(RunReader, "open", noted(RunReader.open, now.add))
    monkeypatch.setattr(RunReader, "close", noted(RunReader.close, now.discard))
    (tmp_path / "few").mkdir()
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)
    assert max(at_once) > 10 and not now
    at_once.clear()
    monkeypatch.setattr("megalm.dataset.shuffle.resource.getrlimit", lambda _: (9, 9))
    build_dataset([source], tokenizer_path, tmp_path / "few" / "d", workers=1)
    assert max(at_once) == 4
    assert files_of(tmp_path / "few" / "d") == files_of(tmp_path / "d")


def test_another_seed_is_another_order_of_the_same(source, tokenizer_path, tmp_path):
    for seed in (0, 1):
        build_dataset([source], tokenizer_path, tmp_path / f"s{seed}", workers=1, seed=seed)
    one, other = (texts_of(tmp_path / f"s{seed}_train", tokenizer_path) for seed in (0, 1))
    assert one != other and Counter(one) == Counter(other)


def test_sidecar_records_how_the_files_were_made(source, tokenizer_path, tmp_path):
    import hashlib

    records = build_dataset([source], tokenizer_path, tmp_path / "d", workers=1, seed=5)
    tokenizer = load_tokenizer(tokenizer_path)
    for split in SPLITS:
        record = json.loads((tmp_path / f"d_{split}.json").read_text("utf-8"))
        dataset = IndexedDataset(tmp_path / f"d_{split}")
        assert record == records[split] == dataset.sidecar
        assert record["tokenizer_hash"] == tokenizer.hash
        assert (record["vocab_size"], record["eod_id"]) == (tokenizer.vocab_size, tokenizer.eod_id)
        assert (record["documents"], record["tokens"]) == (dataset.num_documents, dataset.num_tokens)
        assert (record["dtype"], record["seed"], record["split"]) == ("uint16", 5, split)
        data = (tmp_path / f"d_{split}.bin").read_bytes()
        assert record["bin_sha256"] == hashlib.sha256(data).hexdigest()
        assert verify(tmp_path / f"d_{split}")["verified"]
    for entry in records["train"]["inputs"]:
        assert entry["sha256"] == hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest()


def test_without_eod_documents_follow_bare(source, tokenizer_path, tmp_path):
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1, append_eod=False)
    dataset = IndexedDataset(tmp_path / "d_train")
    assert 0 not in dataset.tokens(0, dataset.num_tokens)


def test_large_vocabularies_take_32_bits(source, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"</s>": 0, "quick": 70_000, "?": 1}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    records = build_dataset([source], tmp_path / "tokenizer.json", tmp_path / "d", workers=1)
    dataset = IndexedDataset(tmp_path / "d_train")
    assert records["train"]["dtype"] == dataset.dtype.name == "int32"
    assert set(dataset.tokens(0, dataset.num_tokens).tolist()) == {0, 1, 70_000}


def killed_build(call: str, count: int, *arguments, **settings) -> bool:
    """Build in a process that kills itself before call number `count` of `os.call`; whether it did."""
    return killed(os, call, count, lambda: build_dataset(*arguments, workers=1, **settings))


@pytest.mark.parametrize("call", ["replace", "unlink", "fsync"])
def test_build_killed_at_any_step_and_repeated_gives_the_same_bytes(source, tokenizer_path, tmp_path, call):
    """Files become visible by renames, after a sync, and old ones go by unlinks: kill before each of them."""
    (tmp_path / "whole").mkdir()
    build_dataset([source], tokenizer_path, tmp_path / "whole" / "d", workers=1)
    steps, prefix = 0, tmp_path / "d"
    while killed_build(call, steps, [source], tokenizer_path, prefix):
        steps += 1
    assert steps > 15
    build_dataset([source], tokenizer_path, prefix, workers=1)
    assert files_of(prefix) == files_of(tmp_path / "whole" / "d")
    assert not list(tmp_path.glob(".*"))


def test_a_replaced_dataset_is_never_mixed_with_the_new_one(source, tokenizer_path, tmp_path, monkeypatch):
    """Kill at each step of overwriting: what can be opened is all of one build."""
    monkeypatch.undo()  # pieces of the normal size: fewer steps
    prefix, new = tmp_path / "d", tmp_path / "new"
    build_dataset([source / "a.jsonl"], tokenizer_path, prefix, workers=1, seed=1)
    build_dataset([source / "a.jsonl"], tokenizer_path, new, workers=1, seed=2)
    whole = {Path(f"{p}_train.bin").read_bytes(): Path(f"{p}_train.idx").read_bytes() for p in (prefix, new)}
    for call in ("replace", "unlink"):
        build_dataset([source / "a.jsonl"], tokenizer_path, prefix, workers=1, seed=1, overwrite=True)
        steps = 0
        while killed_build(call, steps, [source / "a.jsonl"], tokenizer_path, prefix, seed=2, overwrite=True):
            steps += 1
            if Path(f"{prefix}_train.idx").exists():
                assert (
                    whole[Path(f"{prefix}_train.bin").read_bytes()]
                    == Path(f"{prefix}_train.idx").read_bytes()
                )
                verify(f"{prefix}_train")
        assert steps > 5
        assert files_of(prefix)["d_train.bin"] == files_of(new)["new_train.bin"]


def test_finished_chunks_are_not_tokenized_again(source, tokenizer_path, tmp_path, monkeypatch):
    from megalm.dataset import stages

    done: list[str] = []
    tokenize = stages.tokenize_chunk

    def counted(chunk, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        tokenize(chunk, *arguments)
        done.append(chunk.key)

    monkeypatch.setattr(stages, "tokenize_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)
    first, done = done, []
    monkeypatch.setattr(
        stages, "tokenize_chunk", lambda chunk, *a: (tokenize(chunk, *a), done.append(chunk.key))
    )
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)
    assert len(first) == 3 and len(done) > 3
    assert not set(first) & set(done)


def test_other_settings_do_not_reuse_what_a_kill_left(source, tokenizer_path, tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    build_dataset([source], tokenizer_path, tmp_path / "whole" / "d", workers=1, append_eod=False)
    monkeypatch.setattr(
        "megalm.dataset.stages.write_piece", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)
    monkeypatch.undo()
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1, append_eod=False)
    assert files_of(tmp_path / "d") == files_of(tmp_path / "whole" / "d")


ORPHANS = """
import contextlib, os, signal, sys
from megalm.dataset import build, plan

@contextlib.contextmanager
def fatal_bar(title, total, shown):
    amounts = []
    def advance(amount):
        amounts.append(amount)
        if sum(amount > 0 for amount in amounts) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance

build.progress_bar = fatal_bar
plan.SMALLEST_CHUNK = plan.LARGEST_CHUNK = 4096
build.build_dataset([sys.argv[1]], *sys.argv[2:], workers=2)
"""


def test_workers_end_with_their_killed_parent(source, tokenizer_path, tmp_path):
    """The pipe closes when the last process that holds it has ended."""
    arguments = [sys.executable, "-c", ORPHANS, source, tokenizer_path, tmp_path / "d"]
    run = subprocess.run(list(map(str, arguments)), stdout=subprocess.PIPE, timeout=120, check=False)
    assert run.returncode == -9
    assert (tmp_path / "d.build").exists()


def test_a_killed_worker_ends_the_build_with_a_hint():
    with pytest.raises(RuntimeError, match="a worker process was killed"):
        run_tasks([Task(os._exit, (1,), 1)], 2, lambda _: None)


def test_a_finished_build_is_kept_and_another_one_needs_overwrite(
    source, tokenizer_path, tmp_path, monkeypatch
):
    prefix = tmp_path / "d"
    records = build_dataset([source], tokenizer_path, prefix, workers=1)
    before = files_of(prefix)
    with monkeypatch.context() as patch:
        patch.setattr("megalm.dataset.build.run_tasks", lambda *_: pytest.fail("built again"))
        assert build_dataset([source], tokenizer_path, prefix, workers=1) == records
    with pytest.raises(UserError, match="d_train.idx exists and comes from other"):
        build_dataset([source], tokenizer_path, prefix, workers=1, seed=1)
    with pytest.raises(UserError, match="exists and comes from other"):
        build_dataset([source / "a.jsonl"], tokenizer_path, prefix, workers=1)
    assert files_of(prefix) == before
    build_dataset([source], tokenizer_path, prefix, workers=1, splits="1", overwrite=True)
    assert sorted(files_of(prefix)) == ["d_train.bin", "d_train.crc", "d_train.idx", "d_train.json"]


def test_inputs_that_have_a_records_name_are_never_replaced(tokenizer_path, tmp_path):
    source = write_jsonl(tmp_path / "web_train.json", make_texts(5))
    before = source.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"web_train.json is no record of a dataset"):
            build_dataset([source], tokenizer_path, tmp_path / "web", workers=1, overwrite=overwrite)
    assert source.read_bytes() == before and list(tmp_path.iterdir()) == [source]
    with pytest.raises(UserError, match="prefix '/' is a directory; add a name"):
        build_dataset([source], tokenizer_path, "/", workers=1)


def test_token_files_and_tokenizer_may_lie_among_the_inputs(tokenizer_path, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", make_texts(5))
    shutil.copytree(tokenizer_path, tmp_path / "t")
    settings = {"prefix": tmp_path / "out" / "d", "workers": 1, "splits": "1"}
    first = build_dataset([tmp_path], tmp_path / "t", **settings)
    assert first["train"]["documents"] == 5
    assert build_dataset([tmp_path], tmp_path / "t", **settings) == first


def test_same_sizes_with_other_content_are_not_taken_for_finished(tokenizer_path, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", make_texts(40))
    build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)
    source.write_text(source.read_text("utf-8").replace("fox", "cat"), "utf-8")
    with pytest.raises(UserError, match="comes from other inputs"):
        build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)


def test_inputs_that_change_during_the_build_are_noticed(tokenizer_path, tmp_path, monkeypatch):
    from megalm.dataset import build

    source = write_jsonl(tmp_path / "a.jsonl", make_texts(40))
    run_tasks = build.run_tasks

    def meddle(*arguments):
        run_tasks(*arguments)
        write_jsonl(source, make_texts(41))

    monkeypatch.setattr(build, "run_tasks", meddle)
    with pytest.raises(UserError, match="changed during the build"):
        build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)


def test_one_build_at_a_time(source, tokenizer_path, tmp_path, monkeypatch):
    from megalm.dataset import build

    def second(*_):
        with pytest.raises(UserError, match="another build is at work"):
            build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "run_tasks", second)
    with pytest.raises(KeyboardInterrupt):
        build_dataset([source], tokenizer_path, tmp_path / "d", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_ends_the_build_with_its_place(tokenizer_path, tmp_path, workers):
    source = write_jsonl(tmp_path / "a.jsonl", make_texts(100))
    with open(source, "a") as file:
        file.write('{"text": 1}\n')
    with pytest.raises(UserError, match=r"a.jsonl line 101 has no text under 'text'"):
        build_dataset([source], tokenizer_path, tmp_path / "d", workers=workers)
    assert not list(tmp_path.glob("d_*"))


@pytest.mark.parametrize("line", ['{"text": ""}', "{"])
def test_a_mistake_before_anything_is_tokenized_leaves_nothing(tokenizer_path, tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="hold no text|is not JSON"):
        build_dataset([tmp_path / "a.jsonl"], tokenizer_path, tmp_path / "d", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("splits", ["", "a,b", "1,2,3,4", "1,-1", "0,0", "1/0"])
def test_wrong_shares_are_named(source, tokenizer_path, tmp_path, splits):
    with pytest.raises(UserError, match="splits is"):
        build_dataset([source], tokenizer_path, tmp_path / "d", splits=splits)


def test_wrong_workers_and_empty_inputs_are_named(source, tokenizer_path, tmp_path):
    with pytest.raises(UserError, match="workers is 0"):
        build_dataset([source], tokenizer_path, tmp_path / "d", workers=0)
    empty = write_jsonl(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(UserError, match="hold no text"):
        build_dataset([empty], tokenizer_path, tmp_path / "d", workers=1)
