"""Building: the same corpus whatever the workers and kills, counts that add up, and no mixing of two builds."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
import zstandard

from megalm import cli
from megalm.corpus.build import build_corpus, make_stages
from megalm.corpus.plan import Plan
from megalm.corpus.recipe import parse_recipe
from megalm.corpus.report import damage_in
from megalm.corpus.shards import read_shard, shard_paths
from megalm.errors import UserError
from megalm.executors.run import LocalExecutor
from tests.corpus.recipes import documents_of, make_inputs, make_recipe
from tests.kills import killed

pytestmark = pytest.mark.usefixtures("own_steps")
STEPS = [{"length": {"min_characters": 12}}, "sort", "shout"]  # a stage of each kind


@pytest.fixture
def inputs(tmp_path):
    return make_inputs(tmp_path / "inputs")


@pytest.fixture
def whole(inputs, tmp_path):
    """What an undisturbed build gives."""
    build_corpus(make_recipe(inputs, tmp_path / "whole", STEPS, keep_removed=True))
    return documents_of(tmp_path / "whole")


def test_every_document_is_kept_once_or_removed_once_with_its_reason(inputs, tmp_path, whole):
    entries = [json.loads(line) for path in sorted(inputs.iterdir()) for line in path.open()]
    expected = {
        entry["id"]: entry["text"].upper()
        for entry in entries
        if len(entry["text"]) >= 12 and not entry["id"].endswith("1") and "zebra" not in entry["text"]
    }
    kept = [d for path in shard_paths(tmp_path / "whole" / "documents") for d in read_shard(path)]
    assert {d.id: d.text for d in kept} == expected and len(kept) == len(expected) > 10
    removed = [d for path in (tmp_path / "whole" / "removed").rglob("*.zst") for d in read_shard(path)]
    assert sorted(d.id for d in kept + removed) == sorted(entry["id"] for entry in entries)
    reasons = {d.metadata["reason"] for d in removed}
    assert reasons == {"length.too_short", "sort.odd", "shout.zebra"}
    assert all(d.metadata["kind"] in (0, 1) and d.metadata["source"] == "jsonl" for d in kept + removed)


def test_counts_in_and_out_add_up(tmp_path, whole):
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    documents = sum(source["documents_out"] for source in report["sources"])
    characters = sum(source["characters_out"] for source in report["sources"])
    assert documents == 60 and [step["step"] for step in report["steps"]] == ["length", "sort.odd", "shout"]
    for step in report["steps"]:
        assert step["documents_in"] == documents and step["characters_in"] == characters
        assert sum(step["removed"].values()) == documents - step["documents_out"] > 0
        assert all(min(5, count) == len(step["samples"][reason]) for reason, count in step["removed"].items())
        documents, characters = step["documents_out"], step["characters_out"]
    assert report["documents"] == report["kept"]["documents_out"] == documents
    assert (
        report["characters"]
        == characters
        == sum(int(float(size)) * count for size, count in report["kept"]["histograms"]["characters"].items())
    )
    assert report["steps"][2]["counters"] == {"letters": report["steps"][2]["characters_in"]}


def test_three_workers_make_the_bytes_that_one_makes(inputs, tmp_path, whole):
    build_corpus(make_recipe(inputs, tmp_path / "three", STEPS, workers=3, keep_removed=True))
    assert documents_of(tmp_path / "three") == whole


def test_samples_and_counts_do_not_depend_on_the_number_of_tasks(inputs, tmp_path):
    reports = []
    for tasks in (1, 6):
        report = build_corpus(make_recipe(inputs, tmp_path / f"{tasks}", ["length", "shout"], tasks=tasks))
        reports.append([{**step, "seconds": 0} for step in [*report["steps"], report["kept"]]])
    assert reports[0] == reports[1]


def killed_build(owner, call: str, count: int, recipe) -> bool:
    """Build in a process that kills itself before call number `count` of `owner.call`; whether it did."""
    return killed(owner, call, count, lambda: build_corpus(recipe))


@pytest.mark.parametrize(
    ("owner", "call"),
    [(os, "replace"), (os, "fsync"), (LocalExecutor, "mark_rank_as_completed")],
    ids=["rename", "sync", "mark"],
)
def test_a_build_killed_at_any_step_and_repeated_gives_the_same_bytes(inputs, tmp_path, whole, owner, call):
    """Shards and counts become visible by renames after a sync, tasks are done by their mark: kill before each."""
    recipe = make_recipe(inputs, tmp_path / "killed", STEPS, keep_removed=True)
    kills = 0
    while killed_build(owner, call, kills, recipe):
        kills += 1
        for path in shard_paths(tmp_path / "killed" / "documents"):
            assert whole[f"documents/{path.name}"] == path.read_bytes()
    assert kills > 4
    assert documents_of(tmp_path / "killed") == whole
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


UNUSABLE = [
    ({"quality_classifier": {"model": "notes.txt"}}, "notes.txt is no classifier"),
    ({"toxicity_classifier": {"model": "."}}, "does not exist"),
    ({"bad_words": {"lists": {"en": "bytes"}}}, "word list bytes for `en` is not UTF-8"),
    ({"bad_words": {"lists": {"en": "empty.txt"}}}, "word list empty.txt for `en` is empty"),
    ({"decontaminate": {"benchmarks": [{"path": "items.jsonl", "keys": ["qestion"]}]}}, "has no `qestion`"),
    ({"decontaminate": {"benchmarks": [{"path": "empty.txt"}]}}, "benchmark empty.txt holds no item"),
    ({"representation": {"terms": "notes.txt"}}, "term lists notes.txt"),
    ({"representation_filter": {"max_share": {"derogatry": 0.1}}}, "did you mean 'derogatory'"),
    (
        {"representation_balance": {"ratio": {"gender.femal": 1, "gender.male": 1}}},
        "did you mean 'gender.female'",
    ),
    ({"mix": {"unit": "tokens", "tokenizer": "notes.txt"}}, "notes.txt"),
]


@pytest.mark.parametrize(("step", "message"), UNUSABLE, ids=[next(iter(step)) for step, _ in UNUSABLE])
def test_what_a_last_step_cannot_use_is_refused_before_the_first_and_spares_the_old_corpus(
    inputs, tmp_path, monkeypatch, step, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes").write_bytes(b"caf\xe9")
    (tmp_path / "items.jsonl").write_text('{"question": "What?"}\n')
    old = tmp_path / "out" / "documents" / "00000.jsonl.zst"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    recipe = make_recipe(inputs, tmp_path / "out", ["length", step])
    with pytest.raises(UserError, match=message) as caught:
        build_corpus(recipe, overwrite=True)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["documents", old.name]


def test_term_lists_of_removals_by_group_are_read_before_the_build(inputs, tmp_path):
    (tmp_path / "terms.yaml").write_text("groups: 5\n")
    keys = {"removal_by_group": True, "group_terms": str(tmp_path / "terms.yaml")}
    with pytest.raises(UserError, match="`groups` = 5"):
        build_corpus(make_recipe(inputs, tmp_path / "out", [], **keys))
    assert not (tmp_path / "out").exists()


def test_temporary_files_of_others_below_the_output_stay(inputs, tmp_path):
    others = [tmp_path / "out" / name for name in (".notes.tmp", "other/work/.plan.json.7.tmp")]
    own = tmp_path / "out" / "work" / ".plan.json.7.tmp"
    for path in (*others, own):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    build_corpus(make_recipe(inputs, tmp_path / "out", ["length"]))
    assert all(path.exists() for path in others) and not own.exists()


def test_finished_tasks_are_not_done_again(inputs, tmp_path):
    notes = tmp_path / "notes"
    recipe = make_recipe(inputs, tmp_path / "out", [{"note": {"file": str(notes)}}])
    assert killed_build(LocalExecutor, "mark_rank_as_completed", 4, recipe)
    assert len(notes.read_text().split()) == 5
    build_corpus(recipe)
    assert len(notes.read_text().split()) == 5 + 2  # the task killed before its mark, and the last
    build_corpus(recipe)
    assert len(notes.read_text().split()) == 7


def build_apart(tmp_path, recipe_keys: dict) -> subprocess.CompletedProcess:
    """The command line in a process of its own; returns when it and all its workers have ended."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe_keys))
    code = (
        "from megalm.corpus import registry; from tests.corpus.steps import NAMES; registry.STEPS.update(NAMES); "
        "import sys; from megalm.cli import main\n"
        "if __name__ == '__main__': sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "main.py").write_text(code)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, str(tmp_path / "main.py"), "corpus", "build", str(tmp_path / "recipe.yaml")],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("parent", [True, False], ids=["build", "worker"])
def test_a_build_with_workers_survives_kill_9_of_itself_or_of_a_worker(inputs, tmp_path, parent):
    bomb = {"bomb": {"id": "1-7", "spent": str(tmp_path / "spent"), "parent": parent}}
    keys = {
        "output": str(tmp_path / "killed"),
        "sources": [{"kind": "jsonl", "path": str(inputs)}],
        "steps": [bomb, "shout"],
        "tasks": 6,
        "executor": {"workers": 2},
    }
    done = build_apart(tmp_path, keys)
    assert (tmp_path / "spent").exists()
    if parent:
        assert done.returncode == -signal.SIGKILL
    else:
        assert done.returncode == 1 and "a worker process was killed" in done.stderr
    done = build_apart(tmp_path, keys)
    assert done.returncode == 0, done.stderr
    build_corpus(make_recipe(inputs, tmp_path / "whole", [bomb, "shout"]))
    names = [path.name for path in shard_paths(tmp_path / "whole" / "documents")]
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "killed/documents" / name).read_bytes() == (
            tmp_path / "whole/documents" / name
        ).read_bytes()


