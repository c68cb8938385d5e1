"""A build of token files on a real SLURM cluster: the bytes of a local build, also after a failed task."""

import json
from pathlib import Path

import pytest

from megalm import cli
from megalm.dataset import build_dataset
from megalm.tokenizer import train_bpe
from tests.tokenizer.test_bpe import make_texts, write_jsonl


@pytest.fixture
def whole(tmp_path, monkeypatch) -> dict[str, bytes]:
    """A tokenizer and inputs in the working directory, and the files of a build in one process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for file in range(3):
        write_jsonl(tmp_path / "in" / f"{file}.jsonl", make_texts(60, seed=file))
    train_bpe([tmp_path / "in" / "0.jsonl"], 400, tmp_path / "t")
    build_dataset(["in"], "t", "whole/d", workers=1, splits="6,3,1")
    return files_of(tmp_path / "whole")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("d_*")}


def command(*options: str) -> int:
    """`megalm dataset build` with relative paths; its exit code."""
    return cli.main(
        ["dataset", "build", "in", "--tokenizer", "t", "-o", "out/d", "--splits", "6,3,1", *options]
    )


def submit(tasks: int, *settings: str) -> int:
    """The same on SLURM."""
    limits = ('slurm.time="00:10:00"', "slurm.mem_per_cpu_gb=1", *settings)
    return command("--executor", "slurm", "--tasks", str(tasks), *(f"--set={one}" for one in limits))


def test_slurm_gives_the_bytes_of_one_process_also_after_a_failed_task(cluster, whole, tmp_path, capsys):
    assert submit(2, 'slurm.sbatch.hold=""') == 0
    jobs = json.loads((tmp_path / "out/d.build/slurm.json").read_text())
    assert len(jobs) == 4 and f"submitted as SLURM jobs {', '.join(jobs)};" in capsys.readouterr().out
    for again in (["--executor", "slurm"], ["--workers", "1"]):
        assert command(*again) == 2 and f"SLURM jobs {jobs[0]}" in capsys.readouterr().err
    (tmp_path / "in/2.jsonl").rename(tmp_path / "aside")
    cluster.call("scontrol", "release", ",".join(jobs))
    cluster.wait()
    assert sorted(cluster.states(jobs[0]).values()) == ["COMPLETED", "FAILED"]
    assert {state for job in jobs[1:] for state in cluster.states(job).values()} == {"CANCELLED"}
    assert not files_of(tmp_path / "out")
    (tmp_path / "aside").rename(tmp_path / "in/2.jsonl")
    assert submit(3) == 0
    cluster.wait()
    assert files_of(tmp_path / "out") == whole and not (tmp_path / "out/d.build").exists()
    capsys.readouterr()
    assert submit(3) == 0 and "d_train  " in capsys.readouterr().out
