"""Bodies of requests with which clients say what they think of answers."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from megalm.feedback.opinions import Pick
from megalm.serve.api.schema import Body

ReplyId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Number = Annotated[int, Field(ge=0, lt=1000)]


class AnswerBody(Body):
    """One answer: the reply's id and its index there."""

    reply: ReplyId
    choice: Number = 0


class RatingBody(AnswerBody):
    """A thumb up or down. reason: one of the server's list for it."""

    value: Literal[1, -1]
    reason: Annotated[str, StringConstraints(max_length=64)] | None = None
    comment: Annotated[str, StringConstraints(max_length=4000)] | None = None


class ComparisonBody(Body):
    """Which of two answers to the same messages is better."""

    a: AnswerBody
    b: AnswerBody
    pick: Pick


class EditBody(AnswerBody):
    """The answer as it should have been."""

    content: Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]


class ConversationBody(Body):
    """What is changed of a conversation."""

    title: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"\S")] | None = None
    consent: bool | None = None
