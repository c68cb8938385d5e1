"""launch/install_kernels.sh: what it refuses, what it calls, and that one failure neither stops nor hides the others.

The commands it calls are stand-ins on the PATH: nothing is built, downloaded or installed.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "install_kernels.sh"
NAMES = {
    "apex": "apex",
    "flash-attn": "flash_attn",
    "transformer-engine": "transformer_engine",
    "liger": "liger_kernel",
}


class Machine:
    """A PATH with stand-ins that note down how they are called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.python = folder / "venv" / "bin" / "python"
        self.log = folder / "calls"
        self.bin.mkdir()
        self.python.parent.mkdir(parents=True)
        for tool in ("bash", "dirname", "mktemp", "rm", "printf", "cat", "grep"):
            path = shutil.which(tool)
            if path:
                (self.bin / tool).symlink_to(path)

    def put(self, command: str, script: str) -> None:
        self.write(self.bin / command, f'echo "{command} $*" >>{self.log}\n{script}')

    def write(self, path: Path, script: str) -> None:
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def with_cuda(self, usable: dict[str, str], broken: str = "nothing") -> None:
        """A GPU, nvcc, git, and a Python whose pip fails for `broken` and whose doctor finds `usable` (name -> problem)."""
        for command in ("nvidia-smi", "nvcc", "git"):
            self.put(command, "exit 0")
        rows = [
            {"name": name, "usable": not problem, "problem": problem, "version": "1.0"}
            for name, problem in usable.items()
        ]
        (self.folder / "doctor.json").write_text(json.dumps({"kernels": rows}))
        self.write(
            self.python,
            f'echo "python $* APEX_CUDA_EXT=$APEX_CUDA_EXT" >>{self.log}\n'
            f'case "$*" in *pip*{broken}*) echo "cannot build {broken}" >&2; exit 1 ;; esac\n'
            f'case "$*" in *doctor*) cat {self.folder}/doctor.json ;;\n'
            '*"version.cuda"*) echo 13.0 ;;\n'
            f'-c*) exec {sys.executable} "$@" ;; esac',
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin),
            "MEGALM_VENV": str(self.folder / "venv"),
            "TMPDIR": str(self.folder),
            "CUDA_HOME": str(self.folder),
        }
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    @property
    def calls(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def all_usable() -> dict[str, str]:
    return dict.fromkeys(NAMES.values(), "")


def test_without_cuda_it_says_so_in_one_line_and_exits_2(machine: Machine) -> None:
    done = machine.run()
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "no CUDA here" in done.stderr


def test_an_unknown_name_is_refused_before_anything_is_done(machine: Machine) -> None:
    machine.with_cuda(all_usable())
    done = machine.run("liger", "xformers")
    assert done.returncode == 2 and "xformers is unknown (known: apex flash-attn" in done.stderr
    assert machine.calls == ""


def test_a_torch_without_cuda_is_told(machine: Machine) -> None:
    machine.with_cuda(all_usable())
    machine.write(machine.python, "echo")
    done = machine.run()
    assert done.returncode == 2 and "built without CUDA" in done.stderr


def test_all_are_installed_and_verified_by_default(machine: Machine) -> None:
    machine.with_cuda(all_usable())
    done = machine.run()
    assert done.returncode == 0, done.stderr
    summary = done.stdout.split("== summary\n")[1].splitlines()
    assert [line.split()[0] for line in summary] == list(NAMES)
    assert all("usable, version 1.0" in line for line in summary)
    assert machine.calls.count("-m megalm doctor --json") == len(NAMES)


def test_apex_is_built_with_its_extensions_from_the_one_pinned_revision(machine: Machine) -> None:
    machine.with_cuda(all_usable())
    assert machine.run("apex").returncode == 0
    (fetch,) = [line for line in machine.calls.splitlines() if line.startswith("git") and "fetch" in line]
    revision = fetch.split()[-1]
    assert len(revision) == 40 and int(revision, 16)
    build = next(line for line in machine.calls.splitlines() if "--no-cache-dir" in line)
    assert build.endswith("APEX_CUDA_EXT=1")
    assert "flash-attn" not in machine.calls and "liger" not in machine.calls
    assert not list(machine.folder.glob("tmp.*")), "its sources were left behind"


def test_a_build_that_fails_stops_no_other_and_is_reported(machine: Machine) -> None:
    machine.with_cuda(all_usable(), broken="flash-attn")
    done = machine.run("flash-attn", "liger")
    assert done.returncode == 1
    first, second = done.stdout.split("== summary\n")[1].splitlines()
    assert first.startswith("flash-attn") and "failed: not installed" in first
    assert second.startswith("liger") and "usable" in second and "cannot build flash-attn" in done.stderr


def test_what_installs_but_cannot_be_used_is_a_failure(machine: Machine) -> None:
    machine.with_cuda(all_usable() | {"transformer_engine": "importing it failed: undefined symbol"})
    done = machine.run("transformer-engine")
    assert done.returncode == 1
    assert "failed: not usable: importing it failed: undefined symbol" in done.stdout


def test_without_nvcc_what_needs_no_compiler_is_installed_still(machine: Machine) -> None:
    machine.with_cuda(all_usable())
    (machine.bin / "nvcc").unlink()
    done = machine.run("apex", "liger")
    assert done.returncode == 1 and "no nvcc" in done.stderr
    first, second = done.stdout.split("== summary\n")[1].splitlines()
    assert "failed" in first and "usable" in second
