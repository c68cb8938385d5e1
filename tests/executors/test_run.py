"""Executors that are not here are refused in one line, and what SLURM is asked for is what the recipe says."""

import sys

import pytest

from megalm.corpus.build import build_corpus
from megalm.errors import UserError
from megalm.executors.run import SlurmExecutor, _slurm_options
from megalm.executors.settings import SlurmSettings, parse_settings
from tests.corpus.recipes import make_inputs, make_recipe


def test_slurm_without_sbatch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    recipe = make_recipe(make_inputs(tmp_path / "in"), tmp_path / "out", [], executor={"kind": "slurm"})
    with pytest.raises(UserError, match="there is no sbatch here"):
        build_corpus(recipe)


def test_ray_without_ray_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = make_recipe(make_inputs(tmp_path / "in"), tmp_path / "out", [], executor={"kind": "ray"})
    with pytest.raises(UserError, match="Ray is not installed; pip install ray"):
        build_corpus(recipe)


def test_sbatch_gets_the_recipe_s_options_and_none_that_are_empty(tmp_path):
    settings = SlurmSettings(time="01:00:00", mem_per_cpu_gb=3, sbatch={"account": "mine"})
    executor = SlurmExecutor(
        pipeline=[], tasks=5, workers=2, logging_dir=str(tmp_path), **_slurm_options(settings)
    )
    arguments = executor.get_sbatch_args(5)
    assert (
        arguments["array"] == "0-4%2" and arguments["mem-per-cpu"] == "3G" and arguments["time"] == "01:00:00"
    )
    assert (
        arguments["account"] == "mine"
        and arguments["kill-on-invalid-dep"] == "yes"
        and "requeue" in arguments
    )
    assert not {"partition", "qos"} & set(arguments)
    script = executor.get_launch_file_contents(arguments, "run")
    assert (
        "--partition" not in script and f'export PATH="{sys.executable.rpartition("/")[0]}:$PATH"' in script
    )


def test_a_time_limit_that_yaml_reads_as_a_number_is_told():
    with pytest.raises(UserError, match=r'slurm.time` = 43200: .*write it in quotes, e.g. "12:00:00"'):
        parse_settings(["slurm.time=12:00:00"])
    assert parse_settings(['slurm.time="12:00:00"', "slurm.sbatch.account=me"]).slurm.time == "12:00:00"
