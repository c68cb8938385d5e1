"""A real browser drives the page: asks, follows the stream, stops, tries again, edits, looks into tokens, with keys alone, in the dark."""

import json
import math

import pytest
from selenium.webdriver.common.keys import Keys

from tests.serve.browser import Browser
from tests.serve.conftest import HOSTILE, Site, reader
from tests.serve.servers import until

pytestmark = pytest.mark.timeout(300)
BAD = "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"


def test_without_a_key_one_is_asked_for(site: Site, chromium: Browser) -> None:
    chromium.open(site.server.url, None, maxTokens=8, seed=1)
    field = chromium.find('dialog [name="key"]')
    chromium.until(lambda: chromium.focused() == "API key")
    field.send_keys("wrong", Keys.TAB)
    chromium.click("dialog .primary")
    chromium.toast("none of this server's")
    chromium.rewrite('dialog [name="key"]', site.key, Keys.TAB)
    chromium.click("dialog .primary")
    chromium.find("#model option")
    assert chromium.ask("how many").text
    assert chromium.run("return Object.values(localStorage).join()").count(site.key) == 0
    assert chromium.complaints() == []


def stop_one(page: Browser) -> int:
    """Ask until an answer is long enough to be stopped while it is written; how many times its text had grown until then."""
    for seed in range(30):  # the model ends some of its answers at once
        page.remember(maxTokens=4000, seed=seed)
        page.click("#new-chat")
        page.type("how many hands", Keys.ENTER, into=".composer textarea")
        lengths = {0}
        while len(lengths) < 4 and page.all('.answer[aria-busy="true"], .send[aria-label="Stop"]'):
            lengths.add(len(page.find(".answer .answer-body").text))
        page.type(Keys.ESCAPE)
        if "Stopped." in page.answer().text:
            return len(lengths)
    raise AssertionError("no answer was long enough")


def test_an_answer_grows_and_stops_where_the_reader_stops_it(page: Browser, site: Site) -> None:
    assert stop_one(page) > 3
    assert page.find(".send").accessible_name == "Send"
    text = page.last_text()
    assert text
    until(lambda: site.server.metric("megalm_open_texts") == 0)
    assert page.last_text() == text
    client = reader(page, site)
    until(lambda: client.get("/v1/feedback/conversations").json()["data"][0]["title"] == "how many hands")
    name = client.get("/v1/feedback/conversations").json()["data"][0]["id"]
    [exchange] = client.get(f"/v1/feedback/conversations/{name}").json()["exchanges"]
    assert exchange["choices"][0]["finish_reason"] == "interrupted" and exchange["choices"][0]["content"]
    page.click('[aria-label="Good answer"]')  # what was kept of it can be rated
    page.toast("Saved: a good answer.")


def test_retry_and_rewording_keep_the_former_answers(page: Browser) -> None:
    page.ask("how many hands")
    first = page.last_text()
    page.click('[aria-label="Try again"]')
    page.find(".turner", "2 / 2")
    page.answer()
    second = page.last_text()
    assert second != first
    page.click('[aria-label="Edit this message"]')
    page.rewrite(".question textarea", "the end of the text", Keys.CONTROL + Keys.ENTER)
    page.find(".turner", "3 / 3")
    page.answer()
    assert page.find(".question .bubble").text == "the end of the text"
    page.click('[aria-label="Previous answer"]')
    assert (page.find(".question .bubble").text, page.last_text()) == ("how many hands", second)
    page.click('[aria-label="Previous answer"]')
    assert page.last_text() == first
    page.ask("and of the hand")  # goes on from the one that is shown
    page.find(".turner", "1 / 3")
    assert len(page.all(".answer")) == 2


