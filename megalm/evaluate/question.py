"""A question of a task, and what stands before its answer."""

from dataclasses import dataclass, field

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """What stands before an answer. shots: solved questions with their answers."""

    question: str
    instruction: str = ""
    shots: tuple[tuple[str, str], ...] = ()
    separator: str = "\n\n"
    delimiter: str = " "

    def text(self) -> str:
        """All of it as one text; the delimiter before the answer is the answer's."""
        solved = [question + self.delimiter + answer for question, answer in self.shots]
        return self.separator.join([part for part in (self.instruction, *solved) if part] + [self.question])

    def messages(self, system: str | None) -> Messages:
        """The same as a conversation, whose next turn is the answer."""
        found = [{"role": "system", "content": system}] if system else []
        begin = f"{self.instruction}{self.separator}" if self.instruction else ""
        for question, answer in self.shots:
            found += [{"role": "user", "content": begin + question}, {"role": "assistant", "content": answer}]
            begin = ""
        return [*found, {"role": "user", "content": begin + self.question}]


@dataclass(frozen=True)
class Question:
    """A question of a task.

    number: its record's place in the file. prompts: one, or the beginnings of a schema. options: the texts whose probability counts,
    with the one prompt or each with its own. gold: places of the right ones. references: right texts. group: by which results are
    given apart. part, unit: see `parts.Source`. marks: what else the task tells of it (bbq, refusal). ids: a document's tokens and those
    that follow (memorization); tokenizer: the hash of the one that they are of.
    """

    number: int
    where: str
    prompts: list[Prompt]
    options: list[str] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)
    entry_point: str | None = None
    group: str | None = None
    part: str | None = None
    unit: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    ids: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    tokenizer: str | None = None

    def solved(self, shot: str | None) -> tuple[str, str]:
        """The question with its answer; shot: the answer where it is told apart."""
        if self.references:
            return self.prompts[0].question, self.references[0] if shot is None else shot
        right = self.gold[0] if self.gold else 0
        return self.prompts[right if len(self.prompts) > 1 else 0].question, self.options[right]
