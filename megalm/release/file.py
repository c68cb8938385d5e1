"""A release file: the checkpoints of one model that were put into service, in their order, and which of them is now; imports no torch."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from megalm import atomic
from megalm.checkpoint.directory import find_checkpoint, read_state
from megalm.checkpoint.directory import verify as compare_with_manifest
from megalm.config.load import explain
from megalm.config.section import Section
from megalm.errors import UserError
from megalm.lineage.record import model_hash, now

SUFFIX = ".release.json"


class Version(Section):
    """A checkpoint that was promoted."""

    number: int = Field(ge=1, description="From 1 on.")
    checkpoint: str = Field(description="Its directory; an absolute path.")
    step: int = Field(description="Of its training.")
    lineage: str = Field(description="Hash of its manifest, by which `megalm lineage` knows it, too.")
    promoted: str = Field(description="When: UTC, ISO 8601.")
    replaced: int | None = Field(description="Version that it took the place of; null: of none.")
    why: dict[str, Any] = Field(description="What it was judged by.")


class Switch(Section):
    """A change of the version that is current."""

    time: str = Field(description="UTC, ISO 8601.")
    before: int | None = Field(description="Version; null: none.")
    after: int = Field(description="Version.")
    how: Literal["promote", "rollback"] = Field(description="Command.")


class Release(Section):
    """What a release file holds."""

    format: Literal[1] = Field(1, description="Of this file.")
    current: int = Field(description="Number of the version in service.")
    versions: list[Version] = Field(min_length=1, description="In the order of their promotion.")
    switches: list[Switch] = Field(description="What was current when.")

    @model_validator(mode="after")
    def _is_whole(self) -> "Release":
        if [version.number for version in self.versions] != list(range(1, len(self.versions) + 1)):
            raise ValueError("versions are not numbered 1, 2, 3, ...")
        if not 1 <= self.current <= len(self.versions):
            raise ValueError(f"current is {self.current}, and there are {len(self.versions)} versions")
        return self

    @property
    def now(self) -> Version:
        """The version in service."""
        return self.versions[self.current - 1]


def is_release(path: str | Path) -> bool:
    """Whether that names a release file, there or not, and no checkpoint."""
    return Path(path).is_file() or Path(path).name.endswith(SUFFIX)


def read_release(path: str | Path) -> Release:
    """What the file at `path` holds; UserError with one line where it is missing or damaged."""
    try:
        return Release.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such release file; begin one: megalm feedback promote CHECKPOINT --release {path} --first"
        ) from None
    except ValidationError as error:
        raise UserError(
            f"{path} is no release file ({explain(error, Release)}); mend it, or take another"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no release file ({error}); mend it, or take another") from None


def checkpoint_of(version: Version) -> Path:
    """Where the version lies; UserError where it is gone, or is not any more what was promoted."""
    try:
        found = find_checkpoint(version.checkpoint)
    except UserError as error:
        raise UserError(
            f"version {version.number}: {error}; bring it back, or roll back to another"
        ) from None
    if model_hash(found) != version.lineage:
        raise UserError(
            f"version {version.number}: {found} holds another model than was promoted; bring that one back, or roll back to another"
        )
    return found


def promote(path: Path, candidate: Path, why: dict[str, Any], judged_against: int | None) -> Version:
    """Make the checkpoint `candidate` the next version, and the current one; the file is made where there is none.

    judged_against: the version that was current when it was judged; None: there was none. UserError where another is by now, or the
    candidate is damaged.
    """
    checkpoint = find_checkpoint(candidate).resolve()
    if wrong := compare_with_manifest(checkpoint):
        raise UserError(f"{wrong}; choose another checkpoint")
    with _locked(path):
        release = read_release(path) if path.exists() else None
        before = release.current if release else None
        if before != judged_against:
            raise UserError(
                f"{path}: version {before} is current, and the candidate was judged against {judged_against or 'none'}: judge it again"
            )
        versions = release.versions if release else []
        version = Version(
            number=len(versions) + 1,
            checkpoint=str(checkpoint),
            step=int(read_state(checkpoint).get("step") or 0),
            lineage=model_hash(checkpoint),
            promoted=now(),
            replaced=before,
            why=why,
        )
        switches = release.switches if release else []
        switch = Switch(time=version.promoted, before=before, after=version.number, how="promote")
        _write(
            path,
            Release(current=version.number, versions=[*versions, version], switches=[*switches, switch]),
        )
    return version


def roll_back(path: Path, to: int | None = None) -> tuple[Version, Version]:
    """Make version `to` the current one, by default the one that the current one took the place of; returns both, before and after.

    UserError where there is no such version, or its checkpoint is not there any more: nothing is changed then.
    """
    with _locked(path):
        release = read_release(path)
        before = release.now
        number = before.replaced if to is None else to
        if number is None:
            raise UserError(f"{path}: version {before.number} took the place of none; name one with --to")
        if not 1 <= number <= len(release.versions):
            raise UserError(f"{path}: there is no version {number}; there are 1 to {len(release.versions)}")
        after = release.versions[number - 1]
        if after is before:
            raise UserError(f"{path}: version {number} is current already")
        checkpoint_of(after)
        switch = Switch(time=now(), before=before.number, after=number, how="rollback")
        _write(path, release.model_copy(update={"current": number, "switches": [*release.switches, switch]}))
    return before, after


def _write(path: Path, release: Release) -> None:
    atomic.write_text(path, json.dumps(release.model_dump(), indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One command at a time; UserError where another is at work on the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is being changed by another command: wait for it") from None
        yield
