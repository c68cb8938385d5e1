"""What a reader does while the page waits for the server: leaves, comes back, changes their mind, deletes; and where the focus is then."""

from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.serve.browser import Browser
from tests.serve.conftest import Site, reader
from tests.serve.servers import Server, until
from tests.serve.test_page_feedback import kept

pytestmark = pytest.mark.timeout(300)
ANSWERS = "POST /v1/chat/completions"
HOLD = """
    const real = window.fetch;
    window.held = [];
    window.fetch = (address, options) => {
      if (!`${options.method} ${address.pathname}`.startsWith(arguments[0])) return real(address, options);
      return new Promise((resolve, reject) => {
        window.held.push(() => real(address, options).then(resolve, reject));
      });
    };
"""
BREAK = """
    const real = window.fetch;
    window.fetch = async (address, options) => {
      const answer = await real(address, options);
      if (!address.pathname.endsWith('completions')) return answer;
      const from = answer.body.getReader();
      let parts = 0;
      const pull = async (to) => {
        const { done, value } = await from.read();
        if (done || (parts += 1) > 3) {
          from.cancel();
          to.error(new TypeError('network error'));
        } else to.enqueue(value);
      };
      return new Response(new ReadableStream({ pull }), answer);
    };
"""


def hold(page: Browser, requests: str = ANSWERS) -> None:
    """Requests that begin so are not sent before `release`."""
    page.run(HOLD, requests)


def release(page: Browser, order: int = 1) -> None:
    """Send what was held, one after the other is answered; order: -1 is the last one first."""
    script = """
        const waiting = window.held.splice(0);
        for (const go of arguments[0] < 0 ? waiting.reverse() : waiting) await go();
        await new Promise((done) => setTimeout(done, 100));
    """
    page.run(script, order)


def ask_and_hold(page: Browser, text: str) -> None:
    page.type(text, Keys.ENTER, into=".composer textarea")
    page.until(lambda: page.run("return window.held.length"))


def switch(page: Browser, name: str) -> Any:
    return page.driver.find_element("css selector", f'dialog [name="{name}"]')


def test_consent_that_is_withdrawn_meanwhile_stays_withdrawn(page: Browser, site: Site) -> None:
    page.remember(consent=True)
    hold(page)
    ask_and_hold(page, "how many hands")
    page.click("#open-settings")
    assert switch(page, "consent").is_selected()
    switch(page, "consent").send_keys(" ")
    page.toast("This conversation trains no model.")
    assert switch(page, "consentLater").is_selected() and not switch(page, "consent").is_selected()
    page.click("dialog .primary")
    release(page)
    page.answer()
    until(lambda: [one["consent"] for one in kept(page, site)] == [False])
    name = kept(page, site)[0]["id"]
    reader(page, site).patch(f"/v1/feedback/conversations/{name}", json={"consent": True})  # another tab
    page.type("of the hand", Keys.ENTER, into=".composer textarea")
    page.until(lambda: page.run("return window.held.length"))
    release(page)
    page.answer()
    assert [(one["consent"], len(one["exchanges"])) for one in kept(page, site)] == [(True, 2)]


def test_consent_can_be_withdrawn_from_an_answer_that_broke_off(page: Browser, site: Site) -> None:
    page.remember(consent=True, maxTokens=400)
    page.run(BREAK)
    assert "broke off" in page.ask("how many hands").text
    page.click("#open-settings")
    switch(page, "consent").send_keys(" ")
    page.toast("This conversation trains no model.")
    until(lambda: [one["consent"] for one in kept(page, site)] == [False])


def test_each_switch_of_consent_shows_what_is_used(page: Browser, site: Site) -> None:
    page.ask("how many hands")
    page.remember(consent=True)
    page.click("nav a", "Compare")
    page.click("#open-settings")
    assert not switch(page, "consent").is_selected() and switch(page, "consentLater").is_selected()
    page.click("dialog .primary")
    page.type("the end of the text", Keys.ENTER, into=".composer textarea")
    page.find(".picks")
    assert [one["consent"] for one in kept(page, site)] == [True, False]
    page.click("#open-settings")
    assert switch(page, "consent").is_selected()  # of the comparison
    switch(page, "consent").send_keys(" ")
    page.toast("This conversation trains no model.")
    assert [one["consent"] for one in kept(page, site)] == [False, False]
    page.click("dialog .primary")
    page.click("#new-chat")
    page.click("#open-settings")
    assert switch(page, "consent").is_selected()
    switch(page, "consentLater").send_keys(" ")
    assert not switch(page, "consent").is_selected()


