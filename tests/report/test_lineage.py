"""What a run is made of, from its own records and those of the files it names."""

import json

from megalm.report.corpora import corpora_of
from megalm.report.lineage import MOST_ANCESTORS, lineage_of
from megalm.report.run import read_runs
from tests.report.runs import start_line, write_run


def write_tokens(folder, digest="d1"):
    record = {"kind": "megalm dataset", "bin_sha256": digest, "documents": 12, "tokens": 345}
    record["inputs"] = [{"path": str(folder / "corpus/documents/00000.jsonl"), "sha256": "f00"}]
    (folder / "books.json").write_text(json.dumps(record))
    return str(folder / "books")


def lineage(directory, **recorded):
    write_run(directory, start_line(), lineage=json.dumps({"megalm": "0.1.0"} | recorded))
    (run,) = read_runs([directory])
    return lineage_of(run)


def test_token_files_tell_their_documents_and_what_they_were_made_of(tmp_path):
    books = write_tokens(tmp_path)
    found = lineage(
        tmp_path / "run",
        data={books: "d1", "other": None},
        validation={books: "d0"},
        shares=[0.25, {"epochs": 2}],
    )
    training, foreign, replaced = found.data
    assert (training.documents, training.tokens, training.share, training.note) == (12, 345, "25.0%", "")
    assert training.inputs[0].digest == "f00"
    assert foreign.share == "2 epochs" and "another program" in foreign.note
    assert (replaced.use, replaced.tokens) == ("validation", None) and "other token files" in replaced.note


def test_weights_are_followed_to_the_first_run_with_what_each_learned_from(tmp_path):
    books = write_tokens(tmp_path)
    first = write_run(tmp_path / "first", lineage=json.dumps({"config": "c0", "data": {books: "d1"}}))
    (first / "checkpoints" / "step_00000010").mkdir(parents=True)
    write_run(
        tmp_path / "second", lineage=json.dumps({"parent": str(first / "checkpoints" / "step_00000010")})
    )
    found = lineage(tmp_path / "run", parent=str(tmp_path / "second"))
    assert [(one.path.rpartition("/")[2], one.task) for one in found.ancestors] == [
        ("second", "pretrain"),
        ("step_00000010", "pretrain"),
    ]
    assert found.ancestors[1].data[0].tokens == 345


def test_models_files_and_the_program_of_the_last_start_are_told(tmp_path):
    checkpoint = str(tmp_path / "base" / "checkpoints" / "step_00000010")
    models = [{"role": "weights", "path": str(tmp_path / "base"), "checkpoint": checkpoint, "sha256": "w0"}]
    models += [{"role": "reward model", "path": "rm", "sha256": None}]
    starts = [{"program": {"megalm": "1", "code": "old"}}, {"program": {"megalm": "2", "code": "new"}}]
    files = [{"role": "prompts", "path": "p.jsonl", "sha256": "f0"}, "none"]
    found = lineage(tmp_path / "run", models=models, files=files, starts=starts, parent="not used")
    assert [tuple(part)[::2] for part in found.parts] == [
        ("weights", "w0"),
        ("reward model", None),
        ("prompts", "f0"),
    ]
    assert (found.version, found.code) == ("2", "new")
    assert [one.path for one in found.ancestors] == [checkpoint]


def test_runs_that_name_each_other_and_very_long_lines_end(tmp_path):
    write_run(tmp_path / "other", lineage=json.dumps({"parent": str(tmp_path / "run")}))
    assert len(lineage(tmp_path / "run", parent=str(tmp_path / "other")).ancestors) == 2
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "lineage.json").write_text(
            json.dumps({"parent": str(tmp_path / str(number + 1))})
        )
    assert len(lineage(tmp_path / "run", parent=str(tmp_path / "0")).ancestors) == MOST_ANCESTORS


def test_a_parent_that_is_gone_is_named_all_the_same(tmp_path):
    (ancestor,) = lineage(tmp_path / "run", parent=str(tmp_path / "gone")).ancestors
    assert ancestor.task is None and ancestor.data == []


def test_records_of_another_form_are_not_recorded(tmp_path):
    odd = lineage(
        tmp_path / "run", data=["x"], shares="all", parent=7, tokenizer=1, validation=None, config={}
    )
    assert (
        odd.data == []
        and odd.ancestors == []
        and odd.tokenizer is None
        and odd.digest is None
        and odd.parts == []
    )


def test_a_corpus_is_found_from_the_files_in_it(tmp_path):
    report = {
        "kind": "megalm corpus",
        "documents": 5,
        "characters": 99,
        "sources": [{"step": "warc"}, 3],
        "steps": [{"step": "extract"}],
        "kept": {"histograms": {"language": {"de": 1, "en": 4}}},
    }
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "report.json").write_text(json.dumps(report))
    documents = tmp_path / "corpus" / "documents"
    (corpus,) = corpora_of(
        [str(documents / "00000.jsonl"), str(documents / "00001.jsonl"), "elsewhere.jsonl"]
    )
    assert (corpus.path, corpus.documents, corpus.characters) == (str(tmp_path / "corpus"), 5, 99)
    assert (corpus.sources, corpus.steps) == (["warc"], ["extract"])
    assert corpus.languages == [("en", 4), ("de", 1)]
