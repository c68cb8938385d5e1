"""Steps count all they see, samples do not depend on order, and tallies survive their file."""

import random

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.registry import STEPS, step_class
from megalm.corpus.step import Collective, ForLanguages, Step, Transform
from megalm.corpus.tally import SAMPLES, Tally
from megalm.errors import UserError
from tests.corpus.steps import Shout

EVENTS = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 30), st.floats(-1e6, 1e6)), max_size=40
)


def fill(tally: Tally, events) -> Tally:
    for reason, number, value in events:
        tally.documents_in += 1
        tally.remove(reason, f"id{number}", f"text {number}", {"url": f"u{number}"})
        tally.counters["seen"] += number
        tally.observe("value", value)
        tally.observe("label", reason)
    return tally


@given(EVENTS, st.randoms(), st.integers(0, 40))
def test_tallies_add_up_in_any_order_and_any_split(events, shuffler, cut):
    whole = fill(Tally("s"), events).to_json()
    shuffled = list(events)
    shuffler.shuffle(shuffled)
    merged = Tally("s")
    for part in (shuffled[:cut], shuffled[cut:]):
        merged.add(Tally.from_json(fill(Tally("s"), part).to_json()))
    assert merged.to_json() == whole


def test_samples_are_few_and_texts_in_them_short():
    tally = Tally("s")
    numbers = list(range(1000))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        tally.remove("why", f"id{number}", "x" * 10_000, {})
    (samples,) = tally.to_json()["samples"].values()
    assert len(samples) == SAMPLES and all(len(sample["text"]) == 1000 for sample in samples)
    assert all(sample["characters"] == 10_000 for sample in samples)


def test_a_step_that_runs_again_starts_to_count_anew():
    step = Shout()
    for _ in range(2):
        documents = [Document("small", "1"), Document("a zebra", "2")]
        assert [document.text for document in step.run(iter(documents))] == ["SMALL"]
        tally = step.tally
        assert (tally.documents_in, tally.documents_out, tally.removed) == (2, 1, {"shout.zebra": 1})
        assert (tally.characters_in, tally.characters_out, tally.counters["letters"]) == (12, 5, 12)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_registered_step_is_there_under_its_name_with_its_options_described(name):
    step = step_class(name)
    assert issubclass(step, Step | Collective) and step.name == name
    assert all(field.description for field in step.Settings.model_fields.values())


def test_an_unknown_step_names_the_nearest():
    with pytest.raises(UserError, match="unknown step `lenght`: did you mean 'length'"):
        step_class("lenght")


class Upper(Transform):
    name = "upper"
    Settings = ForLanguages

    def change(self, document):
        document.text = document.text.upper()
        return "upper.odd" if len(document.text) % 2 else None


def test_steps_pass_documents_in_other_languages_by_and_count_them():
    step = Upper(ForLanguages(languages=["en", "de"]))
    languages = {"a": "en", "bb": "fr", "cc": "de", "dd": None, "eee": "la"}
    documents = [
        Document(text, text, metadata={"language": language} if language else {})
        for text, language in languages.items()
    ]
    assert [document.text for document in step.run(iter(documents))] == ["bb", "CC", "dd", "eee"]
    assert step.tally.removed == {"upper.odd": 1}
    assert step.tally.counters == {"in other languages": 2, "of no known language": 1}
    assert [document.text for document in Upper().run([Document("bb", "1")])] == ["BB"]


def test_labels_hold_no_halves_of_characters():
    tally = Tally("s")
    tally.observe("label", "a\ud800")
    assert tally.histograms == {"label": {"a\ufffd": 1}}


def test_samples_hold_what_json_and_people_can_read():
    tally = Tally("s")
    metadata = {
        "url": "u" * 500,
        "list": [1],
        "nan": float("nan"),
        "n": 3,
        "half": "\ud800",
        **{f"k{i}": i for i in range(50)},
    }
    tally.sample("kept", "\ud800", "text \ud800", metadata)
    (sample,) = tally.to_json()["samples"]["kept"]
    assert (sample["id"], sample["text"]) == ("\ufffd", "text \ufffd") and len(sample["metadata"]) == 20
    assert sample["metadata"]["url"] == "u" * 200 and "list" not in sample["metadata"]
    assert (sample["metadata"]["nan"], sample["metadata"]["n"], sample["metadata"]["half"]) == (
        "nan",
        3,
        "\ufffd",
    )
