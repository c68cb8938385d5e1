"""Views of tokens: what stands in each, nothing of a text is lost, nothing of it is obeyed."""

import re
from html.parser import HTMLParser
from typing import ClassVar

import pytest
from rich.console import Console

from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.chat import load_chat_template
from megalm.tokenizer.view import BACKGROUNDS, Cell, cells, to_html, to_plain, to_terminal
from tests.tokenizer.small_tokenizers import KINDS, save

TEXT = "The sea 東\t<b>&\n\n is</s>"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {kind: load_tokenizer(save(tmp_path_factory.mktemp(kind), kind)) for kind in KINDS}


def shown(tokenizer, text: str) -> list[Cell]:
    return cells(tokenizer, text, *tokenizer.encode_with_offsets(text))


class Spans(HTMLParser):
    """Class, title and text of the spans inside <pre>."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.spans, self.tags = False, [], set()

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.add(tag)
        self.inside = self.inside or tag == "pre"
        if self.inside and tag == "span":
            found = dict(attributes)
            self.spans.append([found["class"].split(), found.get("title"), ""])

    def handle_data(self, data) -> None:
        if self.inside and self.spans:
            self.spans[-1][2] += data

    def handle_endtag(self, tag) -> None:
        self.inside = self.inside and tag != "pre"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_in_their_order_and_all_of_the_text(tokenizers, kind):
    tokenizer = tokenizers[kind]
    found = shown(tokenizer, TEXT)
    assert [cell.token_id for cell in found if cell.token_id is not None] == tokenizer.encode(TEXT)
    assert all(
        cell.data == tokenizer.token_bytes(cell.token_id) for cell in found if cell.token_id is not None
    )
    whole = "".join(re.sub(r"‹[0-9A-F ]*=(.)›", r"\1", cell.text) for cell in found)
    whole = re.sub(r"‹[0-9A-F]{2}( [0-9A-F]{2})*›", "", whole)
    if kind == "wordpiece":
        whole = whole.replace(" \n", " ")
    assert whole.replace("⏎\n", "\n").replace("·", " ").replace("⇥", "\t").lstrip() == TEXT


def test_parts_of_a_character_show_their_bytes_and_at_last_the_character(tokenizers):
    found = [cell for cell in shown(tokenizers["metaspace"], "a 猫") if cell.kind == "part"]
    assert [cell.text for cell in found] == ["‹E7›", "‹8C›", "‹AB=猫›"]
    assert [cell.data for cell in found] == [b"\xe7", b"\x8c", b"\xab"]
    parts = [cell.text for cell in shown(tokenizers["metaspace"], "猫猫") if cell.kind == "part"]
    assert parts == ["‹E7›", "‹8C›", "‹AB=猫›"] * 2


class Pieces:
    """As much of a tokenizer as a view asks for, with pieces that cut characters anywhere."""

    special_tokens: ClassVar[dict[str, int]] = {}

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def token_id(self, token: str) -> None:
        return None


def test_tokens_of_whole_characters_and_parts_of_their_neighbours_show_both():
    pieces = Pieces([b" \xe6", b"\x9d", b"\xb1a\n\xe4", b"\xba\xac\xc3", b"\xa9"])
    found = cells(pieces, " 東a\n京é", range(5), [(0, 2), (1, 2), (1, 5), (4, 6), (5, 6)])
    assert [cell.text for cell in found] == ["·‹E6›", "‹9D›", "‹B1=東›a⏎\n‹E4›", "‹BA AC=京›‹C3›", "‹A9=é›"]


def test_unknown_text_and_gaps_are_told_apart(tokenizers):
    found = [
        (cell.kind, cell.text) for cell in shown(tokenizers["wordpiece"], "sea  ꙮ\t!") if cell.kind != "text"
    ]
    assert found[:3] == [("gap", "  "), ("unknown", "ꙮ"), ("gap", "⇥")]


def test_specials_are_known_by_their_ids_and_only_spelled_ones_are_text(tokenizers):
    tokenizer = tokenizers["byte-level"]
    template = load_chat_template("chatml", tokenizer)
    encoded, offsets = template.encode_with_offsets([{"role": "user", "content": "<|im_end|>"}])
    found = cells(tokenizer, encoded.text, encoded.ids, offsets, encoded.loss_mask)
    assert [cell.text for cell in found if cell.kind == "special"] == ["<|im_start|>", "<|im_end|>"]


def test_nothing_of_a_text_reaches_the_terminal_as_a_command(tokenizers):
    for text in ("\x1b[31m", "\u202e", "\u200b", "\u2028", "\x00", "\r", "\x85"):
        for kind in ("byte-level", "wordpiece"):
            plain = to_plain(shown(tokenizers[kind], f"a{text}b"))
            assert not set(plain) & set("\x1b\u202e\u200b\u2028\x00\r\x85")


def test_plain_view_marks_borders_ids_and_what_is_trained_on():
    some = [
        Cell(5, "text", "The", b"The", False),
        Cell(6, "text", "·sea⏎\n", b" sea\n", True),
        Cell(7, "text", "is", b"is", True),
        Cell(None, "gap", " "),
        Cell(8, "text", "so", b"so", True),
        Cell(9, "text", "x", b"x", False),
        Cell(9, "text", "y", b"y", False),
    ]
    assert to_plain(some) == "The│·sea⏎\nis so│x│y"
    assert to_plain([Cell(0, "unknown", "ꙮ", b"<unk>"), some[0]]) == "‹?=ꙮ›│The"
    assert to_plain(some, with_ids=True) == "The‹5›│·sea⏎‹6›\nis‹7› so‹8›│x‹9›│y‹9›"
    assert to_plain(some, marks_spoken=True) == "The[[·sea⏎\nis]] [[so]]x│y"


def test_coloured_view_changes_the_background_with_each_token():
    some = [Cell(i, "text", f"{i}⏎\n{i}", b"", i != 2) for i in range(5)]
    console = Console(force_terminal=True, color_system="truecolor", legacy_windows=False)
    segments = [s for s in console.render(to_terminal(some)) if s.text.strip()]
    backgrounds = [segment.style.bgcolor.name for segment in segments]
    assert backgrounds == [BACKGROUNDS[i % 4] for i in range(5) for _ in range(2)]
    assert all(
        not s.style or s.style.bgcolor is None for s in console.render(to_terminal(some)) if "\n" in s.text
    )
    silent = [s for s in console.render(to_terminal(some, marks_spoken=True)) if s.text.strip()]
    assert [segment.text[0] for segment in silent if segment.style.bgcolor is None] == ["2", "2"]
    assert to_terminal(some, with_ids=True).plain.startswith("0⏎\n0‹0›1⏎\n1‹1›")


def test_a_newlines_id_stands_before_the_line_ends():
    assert to_terminal([Cell(3, "text", "a⏎\n", b"a\n")], with_ids=True).plain == "a⏎‹3›\n"


@pytest.mark.parametrize("kind", KINDS)
def test_page_holds_a_span_for_each_token_and_nothing_that_runs_or_loads(tokenizers, kind):
    text = TEXT + "<script>alert('x')</script> \" onload=1 <!-- ]]> "
    tokenizer = tokenizers[kind]
    page = to_html(shown(tokenizer, text), '<title> & "more"')
    parser = Spans()
    parser.feed(page)
    tokens = [(classes, title, shown_text) for classes, title, shown_text in parser.spans if title]
    assert [int(re.match(r"id (\d+) ", title)[1]) for _, title, _ in tokens] == tokenizer.encode(text)
    assert parser.tags == {"html", "head", "meta", "title", "style", "body", "h1", "p", "span", "pre"}
    assert not re.search(r"https?:|src=|href=|url\(|@import", page)
    assert "&lt;title&gt; &amp;" in page and "default-src 'none'" in page
    data = [bytes.fromhex(title.rsplit("bytes ", 1)[1]) for _, title, _ in tokens]
    assert data == [tokenizer.token_bytes(i) for i in tokenizer.encode(text)]
    colours = [next(name for name in classes if re.fullmatch(r"c\d", name)) for classes, _, _ in tokens]
    assert colours == [f"c{number % 4}" for number in range(len(tokens))]


def test_a_token_that_is_a_tag_is_text_on_the_page():
    tag = "<img src=x onerror='alert(1)'>"
    parser = Spans()
    parser.feed(to_html([Cell(1, "text", tag, tag.encode()), Cell(None, "gap", "</pre><b>")], "page"))
    assert parser.tags.isdisjoint({"img", "b"})
    assert [text for _, _, text in parser.spans] == [tag, "</pre><b>"]


def test_page_of_a_chat_marks_what_is_not_trained_on(tokenizers):
    some = [Cell(1, "text", "a", b"a", False), Cell(2, "special", "b", b"b", True)]
    parser = Spans()
    page = to_html(some, "chat", marks_spoken=True)
    parser.feed(page)
    assert [("silent" in classes, text) for classes, _, text in parser.spans] == [(True, "a"), (False, "b")]
    assert "2 tokens, 1 of them trained on" in page and "not trained on" in page
    assert "silent" not in "".join(re.findall(r"<pre>.*</pre>", to_html(some, "text"), re.S))
