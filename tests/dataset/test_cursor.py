"""The position in the data: skipped samples never come, and the state survives a checkpoint."""

import json

from megalm.dataset import Cursor


def test_take_counts_up():
    cursor = Cursor()
    assert cursor.take(3).tolist() == [0, 1, 2]
    assert cursor.take(2).tolist() == [3, 4]
    assert cursor.take(0).tolist() == []
    assert cursor.next_sample == 5


def test_skip_passes_over_the_next_samples():
    cursor = Cursor(10)
    cursor.skip(4)
    assert cursor.take(3).tolist() == [14, 15, 16]


def test_ranges_ahead_are_left_out_wherever_they_begin():
    cursor = Cursor()
    cursor.skip(2, start=7)
    cursor.skip(3, start=2)
    cursor.skip(2, start=4)
    cursor.skip(1, start=9)
    assert cursor.skipped == [(2, 6), (7, 10)]
    assert cursor.take(5).tolist() == [0, 1, 6, 10, 11]


def test_ranges_in_any_order_that_overlap_are_put_right():
    assert Cursor(0, [(6, 9), (1, 3), (2, 5)]).take(4).tolist() == [0, 5, 9, 10]


def test_taking_in_pieces_of_any_size_gives_the_same_samples():
    def taken(size: int) -> list[int]:
        cursor = Cursor(0, [(1, 3), (4, 5), (8, 11)])
        return [sample for _ in range(12 // size) for sample in cursor.take(size).tolist()]

    expected = [0, 3, 5, 6, 7, 11, 12, 13, 14, 15, 16, 17]
    assert [taken(size) for size in (1, 2, 3, 4, 6, 12)] == [expected] * 6


def test_going_back_and_skipping_avoids_the_bad_range():
    cursor = Cursor()
    cursor.take(8)
    state = cursor.to_json()
    cursor.take(8)
    bad = cursor.next_sample
    cursor.take(4)
    back = Cursor.from_json(json.loads(json.dumps(state)))
    back.skip(4, start=bad)
    assert back.take(12).tolist() == [8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23]


def test_state_survives_json():
    cursor = Cursor(5, [(7, 9), (20, 30)])
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor
