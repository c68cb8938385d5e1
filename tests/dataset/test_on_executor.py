"""A build on executors: the bytes of the plain build whatever the tasks and workers, on after kills, no package needed without."""

import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from megalm import cli
from megalm.dataset import Extras, build_dataset, on_executor, stages
from megalm.dataset.plan import Plan
from megalm.dataset.stages import Work, begin_second_pass, finish, first_pass, share_of
from megalm.errors import UserError
from megalm.executors.run import LocalExecutor
from megalm.executors.settings import ExecutorSettings, parse_settings
from megalm.tasks import Task
from megalm.tokenizer import train_bpe
from tests.kills import killed
from tests.tokenizer.test_bpe import make_texts, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and three files, one of them empty."""
    folder: Path = tmp_path_factory.mktemp("on_executor")
    train_bpe([write_jsonl(folder / "train.jsonl", make_texts(100))], 400, folder / "t")
    (folder / "in").mkdir()
    for file, count in enumerate((150, 90, 0)):
        lines = [{"text": text, "prompt": f"{n}?"} for n, text in enumerate(make_texts(count, seed=file))]
        (folder / "in" / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, runs and pieces (in this process and in what is planned in it)."""
    monkeypatch.setattr("megalm.dataset.plan.SMALLEST_CHUNK", 8192)
    monkeypatch.setattr("megalm.dataset.plan.LARGEST_CHUNK", 8192)
    monkeypatch.setattr("megalm.dataset.chunks.RUN_TOKENS", 2000)
    monkeypatch.setattr("megalm.dataset.shuffle.BUCKET_BYTES", 4000)


def build(
    folder: Path, prefix: Path, tasks: int | None = None, workers: int = 1, plain: bool = False, **settings
):
    """Build on the local executor, or without one."""
    executor = None if plain else ExecutorSettings(workers=workers)
    extras = Extras(origins=True, prompt_key="prompt")
    settings = {"splits": "6,3,1", "workers": workers, "extras": extras, **settings}
    return build_dataset([folder / "in"], folder / "t", prefix, executor=executor, tasks=tasks, **settings)


def files_of(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(prefix.parent.glob(f"{prefix.name}_*"))}


@pytest.fixture
def whole(folder, tmp_path) -> dict[str, bytes]:
    """The files of a plain build in one process."""
    (tmp_path / "whole").mkdir()
    build(folder, tmp_path / "whole" / "d", plain=True)
    files = files_of(tmp_path / "whole" / "d")
    assert len(files) == 18  # a .bin, .idx, .json, .crc, .mask and .origins a split
    return files


@pytest.mark.parametrize(("tasks", "workers"), [(1, 1), (3, 1), (None, 1), (4, 2)])
def test_tasks_give_the_bytes_of_the_plain_build(folder, tmp_path, whole, tasks, workers):
    records = build(folder, tmp_path / "d", tasks, workers)
    assert files_of(tmp_path / "d") == whole
    assert records == {name: json.loads(whole[f"d_{name}.json"]) for name in ("train", "valid", "test")}
    assert not (tmp_path / "d.build").exists()
    done = {
        path.name: len(list((path / "completions").iterdir())) for path in (tmp_path / "d.logs").iterdir()
    }
    count = tasks or len(first_pass(Plan.make(*planned(folder)), tmp_path))
    assert count > 6 or tasks
    assert done == {f"tokenize-{count}": count, "arrange-1": 1, f"shuffle-{count}": count, "finish-1": 1}
    assert build(folder, tmp_path / "d", tasks) == records


def planned(folder: Path):
    """The recipe of `build` and its files."""
    from megalm.dataset.build import _recipe
    from megalm.tokenizer.documents import expand_inputs

    extras = Extras(origins=True, prompt_key="prompt")
    recipe = _recipe(folder / "t", True, "text", "document", "6,3,1", 0, extras)
    return recipe, expand_inputs([folder / "in"])


@pytest.mark.parametrize(
    ("owner", "call", "stride"),
    [(os, "replace", 3), (os, "pwrite", 5), (LocalExecutor, "mark_rank_as_completed", 1)],
)
def test_a_build_killed_at_any_step_goes_on_with_other_tasks(folder, tmp_path, whole, owner, call, stride):
    """Each time with another number of tasks, and now and then without an executor."""
    for kills in itertools.count():
        plain = owner is os and kills % 4 == 3
        work = partial(build, folder, tmp_path / "d", 1 + kills % 3, plain=plain)
        if not killed(owner, call, kills * stride, work):
            break
    assert kills > 3
    build(folder, tmp_path / "d", 2)
    assert files_of(tmp_path / "d") == whole