def test_settings_reach_the_model(page: Browser, site: Site) -> None:
    page.click("#open-settings")
    for name, value in (("temperature", "0.9"), ("topP", "0.8"), ("maxTokens", "12"), ("seed", "5")):
        page.rewrite(f'dialog [name="{name}"]', value, Keys.TAB)
    page.type("of the hand", Keys.TAB, into='dialog [name="system"]')
    page.click("dialog .primary")
    page.ask("how many hands")
    body = {
        "model": "tiny",
        "temperature": 0.9,
        "top_p": 0.8,
        "max_tokens": 12,
        "seed": 5,
        "logprobs": True,
        "messages": [
            {"role": "system", "content": "of the hand"},
            {"role": "user", "content": "how many hands"},
        ],
    }
    client = site.server.client(headers={"Authorization": f"Bearer {site.key}"})
    told = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    page.click('.actions [aria-label="Token probabilities"]')
    chips = page.all(".token-row .token")
    assert len(chips) == len(told["logprobs"]["content"])
    for chip, token in zip(chips, told["logprobs"]["content"], strict=True):
        share = 100 * math.exp(token["logprob"])
        name = chip.get_attribute("aria-label").rsplit(", ", 1)[1].removesuffix("%")
        assert float(name.removeprefix("<")) == pytest.approx(share, abs=0.51 if share >= 10 else 0.051)


def test_tokens_tell_their_alternatives_to_the_keyboard(page: Browser) -> None:
    page.ask("how many hands")
    page.click('.actions [aria-label="Token probabilities"]')
    chips = page.all(".token-row .token")
    chips[0].send_keys("")
    for place in range(3):
        panel = page.find(".token-panel table")
        rows = panel.find_elements("css selector", "tr")
        assert len(rows) >= 5 and len(panel.find_elements("css selector", "tr.taken")) == 1
        assert page.focused() == chips[place].get_attribute("aria-label")
        page.type(Keys.ARROW_RIGHT)
    page.type(Keys.END)
    assert page.focused() == chips[-1].get_attribute("aria-label")
    assert not page.all(".answer-body")
    page.click('.actions [aria-label="Token probabilities"]')
    assert page.all(".answer-body") and not page.all(".token")


def test_html_and_scripts_are_shown_and_not_run(page: Browser) -> None:
    page.run("[...document.querySelectorAll('#model option')].at(-1).selected = true")
    page.run("document.querySelector('#model').dispatchEvent(new Event('change'))")
    page.ask(BAD)
    assert page.find(".question .bubble").text == BAD
    assert page.find(".answer .who").text == HOSTILE
    page.click('[aria-label="Edit this answer"]')
    page.rewrite(".answer textarea", BAD, Keys.CONTROL + Keys.ENTER)
    page.find(".answer-body", "<script>")
    page.find("#conversations a", "<script>")
    assert page.run("return document.querySelectorAll('main script, main img, #side li img').length") == 0
    assert page.driver.title.startswith("<script>")
    page.driver.refresh()
    page.find(".answer-body", BAD[:8])
    assert page.find("#title").text.startswith("<script>")


MARKDOWN = [
    ("a **b** *c* `d<e>`", "<p>a <strong>b</strong> <em>c</em> <code>d&lt;e&gt;</code></p>"),
    ("# x\ny\nz", "<h3>x</h3><p>y<br>z</p>"),
    ("- a\n- b\n  - c\n\n1. d", "<ul><li>a</li><li><p>b</p><ul><li>c</li></ul></li></ul><ol><li>d</li></ol>"),
    ("> q\n\n---", "<blockquote><p>q</p></blockquote><hr>"),
    ("snake_case_name 2 * 3 * 4 **", "<p>snake_case_name 2 * 3 * 4 **</p>"),
    ("<b>x</b>&amp;", "<p>&lt;b&gt;x&lt;/b&gt;&amp;amp;</p>"),
    ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
    ("[x](data:text/html,y)", "<p>[x](data:text/html,y)</p>"),
    (
        '[x](https://e.org/"onclick=)',
        '<p>[x](https://e.org/"onclick=)</p>',
    ),
    (
        "[<i>](https://e.org/a?b=c)",
        '<p><a href="https://e.org/a?b=c" rel="noopener noreferrer nofollow" target="_blank">&lt;i&gt;</a></p>',
    ),
]


