"""`megalm report`: runs that go on meanwhile, and a user's mistakes in one line."""

from megalm import cli
from megalm.report.make import make_report
from megalm.report.run import MOST_RUNS, names_of
from tests.report.runs import lines_of, start_line, step_line, write_run


def mistake(capsys, *arguments):
    assert cli.main(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("megalm: error: ") and err.count("\n") == 1
    return err


def test_a_run_that_goes_on_meanwhile_has_a_page_each_time(tmp_path):
    directory = write_run(tmp_path / "run", start_line())
    whole = lines_of(*map(step_line, range(1, 4)))
    for end in range(0, len(whole), 37):
        (directory / "metrics.jsonl").write_text(whole[:end])
        assert make_report([directory])["runs"]["run"]["step"] == whole[:end].count("\n")


def test_mistakes_are_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", start_line())
    other = write_run(tmp_path / "other", start_line())
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    page = ("-o", tmp_path / "page.html")
    assert "no such run directory" in mistake(capsys, tmp_path / "absent", *page)
    assert "no such run directory" in mistake(capsys, run / "metrics.jsonl", *page)
    assert "neither metrics.jsonl nor lineage.json" in mistake(capsys, tmp_path / "empty", *page)
    assert "name its run directory" in mistake(capsys, tmp_path / "model", *page)
    assert "named twice" in mistake(capsys, run, tmp_path / "empty" / ".." / "run", *page)
    assert "--output FILE.html" in mistake(capsys, run, other)
    assert "--card" in mistake(capsys, run, other, "--card", tmp_path / "card.md", *page)
    assert "is a directory" in mistake(capsys, run, "-o", tmp_path)
    assert f"at most {MOST_RUNS}" in mistake(capsys, *[run] * (MOST_RUNS + 1), *page)
    assert "RUN" in mistake(capsys)
    assert not (tmp_path / "page.html").exists()


def test_names_are_as_much_of_the_paths_as_tells_them_apart(tmp_path):
    a, b, c = tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "y" / "other"
    assert names_of([a]) == ["run"] and names_of([a, c]) == ["run", "other"]
    assert names_of([a, b]) == ["x/run", "y/run"]
