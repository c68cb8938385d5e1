"""The order of nodes, lists of names, and what is said of where ranks lie."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from megalm.cli import main
from megalm.cluster.checks import check_works
from megalm.cluster.pipeline import load_pipeline
from megalm.cluster.place import NodePlace, by_topology, describe, expand, network, usable_nodes
from megalm.cluster.settings import ClusterSettings, load_settings
from megalm.cluster.submit import Work
from megalm.cluster.sweep import combinations, run_directory
from megalm.config import dump_config
from megalm.errors import UserError
from tests.train.runs import PP2, TP2, run_config, write_tokens

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("node7", ["node7"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[08-10]", ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
        ("127.0.1.[1-2]", ["127.0.1.1", "127.0.1.2"]),
        ("", []),
    ],
)
def test_names_of_nodes_are_expanded(names: str, expected: list[str]) -> None:
    assert expand(names) == expected


def test_nodes_below_one_switch_follow_each_other_at_every_level() -> None:
    switches = [
        {"SwitchName": "leaf1", "Level": "0", "Nodes": "n[1,5]"},
        {"SwitchName": "leaf2", "Level": "0", "Nodes": "n[2,6]"},
        {"SwitchName": "leaf3", "Level": "0", "Nodes": "n[3,4]"},
        {"SwitchName": "spine1", "Level": "1", "Switches": "leaf[1,3]", "Nodes": "n[1,3-5]"},
        {"SwitchName": "spine2", "Level": "1", "Switches": "leaf2", "Nodes": "n[2,6]"},
    ]
    hosts = ["n1", "n2", "n3", "n4", "n5", "n6", "elsewhere"]
    assert by_topology(hosts, switches) == ["n1", "n5", "n3", "n4", "n2", "n6", "elsewhere"]
    assert by_topology(hosts, []) == hosts


def test_the_interface_is_the_one_that_leads_to_the_other_nodes() -> None:
    assert network(NodePlace(0, ("127.0.1.1",))) == {}
    both = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert network(NodePlace(0, ("127.0.1.1", "127.0.1.2"))) == both
    assert network(NodePlace(1, ("127.0.1.1", "127.0.1.2"))) == both
    assert network(NodePlace(1, ("no-such-host.invalid", "127.0.1.2"))) == {}
    assert any(name == "lo" for _, name in socket.if_nameindex())


def test_it_is_said_which_axes_leave_a_node(tmp_path: Path) -> None:
    config = run_config(tmp_path, tmp_path, TP2, PP2, "batch.micro_batch_size=1")
    assert describe(config, 2, 8) == [
        "TP 2: ranks 1 apart, inside a node",
        "DP 4: ranks 2 apart, inside a node",
        "PP 2: ranks 8 apart, over the network",
        "node 0: ranks 0 to 7, stage 0, copy 0 to 3",
        "node 1: ranks 8 to 15, stage 1, copy 0 to 3",
    ]
    assert describe(config, 4, 1)[:2] == [
        "TP 2: ranks 1 apart, over the network",
        "PP 2: ranks 2 apart, over the network",
    ]


def test_of_a_job_of_changing_size_as_many_nodes_are_used_as_can_share_the_batch(tmp_path: Path) -> None:
    config = run_config(tmp_path, tmp_path)  # 4 microbatches
    assert [usable_nodes(config, nodes, 1) for nodes in (1, 2, 3, 4, 5)] == [1, 2, 2, 4, 4]
    with pytest.raises(UserError, match="multiple of"):
        usable_nodes(run_config(tmp_path, tmp_path, TP2), 1, 1)


def test_a_sweep_takes_every_combination_and_names_it() -> None:
    found = combinations(["optimizer.lr=1e-3,3e-4", "data.train=[{path: a, weight: 1}],[]"])
    assert found == [
        ["optimizer.lr=1e-3", "data.train=[{path: a, weight: 1}]"],
        ["optimizer.lr=1e-3", "data.train=[]"],
        ["optimizer.lr=3e-4", "data.train=[{path: a, weight: 1}]"],
        ["optimizer.lr=3e-4", "data.train=[]"],
    ]
    assert run_directory("runs/x", ["optimizer.lr=1e-3", "train.steps=5"]) == Path("runs/x/lr=1e-3,steps=5")
    name = run_directory("runs/x", ["a.lr=1", "b.lr=/tmp/y z"]).name
    assert name.startswith("a.lr=1,b.lr=_tmp_y_z-")


def test_the_shipped_pipeline_and_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    works = load_pipeline("configs/pipelines/assistant.yaml", [], ["kind=local"])
    assert [(work.directory.name, work.needs) for work in works] == [
        ("pretrain", []),
        ("sft", [0]),
        ("reward", [1]),
        ("ppo", [1, 2]),
        ("export", [3]),
    ]
    ppo = works[3].config
    assert ppo is not None and ppo.run.load == "runs/assistant/sft"
    assert ppo.rlhf.rewards[0].model_dump()["checkpoint"] == "runs/assistant/reward"
    assert works[4].command is not None and works[4].command.startswith("megalm convert runs/assistant/ppo ")
    assert load_settings(Path("configs/cluster/slurm.yaml"), ["nodes=3"]).minutes == 24 * 60


def test_the_guide_lists_every_setting() -> None:
    guide = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
    for name, field in ClusterSettings.model_fields.items():
        assert f"| `{name}` |" in guide and str(field.description) in guide


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dir: x\nsteps: {a: {train: c, run: d}}", "either train: CONFIG or run: COMMAND"),
        (
            "dir: x\nsteps: {a: {run: c, after: [b]}, b: {run: d}}",
            "a comes after b, which is no step above it",
        ),
        ("dir: x\nsteps: {a: {run: c, nodes: 2}}", "nodes"),
        ("dir: x\nsteps: {a: {run: c, cluster: {node: 2}}}", "step a: .*node"),
        ("dir: x\nsteps: {a: {train: absent.yaml}}", "step a: absent.yaml: no such configuration file"),
        ("steps: {a: {run: c}}", "dir"),
        ("dir: x\nsteps: {}", "steps"),
    ],
)
def test_a_wrong_pipeline_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "pipeline.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_pipeline(tmp_path / "pipeline.yaml", [], [])


@pytest.mark.parametrize("sweeps", [["optimizer.lr"], ["=1,2"], ["a=1,,2"], ["a=1,1"], ["a=1", "a=2"]])
def test_a_wrong_sweep_is_refused(sweeps: list[str]) -> None:
    with pytest.raises(UserError, match="--sweep"):
        combinations(sweeps)


def test_a_vocabulary_that_only_the_run_finds_out_is_no_reason_to_refuse(tmp_path: Path) -> None:
    config = run_config(tmp_path / "run", write_tokens(tmp_path), "model.vocab_size=null")
    works = [Work(tmp_path / "run", ClusterSettings(kind="local"), config)]
    assert check_works(works) == []
    with pytest.raises(UserError, match="GB left"):
        check_works(
            [
                replace(
                    works[0], config=run_config(tmp_path / "run", tmp_path, "model.vocab_size=2000000000000")
                )
            ]
        )


def test_a_damaged_record_is_named_and_does_not_hide_other_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad"):
        config = run_config(tmp_path / name, tmp_path)
        (tmp_path / name / "cluster").mkdir(parents=True)
        dump_config(config, tmp_path / name / "config.yaml")
        (tmp_path / name / "metrics.jsonl").touch()
    (tmp_path / "bad/cluster/jobs.jsonl").write_text('{"id": "1"}\n')
    assert main(["runs", "list", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert (
        f"{tmp_path / 'good'}  pretrain  0/8" in told.out
        and "jobs.jsonl, line 1: no record of a job" in told.err
    )
    assert main(["runs", "status", str(tmp_path / "bad")]) == 2
