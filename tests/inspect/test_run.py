"""`megalm inspect --text`: one answer whatever layout wrote the checkpoint, as JSON and as a page in which nothing runs."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from lxml import html

from megalm.cli import main as cli
from megalm.errors import UserError
from megalm.inspect.page import LONGEST, draw_page
from megalm.testing import run_distributed
from tests.inspect.subjects import (
    COPIER,
    POSITIONS,
    TEXT,
    VOCABULARY,
    WORDS,
    config_of,
    make_copier,
    write_tokenizer,
)
from tests.report.test_page import HOSTILE, check_inert
from tests.tiny import tiny_engine

CLASSIFIER = ("task=classify", "classify.labels=[bad,good,other]", "model.sequence_head.outputs=3")


def save(directory: Path, preset: str, overrides: tuple[str, ...], by_hand: bool = False) -> None:
    """A checkpoint of step 7; to be called in a world."""
    from megalm.checkpoint import CheckpointWriter

    config = config_of(preset, *overrides, "checkpoint.async_save=false")
    engine = tiny_engine(config)
    if by_hand:
        make_copier(engine.chunks[0])
    CheckpointWriter(directory, config, engine).save(7, {"step": 7, "counters": engine.counters})


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run: Path = tmp_path_factory.mktemp("copier")
    write_tokenizer(run / "tokenizer")
    run_distributed(save, 1, run, "gpt2-tiny", COPIER, True)
    return run


def command(*arguments: str) -> tuple[int, str, str]:
    """Code and output of the command; to be called in a world of one process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli(["inspect", *arguments])
    return code, out.getvalue(), err.getvalue()


def found_in(run: Path, *arguments: str) -> dict[str, Any]:
    code, out, err = run_distributed(command, 1, str(run), "--dtype", "fp64", "--json", *arguments)[0]
    assert code == 0, err
    return json.loads(out)


def test_the_copier_is_found_out_from_the_command_line(copier: Path) -> None:
    found = found_in(copier, "--text", TEXT, "--token", "gnu", "--neighbours", "3")
    assert (found["step"], found["labels"]) == (7, [])
    (text,) = found["texts"]
    assert [one["token"].strip() for one in text["tokens"]] == TEXT.split()
    attention = text["attention"][0][0]
    assert all(attention[query][query - 1] > 0.999 for query in range(1, 5))
    assert text["heads"][0][0]["on_previous"] > 0.999 > text["heads"][1][0]["on_previous"]
    why = text["attribution"]
    assert why["target"]["token"].strip() == "ant" and why["position"] == 4
    assert why["scores"][3] > 0.98 * sum(map(abs, why["scores"]))
    assert [layer[4][0]["token"].strip() for layer in text["lens"]["top"][1:]] == ["ant", "ant"]
    gnu = found["neighbours"][0]
    assert gnu["token"].strip() == "gnu" and len(gnu["input"]) == len(gnu["output"]) == 3
    assert all(one["cosine"] == 0 for one in gnu["input"])  # each word has an axis of its own
    assert len(found["neighbours"]) == 6


def test_the_page_lies_in_the_run_and_says_the_same(copier: Path) -> None:
    code, out, err = run_distributed(command, 1, str(copier), "--text", TEXT, "--target", "dog")[0]
    assert code == 0, err
    page = copier / "inspect.html"
    assert f"written to {page}" in out and "'dog' (log p" in out.replace(" dog", "dog")
    tree = html.document_fromstring(page.read_text().replace("<!doctype html>", ""))
    check_inert(tree)
    maps = [node for node in tree.iter("svg") if node.get("class") == "chart heat-map"]
    assert len(maps) == 2 * 4 and all(node.get("aria-label") for node in maps)
    assert "ant" in html.tostring(tree, encoding="unicode")
    told = [title.text for title in maps[0].iter("title")]
    assert len(told) == 5 and "looks at" in told[4] and "(3) 100%" in told[4]


@pytest.mark.parametrize(
    "size", ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]
)
def test_whatever_layout_wrote_it_a_checkpoint_says_the_same(tmp_path: Path, size: str) -> None:
    results = []
    for name, world, overrides in (("alone", 1, ()), ("split", 2, (size,))):
        write_tokenizer(tmp_path / name / "tokenizer")
        run_distributed(save, world, tmp_path / name, "llama-tiny", overrides)
        found = found_in(tmp_path / name, "--text", TEXT)
        results.append({"texts": found["texts"], "neighbours": found["neighbours"]})
    assert flat(results[0]) == pytest.approx(flat(results[1]), abs=1e-6)
    assert len(flat(results[0])) > 500


