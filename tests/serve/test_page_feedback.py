"""A real browser says what it thinks of answers; what it said is looked up at the server, counted on the page, saved as files, and deleted."""

import json
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.serve.browser import Browser
from tests.serve.conftest import HOSTILE, Site, reader
from tests.serve.servers import until

pytestmark = pytest.mark.timeout(300)
FEEDBACK = "/v1/feedback"


def kept(page: Browser, site: Site) -> list[dict[str, Any]]:
    """The reader's conversations with all that is in them, the newest first."""
    client = reader(page, site)
    names = [one["id"] for one in client.get(f"{FEEDBACK}/conversations").json()["data"]]
    return [client.get(f"{FEEDBACK}/conversations/{name}").json() for name in names]


def counts(page: Browser, site: Site) -> dict[str, Any]:
    found: dict[str, Any] = reader(page, site).get(f"{FEEDBACK}/summary?days=30").json()
    return found


def test_a_thumb_counts_at_once_and_takes_a_reason_and_a_comment(page: Browser, site: Site) -> None:
    page.ask("how many hands")
    page.click('[aria-label="Bad answer"]')
    page.toast("Saved: a bad answer.")
    [conversation] = kept(page, site)
    choice = conversation["exchanges"][0]["choices"][0]
    assert choice["rating"] == {"value": -1, "reason": None, "comment": None}
    page.until(lambda: page.run("return document.activeElement.type") == "radio")
    page.type(" ")
    page.type("<b>no</b>", into=".rating textarea")
    page.click(".rating .primary")
    page.until(lambda: not page.all(".rating"))
    rated = {"value": -1, "reason": "wrong", "comment": "<b>no</b>"}
    assert kept(page, site)[0]["exchanges"][0]["choices"][0]["rating"] == rated
    page.driver.refresh()
    assert page.find('[aria-label="Bad answer"]').get_attribute("aria-pressed") == "true"
    page.click('[aria-label="Good answer"]')
    page.toast("Saved: a good answer.")
    assert kept(page, site)[0]["exchanges"][0]["choices"][0]["rating"]["value"] == 1
    page.type(Keys.ESCAPE)
    page.until(lambda: page.focused() == "Good answer" and not page.all(".rating"))


def test_two_models_are_compared_without_their_names(page: Browser, site: Site) -> None:
    before = counts(page, site)["totals"]["comparisons"]
    page.click("nav a", "Compare")
    page.find(".compare-head option")
    page.type("how many hands", Keys.ENTER, into=".composer textarea")
    page.find(".picks")
    assert [one.text for one in page.all(".column h2")] == ["A", "B"]
    page.click(".picks .button", "A is better")
    page.toast("Saved: A is better.")
    assert not page.all(".picks button:enabled")
    shown = [
        one.text.removeprefix(f"{letter} ") for one, letter in zip(page.all(".column h2"), "AB", strict=True)
    ]
    assert sorted(shown) == sorted(["tiny", HOSTILE])
    found = counts(page, site)
    assert found["totals"]["comparisons"] == before + 1
    assert next(row for row in found["by_model"] if row["model"] == shown[0])["wins"] >= 1
    [conversation] = kept(page, site)
    assert [one["model"] for one in conversation["exchanges"]] in (shown, shown[::-1])
    assert len({one["choices"][0]["content"] for one in conversation["exchanges"]}) == 2


def test_two_answers_of_a_conversation_are_compared(page: Browser, site: Site) -> None:
    before = counts(page, site)["totals"]["comparisons"]
    first = page.ask("how many hands").find_element("css selector", ".answer-body").text
    page.click('[aria-label="Try again"]')
    page.find(".turner", "2 / 2")
    page.answer()
    page.click('[aria-label="Compare with another answer"]')
    assert page.find("dialog .column").text.endswith(first)
    page.click("dialog .picks .button", "A is better")
    page.find(".turner", "1 / 2")  # the one that was picked goes on
    assert page.find(".answer .answer-body").text == first
    assert counts(page, site)["totals"]["comparisons"] == before + 1


