"""The doctor tells what is here, what stands in for what is missing, and what will go wrong."""

import importlib.metadata
import json
import stat
import sys

import pytest
import torch

from megalm import doctor, kernels
from megalm.parallel._expected import SUPPORTED_VERSION


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Puts packages of given files first on the import path: packages("apex/__init__.py", ...)."""

    def put(*files, text=""):
        for file in files:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.syspath_prepend(tmp_path)
    yield put
    for name in ("apex", "apex.optimizers", "amp_C", "flash_attn"):
        sys.modules.pop(name, None)


def test_report_is_plain_data_with_every_kernel_and_what_runs_instead():
    report = doctor.report()
    assert json.loads(json.dumps(report)) == report
    assert report["packages"]["torch"] == importlib.metadata.version("torch")
    assert {row["name"] for row in report["kernels"]} == set(kernels.detect())
    assert all(row["runs"] and row["usable"] == (row["problem"] == "") for row in report["kernels"])
    assert bool(report["devices"]) == torch.cuda.is_available()
    assert report["cpu"]["cores"] >= 1 and report["cpu"]["memory_gib"] > 0


def test_render_shows_kernels_stand_ins_and_warnings():
    report = doctor.report()
    report["warnings"] = ["something is off"]
    text = doctor.render(report)
    flash = next(line for line in text.splitlines() if line.startswith("flash_attn"))
    assert "scaled_dot_product_attention" in flash
    assert text.endswith("warning: something is off") and f"torch {torch.__version__}" in text


def test_apex_missing(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert kernels.apex().problem == "not installed" and not kernels.apex().usable


def test_unrelated_apex_from_pypi_is_told_without_importing_it(packages):
    packages("apex/__init__.py", "apex/models.py", text="raise SystemExit('imported')")
    found = kernels.detect() | {"apex": kernels.apex()}
    assert kernels.is_unrelated_apex(found["apex"]) and not found["apex"].usable
    assert any(
        "`apex` is the unrelated package" in line for line in doctor._warnings(found, SUPPORTED_VERSION)
    )


def test_nvidia_apex_without_its_extensions_is_not_usable(packages):
    packages("apex/__init__.py", "apex/optimizers/__init__.py")
    assert "no amp_C" in kernels.apex().problem
    assert not kernels.is_unrelated_apex(kernels.apex())


def test_nvidia_apex_is_usable_with_cuda_only(packages, monkeypatch):
    packages("apex/__init__.py", "apex/optimizers/__init__.py", "amp_C.py")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernels.apex().problem == kernels.NEEDS_CUDA and kernels.apex().runs == kernels.APEX.stand_in
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernels.apex().usable
    assert kernels.apex().runs == f"{kernels.APEX.stand_in}; with {kernels.APEX.choice} apex"


def test_a_kernel_that_cannot_be_imported_is_not_usable(packages, monkeypatch):
    packages(
        "flash_attn/__init__.py", text="raise OSError('libcudart.so.12:\\n cannot open shared object file')"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = kernels._on_cuda(kernels.FLASH_ATTN, "flash_attn")
    assert found.problem == "importing flash_attn failed: libcudart.so.12: cannot open shared object file"


def test_no_compiler_is_found_and_warned_about(monkeypatch, tmp_path, no_gpu):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = kernels.detect()
    assert not found["c++"].usable and found["c++"].version is None
    warnings = doctor._warnings(found, SUPPORTED_VERSION)
    assert [line for line in warnings if "no torch.compile" in line and "no DeepSpeed CPU Adam" in line]


@pytest.mark.parametrize(("script", "problem"), [("echo 99.1", ""), ("exit 1", "-dumpversion` failed")])
def test_compiler_of_the_environment_is_asked_for_its_version(monkeypatch, tmp_path, script, problem):
    compiler = tmp_path / "my-c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(kernels.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    found = kernels.cxx_compiler()
    assert problem in found.problem and found.usable == (not problem)
    assert found.usable == (found.version == f"{compiler} 99.1")


def test_compiler_without_python_headers_is_not_usable(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(
        kernels.subprocess, "run", lambda *a, **k: type("Done", (), {"returncode": 0, "stdout": "1"})
    )
    assert "no Python headers" in kernels.cxx_compiler().problem


@pytest.mark.parametrize(("version", "warned"), [(SUPPORTED_VERSION, False), ("0.99.0", True), (None, True)])
def test_another_megatron_core_version_is_warned_about(version, warned):
    found = kernels.detect()
    about_megatron = [line for line in doctor._warnings(found, version) if line.startswith("megatron-core")]
    assert bool(about_megatron) == warned
    assert all(f"megatron-core=={SUPPORTED_VERSION}" in line for line in about_megatron)


def test_memory_is_the_control_groups_limit_where_that_is_lower(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "MEMORY_LIMIT", limit)
    machine = doctor._memory_bytes()
    limit.write_text("1073741824\n")
    assert doctor._memory_bytes() == 2**30 < machine
    limit.write_text("max\n")
    assert doctor._memory_bytes() == machine
