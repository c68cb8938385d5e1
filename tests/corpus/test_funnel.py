"""The funnel in the terminal: aligned columns, true shares, the commonest reasons."""

from megalm.corpus.funnel import funnel, funnel_lines


def tally(step: str, documents: int, characters: int, **removed: int) -> dict:
    return {"step": step, "documents_out": documents, "characters_out": characters, "removed": removed}


REPORT = {
    "sources": [tally("crawl", 1_000, 0), tally("books", 500, 30_000)],
    "steps": [
        tally("extract", 1_400, 100_000, **{"extract.empty": 100}),
        tally("quality", 600, 50_000, a=300, b=1, c=2, d=3, e=490, f=4),
    ],
    "documents": 700,  # some more than once
    "characters": 60_000,
}


def test_shares_are_of_what_was_read_and_of_the_most_text_there_was():
    rows = funnel(REPORT)
    assert [(row.kind, row.name, row.documents, row.removed) for row in rows] == [
        ("source", "crawl", 1_000, 0),
        ("source", "books", 500, 0),
        ("read", "all sources", 1_500, 0),
        ("step", "extract", 1_400, 100),
        ("step", "quality", 600, 800),
        ("kept", "kept", 700, 0),
    ]
    assert rows[4].documents_share == 0.4 and rows[4].characters_share == 0.5
    assert rows[4].reasons == [("e", 490), ("a", 300), ("f", 4), ("d", 3), ("c", 2), ("b", 1)]


def test_lines_are_aligned_and_say_how_many_reasons_there_are_more():
    assert funnel_lines(funnel(REPORT)) == [
        "step         documents          characters          removed",
        "+ crawl          1,000   66.7%           -       -",
        "+ books            500   33.3%      30,000   30.0%",
        "all sources      1,500  100.0%      30,000   30.0%",
        "extract          1,400   93.3%     100,000  100.0%  empty 100",
        "quality            600   40.0%      50,000   50.0%  e 490, a 300, f 4, d 3, 2 more",
        "kept               700   46.7%      60,000   60.0%",
    ]


def test_nothing_read_is_no_division_by_zero():
    empty = {"sources": [tally("s", 0, 0)], "steps": [], "documents": 0, "characters": 0}
    assert funnel_lines(funnel(empty))[-1].split() == ["kept", "0", "0.0%", "-", "-"]
