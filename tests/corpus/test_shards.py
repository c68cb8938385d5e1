"""Shards: whole or absent, and what went in comes out."""

import datetime

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.shards import ReadShards, WriteShards, shard_paths, to_line
from megalm.errors import UserError


@given(
    st.text(), st.text(), st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.booleans())
)
def test_documents_come_out_as_they_went_in(tmp_path_factory, text, id, metadata):
    folder = tmp_path_factory.mktemp("shards")
    list(WriteShards(folder).run([Document(text, id, metadata=metadata)]))
    (document,) = ReadShards(folder).run()
    assert (document.text, document.id, document.metadata) == (text, id, metadata)


def test_what_json_cannot_hold_is_mended():
    odd = Document(
        "half \ud800", "i\udfff", metadata={1: datetime.date(2020, 1, 2), "a": ["\ud800", {"b": b"x"}]}
    )
    assert to_line(odd) == (
        b'{"id":"i\xef\xbf\xbd","text":"half \xef\xbf\xbd","metadata":'
        b'{"1":"2020-01-02","a":["\xef\xbf\xbd",{"b":"b\'x\'"}]}}\n'
    )


def test_a_shard_is_absent_until_its_task_is_through(tmp_path):
    def documents():
        for number in range(5):
            assert not shard_paths(tmp_path)
            yield Document("text", str(number))
        if fail:
            raise ValueError("the task ends here")

    fail = True
    with pytest.raises(ValueError):
        list(WriteShards(tmp_path).run(documents(), rank=3))
    assert not list(tmp_path.iterdir())
    fail = False
    list(WriteShards(tmp_path).run(documents(), rank=3))
    assert [path.name for path in shard_paths(tmp_path)] == ["00003.jsonl.zst"]


def test_a_shard_that_is_cut_short_is_named(tmp_path):
    list(WriteShards(tmp_path).run([Document(f"text {n}", str(n)) for n in range(1000)], 0))
    [path] = shard_paths(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"00000\.jsonl\.zst is damaged \(it is cut short"):
        list(ReadShards(tmp_path).run())


def test_tasks_share_shards_out(tmp_path):
    for rank in range(5):
        list(WriteShards(tmp_path).run([Document("text", str(rank))], rank))
    ids = [[document.id for document in ReadShards(tmp_path).run(None, rank, 2)] for rank in range(2)]
    assert ids == [["0", "2", "4"], ["1", "3"]]
