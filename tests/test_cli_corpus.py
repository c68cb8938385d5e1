"""`megalm corpus build` and `show`: the funnel, one warning with counts, kept and removed documents."""

import json

import pytest

from megalm import cli


@pytest.fixture
def recipe(tmp_path):
    lines = [json.dumps({"id": f"d{n}", "text": "word " * n, "url": f"http://a/{n}"}) for n in range(1, 9)]
    (tmp_path / "in.jsonl").write_bytes(
        "\n".join([*lines, "{broken", ""]).encode() + b'{"text": "gr\xfc\xdf dich du"}\n'
    )
    (tmp_path / "r.yaml").write_text(
        f"output: {tmp_path / 'out'}\nsources:\n  - {{kind: jsonl, path: {tmp_path / 'in.jsonl'}}}\n"
        "steps:\n  - length: {min_characters: 12}\n"
    )
    return tmp_path / "r.yaml"


def run(capsys, *arguments) -> tuple[str, str]:
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr()


def test_build_prints_the_funnel_and_one_warning(recipe, tmp_path, capsys):
    out, err = run(capsys, "corpus", "build", recipe, "--workers", 1)
    lines = out.splitlines()
    assert lines[1].split()[:4] == ["+", "jsonl", "9", "100.0%"]
    assert lines[2].split()[:3] == ["length", "7", "77.8%"] and lines[2].endswith("  too_short 2")
    assert lines[3].split()[:2] == ["kept", "7"] and lines[4] == str(tmp_path / "out" / "report.html")
    warnings = [line for line in err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "1 broken, 1 with invalid UTF-8" in warnings[0]
    report = json.loads(run(capsys, "corpus", "build", recipe, "--json", "--workers", 1)[0])
    assert report["documents"] == 7 and report["output"] == str(tmp_path / "out")


def test_show_pages_through_kept_and_removed_documents(recipe, tmp_path, capsys):
    run(capsys, "corpus", "build", recipe, "--workers", 1)
    out = json.loads(
        run(capsys, "corpus", "show", tmp_path / "out", "--document", 1, "--count", 2, "--json")[0]
    )
    assert [(d["document"], d["id"], d["reason"]) for d in out["documents"]] == [
        (1, "d4", "kept"),
        (2, "d5", "kept"),
    ]
    out, _ = run(capsys, "corpus", "show", tmp_path / "out/documents/00000.jsonl.zst")
    assert "document 0  d3" in out and "word word word" in out and "http://a/3" in out
    out, _ = run(capsys, "corpus", "show", tmp_path / "out", "--reason", "length", "--count", 9)
    assert out.count("--- document") == 2 and "length.too_short by length" in out
    assert run(capsys, "corpus", "show", tmp_path / "out", "--reason", "other")[0] == ""


def test_all_removed_documents_are_shown_where_they_were_kept(recipe, tmp_path, capsys):
    run(
        capsys,
        "corpus",
        "build",
        recipe,
        "keep_removed=true",
        "steps.0.length.min_characters=35",
        "--workers",
        1,
    )
    out = json.loads(run(capsys, "corpus", "show", tmp_path / "out", "--removed", "--count", 99, "--json")[0])
    assert len(out["documents"]) == 7 and {d["reason"] for d in out["documents"]} == {"length.too_short"}
    assert all(d["step"] == "length" and "removed_by" not in d["metadata"] for d in out["documents"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "nowhere does not exist"),
        (["show", "."], "holds no shards"),
        (["build", "none.yaml"], "no such configuration file"),
        (["build", "r.yaml", "--executor", "slrm"], "executor.kind"),
    ],
)
def test_mistakes_are_one_line(recipe, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["corpus", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