def test_a_changed_recipe_is_refused_until_overwritten(inputs, tmp_path):
    build_corpus(make_recipe(inputs, tmp_path / "out", [{"length": {"min_characters": 12}}]))
    changed = make_recipe(inputs, tmp_path / "out", [{"length": {"min_characters": 13}}])
    with pytest.raises(
        UserError, match=r"recipe.steps.0.length.min_characters was 12 and is 13; .*--overwrite"
    ):
        build_corpus(changed)
    build_corpus(changed, overwrite=True)
    build_corpus(make_recipe(inputs, tmp_path / "new", [{"length": {"min_characters": 13}}]))
    assert documents_of(tmp_path / "out") == documents_of(tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "1.jsonl").write_text('{"text": "other"}\n'), "1.jsonl has changed since"),
        (lambda folder: (folder / "1.jsonl").unlink(), "1.jsonl is gone"),
        (lambda folder: (folder / "3.jsonl").write_text('{"text": "new"}\n'), "3.jsonl is new"),
    ],
    ids=["changed", "gone", "new"],
)
def test_changed_inputs_are_refused_half_way(inputs, tmp_path, change, message):
    recipe = make_recipe(inputs, tmp_path / "out", ["shout"])
    assert killed_build(LocalExecutor, "mark_rank_as_completed", 2, recipe)
    change(inputs)
    with pytest.raises(UserError, match=message):
        build_corpus(recipe)


