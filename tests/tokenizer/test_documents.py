"""Reading documents: nothing lost, nothing twice, and mistakes named by file and line."""

import gzip
import json
import random
from pathlib import Path

import pytest
import zstandard

from megalm.errors import UserError
from megalm.tokenizer.documents import expand_inputs, read_documents

TEXTS = ["one", "two\u2028still two\u0085\r", "drei ß", "", "五 " * 40, "six"]


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    path.write_bytes(("\n\n".join(lines)).encode())
    return path


def test_lines_end_at_newline_bytes_alone(jsonl):
    assert [document.text for document in read_documents(jsonl)] == TEXTS


@pytest.mark.parametrize("step", [1, 2, 7, 30, 100, 10_000])
def test_ranges_of_any_size_cover_every_document_once(jsonl, step):
    ranges = range(0, jsonl.stat().st_size, step)
    documents = [d for start in ranges for d in read_documents(jsonl, start=start, stop=start + step)]
    assert documents == list(read_documents(jsonl))


def test_offsets_are_where_lines_begin(jsonl):
    data = jsonl.read_bytes()
    for document in read_documents(jsonl):
        assert json.loads(data[document.offset :].split(b"\n")[0])["text"] == document.text


def test_ways_to_cut_text_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\r\n\n \nc\n\n\n")
    assert [d.text for d in read_documents(path)] == ["a\r\nb\r\n\n \nc\n\n\n"]
    assert [d.text for d in read_documents(path, sample_by="paragraph")] == ["a\r\nb\r\n", "c\n"]
    assert [d.text for d in read_documents(path, sample_by="line")] == ["a", "b", "c"]


def test_directories_give_their_documents_sorted(tmp_path):
    for name in ("b.jsonl", "sub/a.txt.gz", "sub/c.json.zst", "image.png", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = [tmp_path / name for name in ("b.jsonl", "sub/a.txt.gz", "sub/c.json.zst")]
    assert expand_inputs([tmp_path]) == expected


def test_of_a_directory_only_documents_are_read(tmp_path):
    others = [
        "tok/tokenizer.json",
        "tok/megalm.json",
        "tok/vocab.txt",
        "hf/tokenizer_config.json",
        "hf/special_tokens_map.json",
        "out/web_train.json",
        "out/web_train.idx",
        "out/new.build/plan.json",
        "out/new.build/0123.json",
        ".git/a.json",
        "sub/.a.jsonl.7.tmp.txt",
    ]
    documents = ["a.build/b.json", "out/web_train.jsonl", "sub/megalm.txt", "sub/vocab.txt", "tok/notes.txt"]
    for name in others + documents:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert expand_inputs([tmp_path]) == [tmp_path / name for name in documents]
    hidden = tmp_path / ".git"
    assert expand_inputs([hidden, tmp_path / "tok/vocab.txt"]) == [
        hidden / "a.json",
        tmp_path / "tok/vocab.txt",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b'{"text": "a"}', b"", b"{text}"], "line 3 is not JSON"),
        ([b'{"text": "a"}', b'{"text": 3}'], "line 2 has no text under 'text'"),
        ([b'["text"]'], "line 1 has no text under 'text' .found a list.; write one object a line"),
        ([b'{"text": null}'], "line 1 has no text under 'text' .found a NoneType.; write a text there"),
        ([b'{"a\\nb": 1, "c": 2}'], r"line 1 has no text under 'text' .found keys a b, c.; name the key"),
        ([b'{"text": "a"}', b'{"text": "\xff"}'], "line 2 is not UTF-8"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_line_is_named(tmp_path, lines, message, packed):
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError, match=message):
        list(read_documents(path))


def test_archives_of_several_parts_are_read_to_the_end(tmp_path, jsonl):
    lines = jsonl.read_bytes().split(b"\n", 4)
    parts = b"\n".join(lines[:4]) + b"\n", lines[4]
    (tmp_path / "b.jsonl.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, parts)))
    for name in ("b.jsonl.gz", "b.jsonl.zst"):
        assert list(read_documents(tmp_path / name)) == list(read_documents(jsonl))


@pytest.mark.parametrize(
    ("name", "compress"), [("a.txt.gz", gzip.compress), ("a.txt.zst", zstandard.compress)]
)
def test_a_damaged_archive_is_named(tmp_path, name, compress):
    path = tmp_path / name
    good = compress(random.Random(0).randbytes(3000).hex().encode())
    # a zst file need not have a checksum
    changed = [good[:1000] + bytes(200) + good[1200:]] if name.endswith(".gz") else []
    for damaged in (b"not compressed at all", good[:-12], good[:1000], *changed):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.txt.* is damaged .*; compress it again"):
            list(read_documents(path))


def test_wrong_inputs_are_named(tmp_path):
    (tmp_path / "a.pdf").touch()
    with pytest.raises(UserError, match="does not exist"):
        expand_inputs([tmp_path / "none.jsonl"])
    with pytest.raises(UserError, match="no known kind"):
        expand_inputs([tmp_path / "a.pdf"])
    with pytest.raises(UserError, match="no input files"):
        expand_inputs([tmp_path])


@pytest.mark.parametrize(
    "line",
    [
        '{"n": NaN, "text": "a"}',
        '{"n": 123456789012345678901234567890, "text": "a"}',
        '{"text": "b", "text": "a"}',
        '  {"text": "\\u0061", "m": {"x": [1e400, -0.0]}}\t\r',
        '{"text": "a", "deep": ' + "[" * 200 + "]" * 200 + "}",
    ],
)
def test_lines_beyond_the_fast_parser_are_read_as_the_standard_library_reads_them(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(line + "\n", encoding="utf-8")
    (document,) = read_documents(tmp_path / "a.jsonl")
    assert document.text == json.loads(line)["text"] == "a"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a\\ud800b"}', r"line 2 holds half a character \('.ud800'\)"),
        ('{"text": ' + "[" * 100_000 + "}", "line 2 cannot be read .*recursion"),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", "line 2 cannot be read .*digits"),
    ],
)
def test_hostile_lines_are_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list(read_documents(tmp_path / "a.jsonl"))