def test_an_edit_trains_with_consent_alone(page: Browser, site: Site) -> None:
    page.ask("how many hands")
    page.click('[aria-label="Edit this answer"]')
    page.rewrite(".answer textarea", "Two hands.", Keys.CONTROL + Keys.ENTER)
    page.find(".answer-body", "Edited by you.")
    assert kept(page, site)[0]["exchanges"][0]["choices"][0]["edit"] == "Two hands."
    page.click("nav a", "Feedback")
    page.click('[data-form="sft"]')
    page.toast("nothing of this kind")
    page.click("#open-settings")
    for name, told in (("consent", "this conversation may"), ("consentLater", "new conversations may")):
        switch = page.driver.find_element("css selector", f'[name="{name}"]')
        assert not switch.is_selected()
        switch.send_keys(" ")
        page.toast(told)
    assert kept(page, site)[0]["consent"] is True
    page.click("dialog .primary")
    page.click('[data-form="sft"]')
    file = page.downloads / "feedback-sft.jsonl"
    until(file.is_file)
    assert "Two hands." in file.read_text(encoding="utf-8")
    json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    page.click("#new-chat")
    page.ask("the end")
    assert kept(page, site)[0]["consent"] is True


def test_a_conversation_goes_on_after_the_page_was_closed(page: Browser, site: Site) -> None:
    page.ask("how many hands")
    page.ask("and the end")
    texts = [one.text for one in page.all(".answer-body")]
    parents = [one["reply"] for one in kept(page, site)[0]["exchanges"]]
    address = page.driver.current_url
    page.driver.get("about:blank")
    page.driver.get(address)
    page.until(lambda: [one.text for one in page.all(".answer-body")] == texts)
    page.ask("of the hand")
    exchanges = kept(page, site)[0]["exchanges"]
    assert [one["reply"] for one in exchanges[:2]] == parents and len(exchanges[2]["messages"]) == 5
    page.run("localStorage.removeItem('megalm.user')")
    page.driver.refresh()
    page.toast("")
    page.find("#conversations", "None yet.")
    assert not page.all(".answer")


def test_the_dashboard_shows_what_the_server_counts(page: Browser, site: Site) -> None:
    page.ask("how many hands")
    page.click('[aria-label="Good answer"]')
    page.toast("Saved")
    page.click("nav a", "Feedback")
    page.find(".dashboard .tiles")
    found = counts(page, site)
    tiles = dict(zip([one.text for one in page.all("dt")], [one.text for one in page.all("dd")], strict=True))
    assert tiles["Answers"] == str(found["totals"]["exchanges"])
    assert tiles["Rated"] == str(found["totals"]["up"] + found["totals"]["down"])
    page.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    rows = page.run(
        "return [...document.querySelectorAll('[aria-label=\"Feedback by model\"] tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    keys = ("model", "up", "down", "wins", "losses", "ties")
    assert rows == [[str(row[key]) for key in keys] for row in found["by_model"]]
    days = page.run("return document.querySelectorAll('[aria-label=\"Feedback by day\"] tbody tr').length")
    assert days == 30
    titles = page.run("return [...document.querySelectorAll('svg.chart title')].map(one => one.textContent)")
    assert len(titles) >= 3 and f"{found['totals']['up']} good" in titles[0]
    bars = page.run(
        "return [...document.querySelectorAll('svg.chart rect.good')].map(bar => +bar.getAttribute('height'))"
    )
    assert max(bars) > 0


def test_conversations_are_renamed_and_deleted_and_so_is_everything(page: Browser, site: Site) -> None:
    for text in ("how many hands", "the end of the text", "of the hand"):
        page.click("#new-chat")
        page.ask(text)
    page.find("#conversations a", "of the hand")
    page.run("document.querySelector('[aria-label=\"Rename of the hand\"]').focus()")
    page.type(Keys.ENTER)
    page.rewrite("dialog input", BOLD, Keys.ENTER)
    page.find("#conversations a", BOLD)
    assert page.find("#title").text == BOLD
    page.run("document.querySelector('[aria-label=\"Delete the end of the text\"]').focus()")
    page.type(Keys.ENTER)
    page.click("dialog .danger")
    page.until(lambda: len(page.all("#conversations a")) == 2)
    assert [one["title"] for one in kept(page, site)] == [BOLD, "how many hands"]
    client = reader(page, site)
    page.click("#open-settings")
    page.click("dialog .danger", "Delete all my data")
    page.click("dialog .danger", "Delete everything")
    page.find("#conversations", "None yet.")
    assert client.get(f"{FEEDBACK}/conversations").json()["data"] == []
    assert not page.all(".answer")


BOLD = "<b>bold</b>"