def test_an_input_that_changes_during_the_build_is_refused(inputs, tmp_path, monkeypatch):
    recipe = make_recipe(inputs, tmp_path / "out", ["shout"])
    mark = LocalExecutor.mark_rank_as_completed

    def mark_and_change(self, rank):
        mark(self, rank)
        (inputs / "2.jsonl").write_text("changed")

    monkeypatch.setattr(LocalExecutor, "mark_rank_as_completed", mark_and_change)
    with pytest.raises(UserError, match="2.jsonl has changed since the build began"):
        build_corpus(recipe)


def test_overwriting_killed_half_way_never_goes_on_from_the_rest(inputs, tmp_path):
    old = make_recipe(inputs, tmp_path / "out", ["sort"])
    build_corpus(old)
    child = os.fork()
    if child == 0:
        import shutil

        left = itertools.count(1, -1)
        rmtree = shutil.rmtree
        shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), 9) if next(left) == 0 else rmtree(*a, **k)
        build_corpus(old, overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.raises(UserError, match="half removed; build anew with --overwrite"):
        build_corpus(old)
    build_corpus(old, overwrite=True)
    build_corpus(make_recipe(inputs, tmp_path / "new", ["sort"]))
    assert documents_of(tmp_path / "out") == documents_of(tmp_path / "new")


def test_documents_of_others_are_never_touched(inputs, tmp_path):
    (tmp_path / "out" / "documents").mkdir(parents=True)
    (tmp_path / "out" / "documents" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="files that no build of a corpus made"):
            build_corpus(make_recipe(inputs, tmp_path / "out", []), overwrite=overwrite)
    assert (tmp_path / "out" / "documents" / "letter.txt").read_text() == "dear"


def test_a_full_disk_is_one_line_and_the_build_goes_on_afterwards(
    inputs, tmp_path, whole, monkeypatch, capsys
):
    keys = {
        "output": str(tmp_path / "out"),
        "sources": [{"kind": "jsonl", "path": str(inputs)}],
        "steps": STEPS,
        "keep_removed": True,
        "tasks": 6,
        "executor": {"workers": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(keys))
    left, fsync = itertools.count(40, -1), os.fsync

    def full(descriptor):
        if next(left) <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert cli.main(["corpus", "build", str(tmp_path / "recipe.yaml")]) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main(["corpus", "build", str(tmp_path / "recipe.yaml")]) == 0
    assert documents_of(tmp_path / "out") == whole


def test_no_stage_begins_while_tasks_of_the_one_before_are_missing(inputs, tmp_path):
    """As on a cluster that starts a job in spite of a failed one: its shards would silently lack documents."""
    recipe = make_recipe(inputs, tmp_path / "out", ["sort"])
    assert killed_build(LocalExecutor, "mark_rank_as_completed", 3, recipe)
    for stage in make_stages(recipe, Plan.make(recipe))[1:]:
        with pytest.raises(RuntimeError, match="of 6 tasks of the stage .* are missing"):
            for step in stage.pipeline[-1:]:
                list(step.run(iter(()), 0, stage.tasks))
    assert not shard_paths(tmp_path / "out" / "documents")


def test_two_builds_at_once_are_refused(inputs, tmp_path):
    import fcntl

    (tmp_path / "out" / "work").mkdir(parents=True)
    with open(tmp_path / "out" / "work" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another build is at work"):
            build_corpus(make_recipe(inputs, tmp_path / "out", []))


def test_raw_pages_cannot_reach_the_output(tmp_path):
    (tmp_path / "a.html").write_text("<html><p>hello")
    recipe = make_recipe(
        tmp_path, tmp_path / "out", [], sources=[{"kind": "html", "path": str(tmp_path / "a.html")}]
    )
    with pytest.raises(UserError, match="html/a.html is a raw page .* put the step `extract`"):
        build_corpus(recipe)


def test_a_source_that_gave_no_document_is_named(inputs, tmp_path):
    sources = [
        {"kind": "jsonl", "path": str(inputs), "text_key": key, "name": key} for key in ("text", "txt")
    ]
    report = build_corpus(parse_recipe({"output": str(tmp_path / "out"), "sources": sources}))
    warning = damage_in(report)
    assert "60 broken; no document came from `txt`; check its kind, path and keys" in warning
    assert damage_in({"sources": report["sources"][:1]}) is None


@pytest.mark.parametrize("name", ["shard.jsonl.zst", "report.json"])
@pytest.mark.parametrize(
    "content", [b"no corpus", b"[]", zstandard.compress(b"{}\n"), zstandard.compress(b"{")]
)
def test_what_is_no_corpus_can_neither_be_shown_nor_reported_on(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    for arguments in (["show", str(tmp_path / "shard.jsonl.zst")], ["report", str(tmp_path)]):
        assert cli.main(["corpus", *arguments]) == 2
        said = capsys.readouterr()
        assert not said.out and said.err.startswith("megalm: error: ") and said.err.count("\n") == 1