def test_markdown_becomes_elements_and_the_rest_stays_text(page: Browser) -> None:
    script = (
        "const {markdown} = await import('/page/markdown.js'); const place = document.createElement('div');"
        "return arguments[0].map(text => { place.replaceChildren(...markdown(text)); return place.innerHTML; })"
    )
    assert page.run(script, [text for text, _ in MARKDOWN]) == [html for _, html in MARKDOWN]
    code = page.run(script, ["```py\n<b>\n# x\n``` \nend", "```\nopen"])
    assert "<code>&lt;b&gt;\n# x</code>" in code[0] and code[0].endswith("<p>end</p>")
    assert "<code>open</code>" in code[1]


def test_no_text_holds_the_page_up(page: Browser) -> None:
    bombs = ["*a ", "_a", "`", "[a](", "> ", "- ", "**_", "```\n", "1. \n"]
    script = (
        "const {markdown} = await import('/page/markdown.js'); const begun = performance.now();"
        "arguments[0].forEach(bomb => markdown(bomb.repeat(20000))); return performance.now() - begun"
    )
    assert page.run(script, bombs) < 20_000  # squared time takes minutes


def test_the_stream_is_read_whatever_the_pieces(page: Browser) -> None:
    script = """
        const {events} = await import('/page/api.js');
        const bytes = new TextEncoder().encode('data: {"a": "é😀"}\\r\\n\\r\\n: note\\n\\ndata: [DONE]\\n\\n');
        const found = [];
        for (const size of [1, 3, 1000]) {
          const pieces = new ReadableStream({ start(to) {
            for (let at = 0; at < bytes.length; at += size) to.enqueue(bytes.slice(at, at + size));
            to.close();
          } });
          const lines = [];
          for await (const line of events(pieces)) lines.push(line);
          found.push(lines);
        }
        return found;
    """
    assert page.run(script) == [['{"a": "é😀"}', "[DONE]"]] * 3


def walk(page: Browser, key: str, end: str) -> list[str]:
    """The names of what gets the focus on the way to `end`."""
    names: list[str] = []
    while not names or names[-1] != end:
        page.type(key)
        names.append(page.focused())
        assert len(names) < 60, f"{end} is not reached: {names}"
    return names


def test_everything_can_be_done_with_keys_alone(page: Browser) -> None:
    page.until(lambda: page.focused() == "Write a message")
    for names in (
        walk(page, Keys.SHIFT + Keys.TAB, "Skip to the content"),
        walk(page, Keys.TAB, "Write a message"),
    ):
        assert {"New chat", "Chat", "Compare", "Feedback", "Settings", "Model", "Dark colours"} <= set(names)
    walk(page, Keys.SHIFT + Keys.TAB, "Skip to the content")
    page.type(Keys.ENTER)
    assert page.run("return document.activeElement.id") == "main"
    assert len(walk(page, Keys.TAB, "Write a message")) == 2  # the messages, then the field
    page.type("how many" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "hands")
    assert page.driver.switch_to.active_element.get_property("value") == "how many\nhands"
    page.type(Keys.ENTER)
    page.answer()
    assert page.focused() == "Write a message"
    names = walk(page, Keys.SHIFT + Keys.TAB, "Edit this message")
    assert {"Copy", "Try again", "Edit this answer", "Token probabilities"} <= set(names)
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_screen_readers_hear_whole_sentences(page: Browser) -> None:
    script = """
        const {Speech} = await import('/page/speech.js');
        const speech = new Speech(), heard = [];
        const place = document.getElementById('spoken');
        const text = 'One two. Three four? Five\\nsix 1.5 and so';
        for (let end = 1; end <= text.length; end += 1) {
          const before = place.children.length;
          speech.hear(text.slice(0, end), end === text.length);
          if (place.children.length > before) heard.push(place.lastChild.textContent);
        }
        return heard;
    """
    assert page.run(script) == ["One two.", "Three four?", "Five", "six 1.5 and so"]
    assert (
        page.find("main") and page.driver.find_element("id", "spoken").get_attribute("aria-live") == "polite"
    )
    page.ask("how many hands")
    heard = page.run(
        "return [...document.querySelectorAll('#spoken p')].map(one => one.textContent).join(' ')"
    )
    said = page.run("return document.querySelector('.answer-body').textContent")
    assert heard.split()[:1] and set("".join(heard.split())) >= set("".join(said.split()))


