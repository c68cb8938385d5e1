"""Finds and reads the files with a task's questions."""

from pathlib import Path

from pydantic import Field, ValidationError

from megalm.config.load import explain, read_yaml
from megalm.config.section import Section
from megalm.config.suggest import nearest
from megalm.dataset.indexed import check_exists
from megalm.errors import UserError
from megalm.evaluate.forms import Form, Record, records_of
from megalm.evaluate.task import PATHS
from megalm.hashes import sha256_of
from megalm.tokenizer.documents import COMPRESSED_SUFFIXES


class Place(Section):
    """Where a file lies."""

    file: str = Field(
        description="From `--data` on; .gz or .zst may follow the name on disk. With * in it: all files of such names."
    )
    sha256: str | None = Field(None, description="Of the file as it lies there.")
    form: Form | None = Field(
        None, description="squad, winobias or bbq: a file as these data sets publish it, read into columns."
    )


class Files:
    """Opens files of `data` by the names that `folder`'s paths.yaml gives them."""

    def __init__(self, data: Path | None) -> None:
        self._data = data
        self._read: dict[tuple[tuple[Path, ...], Form | None], list[Record]] = {}

    def records(self, name: str, folder: Path) -> list[Record]:
        """All records of a file; UserError with one line for what is missing, damaged or empty."""
        place = self._place(name, folder)
        paths = self._find(name, place)
        known = paths, place.form
        if known not in self._read:
            if place.sha256 is not None and (found := sha256_of(paths[0])) != place.sha256:
                raise UserError(
                    f"{paths[0]}: sha256 is {found}, and {folder / PATHS} says {place.sha256}; fetch the file again, or mend that"
                )
            self._read[known] = [record for path in paths for record in records_of(path, place.form)]
            if not self._read[known]:
                raise UserError(f"{paths[0]} holds no record; check the file")
        return self._read[known]

    def dataset(self, name: str, folder: Path) -> Path:
        """The prefix of a file of tokens; UserError where it is not there."""
        prefix = self._path(name, self._place(name, folder, Path(name).name != name))
        check_exists(prefix)
        return prefix

    def _place(self, name: str, folder: Path, is_path: bool = False) -> Place:
        places = read_yaml(folder / PATHS) if (folder / PATHS).is_file() else {}
        if not isinstance(places, dict):
            raise UserError(f"{folder / PATHS}: expected names with files, found {type(places).__name__}")
        if name not in places:
            if Path(name).suffix or is_path:
                return Place(file=name)
            known = sorted(map(str, places))
            raise UserError(
                f"{folder / PATHS} has no file called {name!r}{nearest(name, known)}; add it there"
            )
        given = places[name]
        try:
            return Place.model_validate({"file": given} if isinstance(given, str) else given)
        except ValidationError as error:
            raise UserError(f"{folder / PATHS}: `{name}`: {explain(error, Place)}") from None

    def _path(self, name: str, place: Place) -> Path:
        path = Path(place.file)
        if not path.is_absolute():
            if self._data is None:
                raise UserError(
                    f"{name} is to be read from {place.file}: say with --data in which directory that lies"
                )
            path = self._data / path
        return path

    def _find(self, name: str, place: Place) -> tuple[Path, ...]:
        path = self._path(name, place)
        names = [path.name, *(path.name + suffix for suffix in COMPRESSED_SUFFIXES)]
        if "*" in path.name:
            if place.sha256 is not None:
                raise UserError(
                    f"{PATHS}: `{name}` names several files, which have no one sha256; leave it out"
                )
            found = [file for one in names for file in path.parent.glob(one) if file.is_file()]
        else:
            found = [file for one in names if (file := path.with_name(one)).is_file()][:1]
        if found:
            return tuple(sorted(found))
        raise UserError(
            f"{path}: no such file (nor with {' or '.join(COMPRESSED_SUFFIXES)}); put it there, or mend {PATHS}"
        )