def test_one_comes_back_to_an_answer_that_is_being_written(page: Browser, site: Site) -> None:
    hold(page)
    ask_and_hold(page, "how many hands")
    page.click("#new-chat")
    assert not page.all(".answer")
    page.click("#open-settings")
    page.click("dialog .danger", "Delete all my data")
    page.toast("is being written")
    page.click("dialog .primary")
    page.click("#conversations a", "how many hands")
    page.find('.answer[aria-busy="true"]')
    page.click('[aria-label="Edit this message"]')
    page.rewrite(".question textarea", "the end", Keys.CONTROL + Keys.ENTER)
    page.toast("is being written")
    assert page.find(".question textarea").get_property("value") == "the end"
    page.type(Keys.ESCAPE)
    assert page.all('.answer[aria-busy="true"]')
    release(page)
    assert page.answer().text and page.last_text()
    assert len(page.all(".answer")) == len(page.all("#conversations a")) == 1
    page.click("nav a", "Compare")
    page.type("of the hand", Keys.ENTER, into='[aria-label="Compare"] .composer textarea')
    page.until(lambda: page.run("return window.held.length") == 2)
    page.click("nav a", "Chat")
    page.click("#open-settings")
    page.click("dialog .danger", "Delete all my data")
    page.toast("is being written")
    page.click("dialog .primary")
    release(page)
    page.until(lambda: len(page.all("#conversations a")) == 2)
    assert sorted(len(one["exchanges"]) for one in kept(page, site)) == [1, 2]


def test_without_a_store_there_is_one_copy_of_a_conversation(server: Server, chromium: Browser) -> None:
    chromium.open(server.url, None, maxTokens=8, seed=1)
    chromium.find("#model option")
    chromium.ask("how many")
    hold(chromium)
    ask_and_hold(chromium, "hands")
    chromium.click("#new-chat")
    chromium.run("document.querySelector('[aria-label=\"Delete how many\"]').focus()")
    chromium.type(Keys.ENTER)
    chromium.toast("is being written")
    chromium.click("#conversations a", "how many")
    chromium.find('.answer[aria-busy="true"]')
    release(chromium)
    chromium.answer()
    texts = [one.text for one in chromium.all(".answer-body")]
    chromium.driver.refresh()
    chromium.until(lambda: [one.text for one in chromium.all(".answer-body")] == texts)
    assert len(texts) == 2 and len(chromium.all("#conversations a")) == 1
    assert chromium.complaints() == []


def test_who_was_forgotten_in_another_tab_begins_anew(page: Browser, site: Site) -> None:
    page.ask("how many hands")
    before = page.run("return localStorage.getItem('megalm.user')")
    here = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.driver.get(f"{site.server.url}/health")
    page.run("localStorage.removeItem('megalm.user')")
    page.driver.close()
    page.driver.switch_to.window(here)
    page.until(lambda: not page.all(".answer"))
    page.find("#conversations", "None yet.")
    page.ask("the end of the text")
    assert page.run("return localStorage.getItem('megalm.user')") != before
    assert [one["title"] for one in kept(page, site)] == ["the end of the text"]


def test_a_late_conversation_does_not_replace_a_new_one(page: Browser, site: Site) -> None:
    page.ask("how many hands")
    page.click("#new-chat")
    hold(page, "GET /v1/feedback/conversations/")
    page.click("#conversations a", "how many hands")
    page.until(lambda: page.run("return window.held.length"))
    page.click("#new-chat")
    release(page)
    assert not page.all(".answer") and page.find("#title").text == "New chat"
    page.ask("the end of the text")
    assert [len(one["exchanges"]) for one in kept(page, site)] == [1, 1]


