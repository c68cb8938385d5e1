"""A policy ready for use: its lists, expressions and classifiers, shared by all texts that are checked."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from megalm.config.load import explain, read_yaml
from megalm.corpus.clean.pii_find import MASKS
from megalm.errors import UserError
from megalm.moderation.fold import Fold
from megalm.moderation.personal import KeyScan, PersonalScan
from megalm.moderation.phrases import Phrase, Phrases, PhraseScan
from megalm.moderation.rules import Rule, RuleScan
from megalm.moderation.settings import Action, CategorySettings, PolicySettings, ScoreSettings
from megalm.moderation.window import Scan

Side = Literal["input", "output"]
MASK = "[removed]"


class Policy:
    """What is looked for, and what is done where it is found."""

    def __init__(self, settings: PolicySettings, folder: Path = Path()) -> None:
        """folder: where relative paths begin. UserError for a list or a classifier that is none."""
        self.settings = settings
        self._fold = Fold(settings.disguised)
        self._phrases: dict[str, list[Phrase]] = {}
        self._makers: dict[str, list[Callable[[], Scan]]] = {}
        for name, category in settings.categories.items():
            mask = MASK if category.mask is None else category.mask
            words = category.words + [word for file in category.word_files for word in _words(folder / file)]
            self._phrases[name] = [Phrase(word, name, mask) for word in words]
            self._makers[name] = [*_rules(category, name, mask), *_personal(category, name)]
            if category.classifier is not None:
                self._makers[name].append(_scores(category.classifier, folder, name, mask))
        self._automata: dict[tuple[str, ...], Phrases] = {}

    def actions(self, side: Side | None) -> dict[str, Action]:
        """What is done with each category on that side; None: on whatever side, all are flagged."""
        actions: dict[str, Action] = {}
        for name, category in self.settings.categories.items():
            action = "flag" if side is None else category.input if side == "input" else category.output
            if action is not None:
                actions[name] = action
        return actions

    def refusal(self, category: str) -> str:
        """What people are told where it is blocked."""
        return self.settings.categories[category].refusal or self.settings.refusal

    def scans(self, categories: Sequence[str]) -> list[Scan]:
        """New scans of one text for these categories."""
        found = [make() for name in categories for make in self._makers[name]]
        phrases = [phrase for name in categories for phrase in self._phrases[name]]
        if phrases:
            key = tuple(categories)
            if key not in self._automata:
                self._automata[key] = Phrases(phrases, self._fold)
            found.append(PhraseScan(self._automata[key]))
        return found


def load_policy(path: str | Path) -> Policy:
    """Read a policy file; UserError with one line for what is wrong with it, or with a file that it names."""
    path = Path(path)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a policy is expected, with its categories: `categories: ...`")
    try:
        settings = PolicySettings.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, PolicySettings)}") from None
    try:
        return Policy(settings, path.parent)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _words(file: Path) -> list[str]:
    """Of a file, one a line."""
    if not file.is_file():
        raise UserError(f"word list {file} does not exist; check word_files")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"word list {file} is not UTF-8; convert it") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _rules(category: CategorySettings, name: str, mask: str) -> list[Callable[[], Scan]]:
    rules = [Rule(one.pattern, one.window, one.ignore_case, name, mask) for one in category.rules]
    return [lambda rule=rule: RuleScan(rule) for rule in rules]  # type: ignore[misc]


def _personal(category: CategorySettings, name: str) -> list[Callable[[], Scan]]:
    masks = MASKS if category.mask is None else dict.fromkeys(MASKS, category.mask)
    found: list[Callable[[], Scan]] = []
    if category.pii:
        found.append(lambda: PersonalScan(category.pii, name, masks))
    if "secret" in category.pii:
        found.append(lambda: KeyScan(name, masks["secret"]))
    return found


def _scores(settings: ScoreSettings, folder: Path, name: str, mask: str) -> Callable[[], Scan]:
    try:
        from megalm.corpus.classify.model import Classifier
        from megalm.moderation.scores import ScoredLabel, ScoreScan
    except ModuleNotFoundError as error:
        raise UserError(f"a classifier needs {error.name}: pip install 'megalm[corpus]'") from None
    classifier = Classifier.load(folder / settings.model)
    scored = ScoredLabel(classifier, settings.label, settings.threshold, name, mask)
    return lambda: ScoreScan(scored)
