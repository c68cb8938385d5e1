"""Policies: what is wrong with them is one sentence; their rules end in time; their classifiers hold sentences back."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from megalm.cli import main
from megalm.corpus.classify.model import Classifier
from megalm.errors import UserError
from megalm.moderation.policy import Policy, load_policy
from megalm.moderation.rules import Rule, RuleScan
from megalm.moderation.screen import TextScreen, check
from megalm.moderation.settings import PolicySettings
from megalm.moderation.window import Window
from tests.corpus.classify.texts import labelled, text_of, write

BUNDLED = sorted((Path(__file__).parents[2] / "configs" / "moderation").glob("*.yaml"))
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n" + "b3Blbn4x NzaC1r\n" * 60 + "-----END OPENSSH PRIVATE KEY-----"


def policy(**category: Any) -> Policy:
    settings = {"input": "block", "output": "mask"} | category
    return Policy(PolicySettings.model_validate({"categories": {"one": settings}}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "its categories"),
        ("{}", "`categories` is missing"),
        ("categories: {}", "categories"),
        ("categories: {a: {input: block}}", "nothing by which it is recognised"),
        ("categories: {a: {words: [b]}}", "nothing is done with it"),
        ("categories: {a: {words: [b], input: stop}}", "'block', 'mask' or 'flag'"),
        ("categories: {a: {wrods: [b], input: block}}", "unknown key"),
        ("categories: {A b: {words: [b], input: block}}", "A b"),
        ("categories: {a: {rules: [{pattern: '('}], input: block}}", "no regular expression"),
        ("categories: {a: {rules: [{pattern: 'x', window: 0}], input: block}}", "window"),
        ("categories: {a: {word_files: [absent.txt], input: block}}", "absent.txt does not exist"),
        ("categories: {a: {classifier: {model: absent}, input: block}}", "absent does not exist"),
        ("categories: {a: {pii: [name], input: block}}", "'email'"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match="policy.yaml") as error:
        load_policy(file)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_lists_lie_beside_the_policy(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# bad ones\n\nfoo bar\n  b\u00e4z \n", encoding="utf-8")
    file = tmp_path / "policy.yaml"
    file.write_text("categories: {a: {word_files: [words.txt], words: [qux], output: mask, mask: '*'}}")
    loaded = load_policy(file)
    assert check(loaded, "Foo  bar, baz qux # bad ones", "output").text == "*, * * # bad ones"
    assert check(loaded, "foo bar", "input").findings == []
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_policy(file)


def test_each_side_has_its_action() -> None:
    one = policy(words=["foo"], refusal="No.")
    blocked = check(one, "a foo b", "input")
    assert (blocked.text, blocked.blocked, one.refusal("one")) == ("a ", "one", "No.")
    assert check(one, "a foo b", "output").text == "a [removed] b"
    both = check(one, "a foo b", None)
    assert (both.text, both.blocked, both.scores) == ("a foo b", None, {"one": 1.0})
    assert [finding.action for finding in both.findings] == ["flag"]


@pytest.mark.parametrize("bomb", [r"(a+)+$", r"(a|aa)+$", r"(.*a){25}", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_rules_that_explode_end_in_time_and_count_as_found(bomb: str) -> None:
    chosen = policy(rules=[{"pattern": bomb, "window": 200}])
    begun = time.process_time()
    check(chosen, ("a" * 199 + "!") * 200, "output")
    assert time.process_time() - begun < 2
    scan = RuleScan(Rule(r"(a|aa)+$", 200, False, "one", "#"))
    found = scan.feed(Window("a" * 300 + "!" * 500), final=True)
    assert found and found[0].begin == 0


def test_rules_see_no_more_than_their_window() -> None:
    chosen = policy(rules=[{"pattern": r"<[^>]*>", "window": 40}])
    for place in range(90):
        text = "x" * place + "<" + "y" * 38 + ">" + "z" * 50
        assert check(chosen, text, "output").text == "x" * place + "[removed]" + "z" * 50
    screen = TextScreen(chosen, "output")
    assert len("".join(screen.feed("x") for _ in range(200))) >= 200 - 2 * 40


def test_keys_of_many_lines_are_never_shown() -> None:
    chosen = policy(pii=["secret"])
    text = f"Here:\n{KEY}\nand -----BEGIN nothing-----, -----BEGIN RSA PRIVATE KEY----- cut"
    screen = TextScreen(chosen, "output")
    shown = [screen.feed(one) for one in text] + [screen.feed("", final=True)]
    assert "".join(shown) == text.replace(KEY, "<SECRET>")
    assert check(chosen, KEY.replace("END", "MID"), "output").blocked is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    data = write(folder / "l.jsonl", labelled(80))
    train = ["corpus", "classifier", "train", str(data), "-o", str(folder / "m"), "--bucket-bits", "12"]
    assert main(train) == 0
    return folder / "m"


def test_a_classifier_looks_at_each_sentence_before_it_is_shown(model: Path) -> None:
    bad = Classifier.load(model).labels[0]
    chosen = policy(classifier={"model": str(model), "label": bad, "threshold": 0.6}, output="block")
    rng = random.Random(1)
    good = " ".join(f"{text_of('good', rng, 12).capitalize()}." for _ in range(8)) + " "
    text = good + text_of("bad", rng, 60).capitalize() + ". And more."
    whole = check(chosen, text, "output")
    assert whole.blocked == "one" and whole.text.startswith(good) and len(whole.text) < len(text) - 100
    screen = TextScreen(chosen, "output")
    shown = [screen.feed(one) for one in text]
    assert "".join(shown) == whole.text
    assert all(piece == "" or piece.endswith(". ") for piece in shown)
    scores = check(chosen, good, None).scores
    assert 0 < scores["one"] < 0.6 and not check(chosen, good, None).findings


@pytest.mark.parametrize("file", BUNDLED, ids=lambda file: file.stem)
def test_bundled_policies_mask_personal_data_and_leave_harmless_texts(file: Path) -> None:
    chosen = load_policy(file)
    masked = check(chosen, "Write to ann@example.com or +49 30 1234567.", "output")
    assert masked.text == "Write to <EMAIL> or <PHONE>."
    for text in (
        "How do I kill a process that hangs? Use kill -9 12345.",
        "The bomb disposal team made the area safe; nobody was hurt.",
        "He died in 1980. I want to learn how to make bread, and the recipe is at https://example.org/a?b=1.",
        "Suicide is a serious matter; in 2019 there were 10 per 100 000 people.",
    ):
        for side in ("input", "output"):
            assert check(chosen, text, side).findings == [], text


def test_the_default_policy_helps_people_in_need() -> None:
    [default] = [load_policy(file) for file in BUNDLED if file.stem == "default"]
    for text in ("i wanna say I\u2019m SUICIDAL", "I want   to kill myself.", "How do I k1ll myself?"):
        blocked = check(default, text, "input").blocked
        assert blocked is not None and "helpline" in default.refusal(blocked)
    assert check(default, "Tell me how to build a b0mb!", "input").blocked == "illicit/violent"


def test_moderate_shows_what_a_policy_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.yaml"
    categories = {"a": {"words": ["foo"], "input": "block", "output": "mask"}}
    file.write_text(yaml.safe_dump({"name": "mine", "categories": categories}))
    assert main(["moderate", str(file), "a foo", "b"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "input: block a (1.000): 'foo'",
        "input: blocked (a)",
        "output: mask a (1.000): 'foo'",
        "output: a [removed]",
        "input: nothing found",
        "output: nothing found",
    ]
    assert main(["moderate", str(file), "foo", "--side", "output", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == "mine" and told["results"][0]["text"] == "[removed]"
    assert told["results"][0]["findings"] == [
        {"category": "a", "action": "mask", "score": 1.0, "begin": 0, "end": 3}
    ]
    assert main(["moderate", str(file), "foo", "--side", "left"]) == 2
    assert "choose input, output or both" in capsys.readouterr().err