def test_another_key_begins_anew(page: Browser) -> None:
    page.ask("how many hands")
    page.click("#open-settings")
    page.rewrite('dialog [name="key"]', "wrong", Keys.TAB)
    page.click("dialog .primary")
    page.toast("none of this server's")
    assert not page.all(".answer, #conversations a")


def test_answers_with_the_same_words_have_their_own_followers(page: Browser) -> None:
    page.remember(temperature=0)
    page.ask("how many hands")
    first = page.last_text()
    page.click('[aria-label="Try again"]')
    page.find(".turner", "2 / 2")
    page.answer()
    assert page.last_text() == first
    page.ask("and the end")
    for _ in range(2):
        page.until(lambda: len(page.all(".answer")) == 2)
        page.click('[aria-label="Previous answer"]')
        page.find(".turner", "1 / 2")
        assert len(page.all(".answer")) == 1
        focus_comes_to(page, "Next answer")
        page.driver.refresh()
    page.until(lambda: len(page.all(".answer")) == 2)


def narrow(page: Browser, width: int) -> None:
    page.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=False
    )


def focus_comes_to(page: Browser, name: str) -> None:
    page.until(lambda: page.focused() == name)


def test_the_drawer_gives_way(page: Browser) -> None:
    narrow(page, 390)
    hold(page)
    ask_and_hold(page, "how many hands")
    page.click("#open-side")
    focus_comes_to(page, "Close the menu")
    page.type(Keys.ESCAPE)
    page.until(lambda: not page.all("#side"))
    release(page)
    assert "Stopped" not in page.answer().text
    page.click("#open-side")
    focus_comes_to(page, "Close the menu")
    narrow(page, 1200)
    page.until(lambda: not page.run("return document.getElementById('stage').inert"))
    page.until(lambda: page.run("return document.activeElement.id") == "main")


def test_the_list_keeps_the_focus_and_what_was_loaded(page: Browser, site: Site) -> None:
    client = reader(page, site)
    for number in range(32):
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": f"the end {number}"}],
            "max_tokens": 1,
            "store": True,
        }
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    page.driver.refresh()
    page.until(lambda: len(page.all("#conversations a")) == 30)
    page.click("#more")
    page.until(lambda: len(page.all("#conversations a")) == 32)
    hold(page)
    ask_and_hold(page, "how many hands")
    page.run("[...document.querySelectorAll('#conversations a')].at(-1).focus()")
    assert page.focused() == "the end 0"
    release(page)
    page.answer()
    page.until(
        lambda: page.run("return !document.querySelector('[aria-label=\"Delete how many hands\"]').hidden")
    )
    assert page.focused() == "the end 0" and len(page.all("#conversations a")) == 33
    for title, neighbour in (("the end 5", "the end 4"), ("the end 0", "the end 1")):
        page.run(f"document.querySelector('[aria-label=\"Delete {title}\"]').focus()")
        page.type(Keys.ENTER)
        page.click("dialog .danger")
        focus_comes_to(page, neighbour)


def test_the_dashboard_keeps_the_focus_and_shows_the_span_that_was_chosen_last(page: Browser) -> None:
    page.ask("how many hands")
    page.click('[aria-label="Good answer"]')
    page.toast("Saved")
    page.click("nav a", "Feedback")
    page.until(lambda: page.focused() == "Time" and page.all("summary"))
    page.click("summary")
    hold(page, "GET /v1/feedback/summary")
    script = (
        "const select = document.querySelector('.dashboard select'); select.focus(); select.value = arguments[0];"
        "select.dispatchEvent(new Event('change'))"
    )
    page.run(script, "7")
    page.run(script, "90")
    release(page, order=-1)
    rows = "return document.querySelectorAll('[aria-label=\"Feedback by day\"] tbody tr').length"
    assert page.run(rows) == 90
    assert page.focused() == "Time"
    before = page.run("return document.querySelector('svg.chart').getAttribute('viewBox')")
    narrow(page, 900)
    page.until(
        lambda: page.run("return document.querySelector('svg.chart').getAttribute('viewBox')") != before
    )
    assert page.run("return document.querySelectorAll('details[open]').length") == 1
    assert page.focused() == "Time"
