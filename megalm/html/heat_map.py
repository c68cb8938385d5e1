"""A matrix of shares as a small SVG picture: the darker a cell, the larger its share."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from megalm.html.picture import element

LEVELS = 10
"""Of darkness; a share that rounds to 0 is left blank."""


def heat_map(shares_RC: NDArray[np.float64], told: Sequence[str], title: str) -> Markup:
    """Shares of 1 in R rows and C columns. told: what the pointer is told in each row. title: for those who do not see it.

    Cells of one darkness are one path, so that pages with hundreds of maps stay small.
    """
    levels_RC = np.rint(np.clip(shares_RC, 0, 1) * LEVELS).astype(int)
    rows, columns = shares_RC.shape
    paths = [
        element("path", d=_cells(levels_RC == level), fill_opacity=level / LEVELS)
        for level in range(1, LEVELS + 1)
        if (levels_RC == level).any()
    ]
    hover = [
        element(
            "g", element("title", text), element("rect", class_="hover", x=0, y=row, width=columns, height=1)
        )
        for row, text in enumerate(told)
    ]
    return element(
        "svg",
        *paths,
        *hover,
        class_="chart heat-map",
        viewBox=f"0 0 {columns} {rows}",
        role="img",
        aria_label=title,
    )


def _cells(wanted_RC: NDArray[np.bool_]) -> str:
    """A path round the cells that are wanted, neighbours in a row together."""
    # ones where a stretch begins, and minus ones behind its end
    edges = np.diff(np.pad(wanted_RC, ((0, 0), (1, 1))).astype(int), axis=1)
    begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return "".join(
        f"M{begin} {row}h{end - begin}v1h{begin - end}z"
        for (row, begin), (_, end) in zip(begins.tolist(), ends.tolist(), strict=True)
    )
