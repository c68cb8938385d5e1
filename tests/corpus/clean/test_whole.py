"""All cleaning steps in one recipe, and the recipe that comes with megalm: two ways of cutting the work give the same."""

from pathlib import Path

import pytest
import yaml

from megalm.corpus.build import build_corpus
from megalm.corpus.recipe import parse_recipe
from megalm.corpus.shards import read_shard, shard_paths
from tests.corpus.documents import prose
from tests.corpus.recipes import documents_of

RECIPE = Path(__file__).parents[3] / "configs" / "corpus" / "web.yaml"


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    (folder / "bad.example").mkdir(parents=True)
    for number in range(6):
        body = "".join(f"<p>{line}</p>" for line in prose(number, 40, 8).split("\n"))
        html = f"<html><body><nav><a href=/>Home</a></nav><article><h1>Title</h1>{body}"
        html += f"<p>Write to number{number} at name{number}@example.com, please.</p></article></body></html>"
        (folder / f"{number}.html").write_text(html)
    (folder / "bad.example" / "a.html").write_text("<p>blocked</p>")
    (folder / "deep.html").write_text("<div>" * 20_000 + "text")
    (folder / "short.html").write_text("<p>Too short to be kept.</p>")
    return folder


def build(pages: Path, output: Path, tasks: int, workers: int) -> dict[str, bytes]:
    lists = pages.parent / "blocked.txt"
    lists.write_text("site.example/bad.example\n")
    words = pages.parent / "words.txt"
    words.write_text("verybadword\n")
    data = yaml.safe_load(RECIPE.read_text())
    data["output"] = str(output)
    data["sources"] = [{"kind": "html", "path": str(pages), "url": "http://site.example/"}]
    steps = data["steps"]
    steps[0] = {
        "url_blocklist": {"lists": [str(lists)], "packaged": False, "cache": str(pages.parent / "cache")}
    }
    steps.insert(-1, {"rare_words": {"min_documents": 2, "max_share": 0.9}})
    steps.insert(-1, {"bad_words": {"lists": {"en": str(words)}}})
    build_corpus(parse_recipe(data | {"tasks": tasks, "executor": {"workers": workers}}))
    return documents_of(output)


def test_all_steps_together(pages: Path, tmp_path: Path):
    one = build(pages, tmp_path / "one", 1, 1)
    three = build(pages, tmp_path / "three", 3, 2)
    texts = {
        name: [
            document.text
            for path in shard_paths(tmp_path / name / "documents")
            for document in read_shard(path)
        ]
        for name in ("one", "three")
    }
    assert sorted(texts["one"]) == sorted(texts["three"]) and len(texts["one"]) == 6
    for text in texts["one"]:
        assert "<EMAIL>" in text and "@" not in text and "Home" not in text
    for reason in (b'"url_blocklist.path": 1', b'"extract.too_deep": 1', b'"email": 6'):
        assert reason in one["report"] and reason in three["report"]
