"""Lists: what comes with megalm is sound, a user's file is laid over it, and terms are found as words."""

import pytest
import yaml

from megalm.corpus.bias.scan import EVERY, Scan, groups_of, scan
from megalm.corpus.bias.terms import OWN, load_terms
from megalm.corpus.words import Split
from megalm.errors import UserError
from tests.corpus.documents import document

TERMS = load_terms()


def mentions(text: str, terms=TERMS) -> dict[str, int]:
    return dict(Scan(Split(text), terms).mentions)


def test_every_list_has_words_and_pairs_go_both_ways_once():
    file = TERMS.file
    assert all(terms for lists in file.groups.values() for terms in lists.values())
    words = [word.lower() for pair in file.pairs for word in pair]
    assert len(words) == len(set(words)) and not set(words) & {word.lower() for word in file.one_way}
    female, male = file.names["female"], file.names["male"]
    assert len(female) == len(male) and len({*female, *male}) == 2 * len(female)
    assert not {name.lower() for name in [*female, *male]} & set(words)


def test_every_term_of_every_list_is_found_in_a_text_that_is_that_term():
    axes = {**TERMS.file.groups, "profession": TERMS.file.professions, "attribute": TERMS.file.attributes}
    for axis, lists in axes.items():
        for group, terms in lists.items():
            for term in terms:
                assert f"{axis}.{group}" in mentions(term), term


@pytest.mark.parametrize(
    ("text", "label", "count"),
    [
        ("She told HER sister herself.", "gender.female", 4),
        ("Sheila heard; the hero's herring.", "gender.female", 0),
        ("polish the Polish silver, POLISH pride", "nationality.polish", 2),
        ("Mark my words, mary; Mary came.", "name.female", 1),
        ("An African-American, an African American.", "ethnicity.black", 2),
        ("black, men and black\nmen", "ethnicity.black", 1),
        ("A police officer, two police officers, an officer.", "profession.police_officer", 2),
        ("Y’all ain’t no fun, y'all", "dialect.southern_american", 2),
        ("Y’all ain’t no fun, y'all", "dialect.african_american", 1),
        ("his girlfriend's wife’s", "gender.female", 2),
        ("gay man and gay", "orientation.gay", 2),  # the longer term counts once
    ],
)
def test_terms_are_found_as_whole_words_in_their_case(text, label, count):
    assert mentions(text).get(label, 0) == count


def test_sentences_end_at_marks_not_at_abbreviations_and_long_ones_are_cut():
    found = Scan(Split("Dr. Smith saw her. The nurse?! He left"), TERMS)
    assert found.sentences == 3
    assert [sorted(labels) for labels in found.labels_of_sentences(TERMS.groups)] == [
        ["gender.female", "profession.doctor", "pronoun.she"],
        ["profession.nurse"],
        ["gender.male", "pronoun.he"],
    ]
    own = Scan(Split("A policeman met a nurse"), TERMS)
    assert own.mentions["profession.police_officer"] == 1
    assert own.labels_of_sentences(TERMS.groups) == [{"gender.male", "profession.nurse"}]
    assert Scan(Split("word " * 101), TERMS).sentences == 3
    assert Scan(Split(""), TERMS).sentences == 0 and Scan(Split(". !"), TERMS).sentences == 0


def test_groups_are_those_of_the_text_as_it_stands_now():
    changing = document("She sings.")
    assert set(groups_of(changing, TERMS)) == {EVERY, "gender", "gender.female", "pronoun", "pronoun.she"}
    changing.text = "He sings."
    assert set(groups_of(changing, TERMS)) == {EVERY, "gender", "gender.male", "pronoun", "pronoun.he"}
    assert groups_of(document("Nothing."), TERMS) == [EVERY] and groups_of(document(""), TERMS) == []
    assert groups_of(document("She", language="de"), TERMS) == [] and scan(document("x"), TERMS) is not None


def test_a_text_is_scanned_once_for_all_steps(monkeypatch):
    scans = []
    monkeypatch.setattr("megalm.corpus.bias.scan.Scan", lambda *a: scans.append(a) or Scan(*a))
    one = document("a text of its own")
    for _ in range(5):
        groups_of(one, TERMS)
    assert len(scans) == 1


def write(path, **sections):
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_users_axis_takes_the_place_of_that_axis_alone(tmp_path):
    own = load_terms(
        write(tmp_path / "own.yaml", groups={"religion": {"jedi": ["Jedi"]}, "fandom": {"trek": ["trekkie"]}})
    )
    assert mentions("A Jedi, a muslim, a trekkie, a woman", own) == {
        "religion.jedi": 1,
        "fandom.trek": 1,
        "gender.female": 1,
    }


def test_a_users_file_that_changes_is_read_anew(tmp_path):
    path = write(tmp_path / "own.yaml", groups={"fandom": {"trek": ["trekkie"]}})
    assert "fandom.trek" in load_terms(path).labels and load_terms(path) is load_terms(path)
    write(path, groups={"fandom": {"wars": ["stormtrooper"]}})
    assert "fandom.wars" in load_terms(path).labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("groups: {a: {b: [c", "cannot be read"),
        ("- a", "expected keys"),
        ("grups: {}", "grups"),
        ("groups: {gender: {female: she}}", "list"),
        ("groups: {gender: {'fe|male': [she]}}", "may hold letters"),
        ("groups: {profession: {nurse: [nurse]}}", "section of its own"),
        ("groups: {gender: {female: ['']}}", "has no word"),
        ("names: {female: [3]}", "string"),
    ],
)
def test_a_bad_file_is_a_users_mistake(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_terms(tmp_path / "own.yaml")
    with pytest.raises(UserError, match="check the path"):
        load_terms(tmp_path / "none.yaml")


def test_the_lists_are_part_of_the_package():
    assert {path.name for path in OWN.glob("*.yaml")} >= {"groups.yaml", "names.yaml", "pairs.yaml"}