def flat(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [n for one in (value.values() if isinstance(value, dict) else value) for n in flat(one)]
    return [value] if isinstance(value, int | float) else []


def test_an_encoder_and_a_classifier(tmp_path: Path) -> None:
    for name, preset, overrides in (
        ("encoder", "bert-tiny", ("task=mlm",)),
        ("labels", "bert-tiny", CLASSIFIER),
        ("decoder labels", "gpt2-tiny", CLASSIFIER),
    ):
        write_tokenizer(tmp_path / name / "tokenizer")
        run_distributed(save, 1, tmp_path / name, preset, overrides)
    (hidden,) = found_in(tmp_path / "encoder", "--text", "cat [MASK] dog")["texts"]
    assert hidden["attribution"]["position"] == 2 and hidden["attribution"]["scores"][2] == 0
    (plain,) = found_in(tmp_path / "encoder", "--text", "cat dog")["texts"]
    assert plain["attribution"] is None and len(plain["lens"]["top"]) == 3
    assert "The text hides no token" in draw_page(found_in(tmp_path / "encoder", "--text", "cat dog"))
    for name in ("labels", "decoder labels"):
        found = found_in(tmp_path / name, "--text", TEXT, "--target", "good")
        (text,) = found["texts"]
        why = text["attribution"]
        assert (found["labels"], text["lens"]) == (["bad", "good", "other"], None)
        assert (why["position"], why["target"]) == (None, {"label": "good"})
        assert sum(why["scores"]) == pytest.approx(why["logprob"] - why["baseline_logprob"], abs=1e-3)
        assert "Why the model calls the text" in draw_page(found)
        assert found["neighbours"][0]["output"] is None
        (told,) = run_distributed(refused, 1, tmp_path / name, {"texts": ["cat"], "target": "x"})
        assert "no label of the model's (bad, good, other)" in told


def test_what_texts_and_models_say_stays_text(copier: Path) -> None:
    found = found_in(copier, "--text", TEXT)
    page = draw_page(hostile(found))
    check_inert(html.document_fromstring(page.replace("<!doctype html>", "")))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def test_maps_of_long_texts_are_left_to_json(copier: Path) -> None:
    found = found_in(copier, "--text", TEXT)
    assert "chart heat-map" in draw_page(found)
    text = found["texts"][0]
    times = LONGEST // len(text["tokens"]) + 1
    text["tokens"] = text["tokens"] * times
    text["attribution"]["scores"] = text["attribution"]["scores"] * times
    page = draw_page(found)
    assert "chart heat-map" not in page and f"maps are drawn of texts of up to {LONGEST}" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--output", "x.html"], "give one of them"),
        (["--text", "cat", "--top", "0"], "--top is 0: it must be at least 1"),
        (["--token", "cat", "--target", "dog"], "--target is 'dog': it must be left out without --text"),
        (["--text", "cat", "--output", "FOLDER"], "is a directory: name a file"),
        (["--text", "cat", "--dtype", "int3"], "--dtype is 'int3'"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(
    copier: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    given = [argument.replace("FOLDER", str(copier)) for argument in arguments]
    assert cli(["inspect", str(copier), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def refused(run: Path, options: dict[str, Any]) -> str:
    """What a request that needs the model is refused with; to be called in a world of one process."""
    from megalm.inspect.request import InspectRequest
    from megalm.inspect.run import main

    with pytest.raises(UserError) as error:
        main(InspectRequest(checkpoint=str(run), **options))
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tokens": ["cat dog"]}, "--token 'cat dog' is 2 tokens of the model's"),
        ({"texts": ["cat"], "position": 1}, "the text has 1 tokens; give 0 to 0"),
        (
            {"texts": ["cat " * (POSITIONS + 1)]},
            f"has {POSITIONS + 1} tokens, and the model takes {POSITIONS}",
        ),
        ({"texts": ["cat"], "step": 3}, "3"),
    ],
)
def test_what_does_not_fit_the_model_is_named(copier: Path, options: dict[str, Any], told: str) -> None:
    assert told in run_distributed(refused, 1, copier, options)[0]


def test_without_text_and_token_the_tensors_are_listed(copier: Path) -> None:
    code, out, _ = run_distributed(command, 1, str(copier), "--json")[0]
    tensors = json.loads(out)["tensors"]
    assert code == 0 and tensors["embedding.word_embeddings.weight"]["shape"] == [VOCABULARY, 64]
    assert len(WORDS) == 8
