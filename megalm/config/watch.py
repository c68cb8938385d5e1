"""Section `watch`: what the ranks of a run notice of each other."""

from pydantic import Field

from megalm.config.section import Section


class WatchConfig(Section):
    """What the ranks notice of each other: hangs and slow ranks."""

    hang_seconds: float = Field(
        600.0,
        ge=0,
        description="Without a sign of progress on any rank for so long, the run ends and says which rank hangs; at least 4 x the "
        "longest time between two signs so far. 0 is off.",
    )
    start_seconds: float = Field(
        1800.0,
        ge=0,
        description="The same before the first step is finished: building, loading, compiling.",
    )
    interval: int = Field(
        50,
        ge=0,
        description="Steps between comparisons of the ranks' speed, on which a slow rank is named; 0 is off.",
    )
    slow_z: float = Field(
        3.5,
        gt=0,
        description="A rank is slow where its time lies so many robust standard deviations above that of the others with the "
        "same work (modified z-score, Iglewicz and Hoaglin 1993) ...",
    )
    slow_ratio: float = Field(
        1.3, gt=1, description="... and is so many times theirs, in two comparisons in a row."
    )