CONTRAST = """
    const place = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (color) => {
      place.clearRect(0, 0, 1, 1); place.fillStyle = color; place.fillRect(0, 0, 1, 1);
      return [...place.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (node) => {
      for (let one = node; one; one = one.parentElement) {
        const found = rgba(getComputedStyle(one).backgroundColor);
        if (found[3] === 255) return found;
      }
      return [255, 255, 255];
    };
    const bad = [];
    for (const node of document.querySelectorAll('body *')) {
      const own = [...node.childNodes].some(one => one.nodeType === 3 && one.textContent.trim());
      if (!own || !node.checkVisibility({opacityProperty: true, visibilityProperty: true}) || node.closest('.unseen, .skip, :disabled, svg')) continue;
      const [a, b] = [light(rgba(getComputedStyle(node).color)), light(ground(node))];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) bad.push([node.className, node.textContent.slice(0, 30), ratio]);
    }
    return bad;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_switch_and_can_be_read(page: Browser, scheme: str) -> None:
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    grounds = {"light": "rgb(250, 249, 246)", "dark": "rgb(21, 23, 26)"}
    ground = "return getComputedStyle(document.body).backgroundColor"
    page.until(lambda: page.run(ground) == grounds[scheme])
    page.ask("how many hands")
    page.click('.actions [aria-label="Token probabilities"]')
    page.click(".token-row .token")
    assert page.run(CONTRAST) == []
    page.click("#open-settings")
    assert page.run(CONTRAST) == []
    page.click("dialog .primary")
    other = "dark" if scheme == "light" else "light"
    page.click("#theme")
    page.driver.refresh()
    page.find("#model option")
    assert page.run(ground) == grounds[other]
    assert page.run(CONTRAST) == []


def test_narrow_screens_hold_everything(page: Browser) -> None:
    page.command(
        "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True
    )
    page.ask("how many hands " * 6 + "x" * 80)
    wide = """return [document.documentElement, ...document.querySelectorAll('.scroll')]
        .filter(one => one.scrollWidth > one.clientWidth).length"""
    for view in ("Chat", "Compare", "Feedback"):
        page.until(lambda: not page.all("#side"))
        page.click("#open-side")
        page.until(lambda: page.focused() == "Close the menu")
        page.click("#side nav a", view)
        page.find("main > section:not([hidden])")
        assert page.run(wide) == 0
    page.click("#open-side")
    page.type(Keys.ESCAPE)
    page.until(lambda: page.focused() == "Open the menu" and not page.all("#side"))


def test_a_server_that_is_gone_is_told_of(page: Browser) -> None:
    page.command("Network.enable")
    page.command(
        "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
    )
    try:
        assert "cannot be reached" in page.ask("how many hands").text
    finally:
        page.command(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
    page.click('[aria-label="Try again"]')
    page.until(lambda: "tokens in" in page.answer().text)
    assert len(page.all(".answer")) == 1 and not page.all(".turner button")


def test_conversations_are_saved_as_files(page: Browser) -> None:
    page.ask("how many hands")
    text = page.last_text()
    page.click("#open-settings")
    page.click("dialog .button", "Markdown")
    page.click("dialog .button", "JSON")
    found = page.downloads / "how-many-hands.md", page.downloads / "how-many-hands.json"
    until(lambda: all(path.is_file() for path in found))
    assert "## You\n\nhow many hands\n\n## tiny" in found[0].read_text(encoding="utf-8")
    [exchange] = json.loads(found[1].read_text(encoding="utf-8"))["exchanges"]
    assert exchange["messages"] == [{"role": "user", "content": "how many hands"}]
    assert "".join(exchange["choices"][0]["content"].split())[:4] == "".join(text.split())[:4]
