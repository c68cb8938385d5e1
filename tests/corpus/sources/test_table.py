"""JSONL, CSV, Parquet and chats: every good row once, bad ones counted."""

import json
import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from megalm.corpus.shards import from_line, to_line
from megalm.corpus.sources.table import DEEPEST
from tests.corpus.sources.reading import read


def test_jsonl_rows_become_documents_with_metadata(tmp_path):
    rows = [
        {"id": 7, "text": "one", "score": 0.5, "metadata": {"lang": "en"}},
        {"text": "two\u2028still two", "source": "theirs"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    documents, _ = read("jsonl", tmp_path / "a.jsonl")
    assert [(d.id, d.text, d.metadata) for d in documents] == [
        ("7", "one", {"score": 0.5, "lang": "en", "source": "jsonl"}),
        (documents[1].id, "two\u2028still two", {"source": "theirs"}),
    ]
    documents, _ = read("jsonl", tmp_path / "a.jsonl", name="mine", keep=["lang"])
    assert [d.metadata for d in documents] == [{"lang": "en", "source": "mine"}, {"source": "mine"}]


@pytest.mark.parametrize("cut", [1, 10, 33, 1000])
def test_jsonl_cut_anywhere_gives_each_line_once(tmp_path, cut):
    lines = [json.dumps({"text": "x" * (n % 13) + str(n)}) for n in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    whole = [(d.id, d.text) for d in read("jsonl", tmp_path / "a.jsonl")[0]]
    assert [(d.id, d.text) for d in read("jsonl", tmp_path / "a.jsonl", cut)[0]] == whole and len(whole) == 50


def test_bad_lines_are_counted_and_the_rest_is_read(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"{not json",
        b'{"other": "no text"}',
        b'["no object"]',
        b'{"text": 5}',
        b'{"text": "  "}',
        b'{"text": "gr\xfc\xdfe"}',
        b'{"text": "half \\ud800 pair"}',
        b"",
        b"[" * 100_000,
        b'{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, counters = read("jsonl", tmp_path / "a.jsonl")
    assert [d.text for d in documents] == ["good", "gr\ufffd\ufffde", "half \ufffd pair", "last"]
    assert counters == {"broken": 5, "empty": 1, "invalid_utf8": 2}


def test_what_a_shard_could_not_hold_is_mended_or_counted(tmp_path):
    deep = ["[" * levels + "]" * levels for levels in (DEEPEST - 1, DEEPEST + 1, 900)]
    lines = [f'{{"text": "{number}", "deep": {value}}}' for number, value in enumerate(deep)]
    lines += ['{"text": "half \\ud800 pair", "number": 123456789012345678901234567890, "x": {"y": -1e400}}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents, counters = read("jsonl", tmp_path / "a.jsonl")
    assert counters == {"broken": 2, "invalid_utf8": 1}
    written = [from_line(to_line(document)) for document in documents]
    assert [document.text for document in written] == ["0", "half \ufffd pair"]
    assert written[1].metadata["number"] == 123456789012345678901234567890.0


def test_a_giant_json_line_is_counted_within_bounded_memory(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(b'{"text": "' + b"x" * 30_000_000 + b'"}\n{"text": "short"}\n')
    tracemalloc.start()
    documents, counters = read("jsonl", tmp_path / "a.jsonl", 1_000_000, max_document_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in documents] == ["short"] and counters == {"too_large": 1} and peak < 5_000_000


def test_csv_with_quotes_lines_within_cells_and_damage(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'id,text,label\n1,"two\nlines, ""quoted""",x\n2,plain,y\n3\n4,gr\xfc\xdf,z\n'
    )
    documents, counters = read("csv", tmp_path / "a.csv")
    assert [(d.id, d.text, d.metadata["label"]) for d in documents] == [
        ("1", 'two\nlines, "quoted"', "x"),
        ("2", "plain", "y"),
        ("4", "gr\ufffd\ufffd", "z"),
    ]
    assert counters == {"broken": 1, "invalid_utf8": 1}
    (tmp_path / "b.tsv").write_text("ham\thello\nspam\tbuy\n")
    documents, _ = read("csv", tmp_path / "b.tsv", columns=["label", "text"])
    assert [(d.text, d.metadata["label"]) for d in documents] == [("hello", "ham"), ("buy", "spam")]


def test_an_unclosed_quote_is_bounded(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"never closed\n' + "line of text\n" * 100_000)
    tracemalloc.start()
    documents, counters = read("csv", tmp_path / "a.csv", max_document_bytes=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counters["broken"] >= 1 and len(documents) > 90_000 and peak < 100_000_000


def test_parquet_rows_and_damage(tmp_path):
    table = pyarrow.table({"text": [f"row {n}" for n in range(1000)], "id": [f"r{n}" for n in range(1000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    documents, counters = read("parquet", tmp_path / "a.parquet")
    assert [(d.id, d.text) for d in documents] == [(f"r{n}", f"row {n}") for n in range(1000)]
    assert counters == {}
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    assert read("parquet", tmp_path / "b.parquet") == ([], {"broken": 1})


def test_chats_and_pairs_are_rendered_through_templates(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Hi {role}"}, {"role": "assistant", "content": "Hello"}]},
        {"question": "2+2?", "answer": "4"},
        {"messages": [{"role": "user"}]},
        {"question": "no answer"},
        "no object",
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    documents, counters = read("chat", tmp_path / "a.jsonl")
    assert [d.text for d in documents] == ["User: Hi {role}\nAssistant: Hello", "Question: 2+2?\nAnswer: 4"]
    assert counters == {"broken": 3}
    shared = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}]
    (tmp_path / "b.json").write_text(json.dumps(shared))
    documents, _ = read(
        "chat",
        tmp_path / "b.json",
        messages_key="conversations",
        turn="<{role}>{content}",
        roles={"user": "U"},
    )
    assert [d.text for d in documents] == ["<U>Hi<assistant>Yo"]
