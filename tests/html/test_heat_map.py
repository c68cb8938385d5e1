"""Heat maps: a cell is as dark as its share, neighbours of one darkness are one stretch, and rows tell what is in them."""

import re

import numpy as np
from lxml import etree

from megalm.html.heat_map import LEVELS, heat_map


def cells_of(svg: str, shape: tuple[int, int]) -> np.ndarray:
    """The darkness of each cell, read from the paths."""
    found = np.zeros(shape)
    for path in etree.fromstring(svg).iter("path"):
        stretches = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path.get("d"))
        assert "".join(f"M{a} {b}h{c}v1h-{d}z" for a, b, c, d in stretches) == path.get("d")
        for begin, row, width, back in stretches:
            assert width == back
            found[int(row), int(begin) : int(begin) + int(width)] += float(path.get("fill-opacity"))
    return found


def test_cells_are_as_dark_as_their_shares() -> None:
    shares_RC = np.random.default_rng(0).random((7, 9)) ** 3
    shares_RC[0], shares_RC[1] = 0, 1
    svg = heat_map(shares_RC, ["row"] * 7, "title")
    np.testing.assert_allclose(cells_of(svg, (7, 9)), np.rint(shares_RC * LEVELS) / LEVELS)
    assert svg.count("M0 1h9v1h-9z") == 1  # a whole row is one stretch


def test_what_is_told_is_escaped_and_each_row_has_it() -> None:
    svg = heat_map(np.eye(2), ["<b>", "second"], 'a "title"')
    tree = etree.fromstring(svg)
    assert [node.text for node in tree.iter("title")] == ["<b>", "second"]
    assert tree.get("role") == "img" and tree.get("aria-label") == 'a "title"'