def test_what_is_done_is_not_done_again(folder, tmp_path, monkeypatch):
    done: list[str] = []
    for name in ("tokenize_chunk", "write_piece"):
        function = getattr(stages, name)

        def noted(*arguments, function=function, name=name):
            function(*arguments)
            done.append(f"{name} {getattr(arguments[0], 'key', arguments[1])}")
            if len(done) in stops:
                raise KeyboardInterrupt

        monkeypatch.setattr(stages, name, noted)
    total = len(first_pass(Plan.make(*planned(folder)), tmp_path)) - 3  # less a digest a file
    stops = {2, total + 2}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build(folder, tmp_path / "d", 3)
    build(folder, tmp_path / "d", 2)
    assert len(done) == len(set(done)) > total + 3


def test_another_build_at_the_prefix_takes_no_task_for_done(folder, tmp_path, whole):
    for seed in (1, 0):
        build(folder, tmp_path / "d", 2, seed=seed, overwrite=True)
    assert files_of(tmp_path / "d") == whole


def test_a_build_killed_while_it_publishes_begins_its_second_pass_again(folder, tmp_path, whole, monkeypatch):
    publish = stages.publish

    def half(found):
        publish(dict([next(iter(found.items()))]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "publish", half)
        with pytest.raises(KeyboardInterrupt):
            build(folder, tmp_path / "d", 2)
    build(folder, tmp_path / "d", 2)
    assert files_of(tmp_path / "d") == whole


def test_no_stage_begins_while_parts_of_the_one_before_are_missing(folder, tmp_path):
    """As on a cluster that starts a job in spite of a failed one: documents would silently be missing."""
    plan, build_folder = Plan.make(*planned(folder)), tmp_path / "d.build"
    build_folder.mkdir()
    plan.begin_in(build_folder)
    work = first_pass(plan, build_folder)
    for one in work[:-1]:
        one.task.function(*one.task.arguments)
    with pytest.raises(RuntimeError, match=f"1 of {len(work)} parts of the stage before are missing"):
        begin_second_pass(plan, build_folder)
    work[-1].task.function(*work[-1].task.arguments)
    begin_second_pass(plan, build_folder)
    with pytest.raises(RuntimeError, match="parts of the stage before are missing"):
        finish(plan, build_folder, tmp_path / "d")
    assert not files_of(tmp_path / "d")


def test_relative_paths_mean_what_they_meant_where_the_command_was_given(folder, tmp_path, monkeypatch):
    """Workers of Ray run in a directory of their own."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").symlink_to(folder / "in")
    (tmp_path / "t").symlink_to(folder / "t")
    run_local = on_executor.run_local

    def run_elsewhere(*arguments):
        os.chdir(tmp_path / "elsewhere")
        run_local(*arguments)

    monkeypatch.setattr(on_executor, "run_local", run_elsewhere)
    build_dataset(["in"], "t", "d", executor=ExecutorSettings(workers=1), tasks=2)
    assert (tmp_path / "d_train.bin").exists() and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_each_part_is_one_task_s_and_tasks_are_about_alike(count):
    work = [
        Work(Task(print, (), size), Path(str(n))) for n, size in enumerate([5, 0, 9, 1, 1, 30, 2, 2, 0, 8])
    ]
    shares = [share_of(work, rank, count) for rank in range(count)]
    assert [one for share in shares for one in share] == work
    sizes = [sum(one.task.size for one in share) for share in shares]
    assert max(sizes) <= 58 / count + 30


def test_the_command_takes_an_executor_and_its_settings(folder, tmp_path, capsys):
    arguments = [str(folder / "in"), "--tokenizer", str(folder / "t"), "-o", str(tmp_path / "d")]
    options = ["--executor", "local", "--tasks", "2", "--workers", "1", "--set", "slurm.partition=cpu"]
    assert cli.main(["dataset", "build", *arguments, *options, "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert records["train"]["documents"] > 200 and (tmp_path / "d_train.bin").exists()
    for options, message in (
        (["--tasks", "2"], "--tasks and --set are for an executor: add --executor"),
        (
            ["--executor", "slurm", "--set", "slurm.partitoin=cpu"],
            "unknown key `slurm.partitoin`: did you mean 'partition'?",
        ),
        (["--executor", "cloud"], "`kind` = 'cloud'"),
        (["--executor", "local", "--workers", "0"], "workers"),
    ):
        assert cli.main(["dataset", "build", *arguments, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_slurm_without_sbatch_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        build_dataset([folder / "in"], folder / "t", tmp_path / "d", executor=parse_settings(["kind=slurm"]))


def test_only_a_build_on_an_executor_needs_its_packages(folder, tmp_path, monkeypatch):
    code = "import sys, megalm.dataset; print([n for n in ('datatrove', 'pydantic', 'torch') if n in sys.modules])"
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
    monkeypatch.delitem(sys.modules, "megalm.dataset.on_executor")
    monkeypatch.setitem(sys.modules, "datatrove.data", None)
    with pytest.raises(UserError, match=r"not installed .*; pip install 'megalm\[corpus\]'"):
        build(folder, tmp_path / "d", 2)
    assert not list(tmp_path.iterdir())
