"""Every recipe of a domain can be read, with its corpus recipe, and mistakes in one are told before work begins."""

from pathlib import Path

import pytest

from megalm.adapt.data import scaled, sources_of
from megalm.adapt.recipe import load_adapt_recipe
from megalm.adapt.run import render, training_config
from megalm.config import parse_config
from megalm.config.load import read_yaml
from megalm.corpus.recipe import parse_recipe
from megalm.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted((CONFIGS / "adapt").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_its_corpus_and_the_training_that_follows_are_valid(path: Path, tmp_path: Path) -> None:
    recipe, corpus = load_adapt_recipe(path)
    assert corpus.resolve() == CONFIGS / "corpus" / path.name
    parse_recipe(read_yaml(corpus))
    base = parse_config({"model": {"preset": "llama-tiny", "vocab_size": 300}, "batch": {"seq_length": 32}})
    blend = scaled([{"path": "domain"}], 1 - recipe.replay) + scaled([{"path": "general"}], recipe.replay)
    config = training_config(
        recipe, base, tmp_path / "base", tmp_path, 100_000, blend, [{"path": "domain"}], tmp_path / "run"
    )
    parsed = parse_config(config)
    assert parsed.model.num_layers == base.model.num_layers
    tokens = parsed.train.steps * parsed.batch.global_batch_size * parsed.batch.seq_length
    assert tokens * (1 - recipe.replay) == pytest.approx(recipe.epochs * 100_000, rel=0.02)
    assert parsed.optimizer.warmup_steps >= 0.05 * parsed.train.steps
    assert parsed.optimizer.min_lr < parsed.optimizer.lr < 3e-4, "below the peak of pretraining"


def test_all_four_domains_are_there() -> None:
    assert {path.stem for path in RECIPES} == {"medical", "legal", "financial", "code"}


def test_the_masks_of_a_domain_spare_what_it_is_made_of() -> None:
    from megalm.corpus.clean.pii import mask
    from megalm.corpus.clean.pii_find import MASKS

    def masked(domain: str, text: str) -> str:
        steps = read_yaml(CONFIGS / "corpus" / f"{domain}.yaml")["steps"]
        options = next(({} if step == "pii" else step["pii"]) for step in steps if "pii" in step)
        return mask(text, [kind for kind in MASKS if options.get(kind, True)], dict(MASKS))[0]

    mail = "write to jane.doe@example.org, "
    for domain, text in {
        "medical": "BP 120/80, HR 72, Na 141, pH 7.41",
        "legal": "clause 12.3.4.1 and 410 U.S. 113",
        "financial": "Revenue\n 212 555 1234\n 4539 1488 0343 6467",
        "code": "x = 4539148803436467\nport = 2125551234",
    }.items():
        assert masked(domain, mail + text) == "write to <EMAIL>, " + text
    assert "<PHONE>" in masked("medical", "call 212-555-1234")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("replays=0.5", "unknown key `replays`: did you mean 'replay'"),
        ("replay=1", "`replay` = 1"),
        ("config.optimizer.lrate=1", "in `config`, unknown key `optimizer.lrate`"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_adapt_recipe(RECIPES[0], [change])


def test_files_of_each_kind_become_a_source_and_others_are_refused(tmp_path: Path) -> None:
    for name in ("notes/a.txt", "notes/b.md.gz", "notes/rows.csv", "notes/image.png", "papers.jsonl.zst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = sources_of([str(tmp_path / "notes"), str(tmp_path / "papers.jsonl.zst")])
    assert [source["kind"] for source in found] == ["csv", "jsonl", "text"]
    assert [Path(path).name for path in found[2]["path"]] == ["a.txt", "b.md.gz"]
    with pytest.raises(UserError, match="image.png: no documents of a known kind"):
        sources_of([str(tmp_path / "notes" / "image.png")])
    with pytest.raises(UserError, match="absent: no such file"):
        sources_of([str(tmp_path / "absent")])


def test_weights_keep_their_ratios() -> None:
    blend = [{"path": "a", "weight": 3.0}, {"path": "b"}]
    assert [source["weight"] for source in scaled(blend, 0.2)] == pytest.approx([0.15, 0.05])


def test_the_table_tells_the_change() -> None:
    row = {"text": "domain_valid", "perplexity_before": 50.0, "perplexity_after": 25.0}
    assert render([row]).splitlines()[1].split() == ["domain_valid", "50.000", "25.000", "-50.0%"]
