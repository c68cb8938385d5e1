"""Puts the questions of a task to a model and gathers what it answered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from megalm.evaluate.bias_scores import Figures, bbq_figures, pair_figures
from megalm.evaluate.encode import Encoder, Ids, Likelihood, Pair
from megalm.evaluate.figures import (
    choice_figures,
    code_figures,
    continuation_figures,
    document_figures,
    text_figures,
    verbatim_figures,
)
from megalm.evaluate.judges import Judge
from megalm.evaluate.kinds import WRITTEN
from megalm.evaluate.masked import MaskedModel
from megalm.evaluate.model import Advance, AskedModel
from megalm.evaluate.question import Prompt, Question
from megalm.evaluate.task import Task
from megalm.generate.request import GenerationOptions


@dataclass(frozen=True)
class Asked:
    """Of each question its figures and what was answered (log-probabilities or texts); truncated: questions that were cut at their
    beginning to fit into the context."""

    figures: list[Figures]
    answers: list[Any]
    truncated: int


@dataclass(frozen=True)
class Window:
    """How documents are read: tokens seen at most, and predicted at a time (see `encode.windows`)."""

    width: int
    stride: int


def work_of(task: Task, questions: Sequence[Question]) -> int:
    """What `ask` advances by in all: texts to be judged or prompts to be answered; of documents it is not known before."""
    if task.has_options or task.kind == "pairs":
        return sum(len(question.options) for question in questions)
    return len(questions)


def ask(
    model: AskedModel | MaskedModel,
    task: Task,
    questions: Sequence[Question],
    window: Window,
    advance: Advance,
    judge: Judge | None = None,
) -> Asked:
    """Ask all questions; a masked model those of pairs alone. judge: of what is written. Collective; the same on every rank."""
    if isinstance(model, MaskedModel):
        return _ask_masked(model, questions, advance)
    if task.kind in WRITTEN:
        return _ask_texts(model, task, questions, judge, advance)
    if task.kind == "perplexity":
        return _ask_documents(model, questions, window, advance)
    of_each = list(_pairs(model.encoder, task, questions))
    found = iter(model.likelihoods([pair for pairs in of_each for pair in pairs], advance))
    figures: list[Figures] = []
    answers: list[Any] = []
    truncated = 0
    for question, pairs in zip(questions, of_each, strict=True):
        likelihoods = [next(found) for _ in pairs]
        truncated += any(_is_long(pair, model.length) for pair in pairs)
        figures.append(_figures(task, question, pairs, likelihoods))
        answers.append([likelihood.logprob for likelihood in likelihoods])
    return Asked(figures, answers, truncated)


def _figures(task: Task, question: Question, pairs: Sequence[Pair], found: Sequence[Likelihood]) -> Figures:
    if task.kind == "bbq":
        return bbq_figures(question, found)
    if task.has_options:
        return choice_figures(question, pairs, found, task.metrics)
    if task.kind == "pairs":
        return pair_figures(found)
    if task.kind == "memorization":
        return verbatim_figures(pairs[0], found[0])
    return continuation_figures(found[0])


def _pairs(encoder: Encoder, task: Task, questions: Sequence[Question]) -> Iterator[list[Pair]]:
    """What is asked of each question."""
    if task.kind == "memorization":
        yield from ([Pair(*question.ids)] for question in questions if question.ids)
        return
    if task.kind == "pairs":  # whole texts, which are no turns of a conversation
        pairs = iter(encoder.text_pairs([("", text) for question in questions for text in question.options]))
    else:
        pairs = iter(encoder.pairs([option for question in questions for option in _options(question)]))
    for question in questions:
        yield [next(pairs) for _ in question.options]


def _options(question: Question) -> Iterator[tuple[Prompt, str]]:
    several = len(question.prompts) > 1
    for place, option in enumerate(question.options):
        yield question.prompts[place if several else 0], option


def _ask_masked(model: MaskedModel, questions: Sequence[Question], advance: Advance) -> Asked:
    texts = [text for question in questions for text in model.pair(*question.options)]
    found = model.likelihoods(texts, advance)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    long = sum(
        max(len(ids) for ids, _ in texts[i : i + 2]) >= model.length - 2 for i in range(0, len(texts), 2)
    )
    return Asked(
        [pair_figures(pair) for pair in pairs], [[one.logprob for one in pair] for pair in pairs], long
    )


def _is_long(pair: Pair, length: int) -> bool:
    return len(pair.context) + len(pair.continuation) > length + 1


def _ask_documents(
    model: AskedModel, questions: Sequence[Question], window: Window, advance: Advance
) -> Asked:
    texts = [question.options[0] for question in questions]
    documents = [model.encoder.document(text, window.width, window.stride) for text in texts]
    found = iter(model.likelihoods([pair for pairs in documents for pair in pairs]))
    figures = [
        document_figures(text, pairs, [next(found) for _ in pairs])
        for text, pairs in zip(texts, documents, strict=True)
    ]
    advance(len(questions))
    return Asked(figures, [one["logprob"] for one in figures], 0)


def _ask_texts(
    model: AskedModel, task: Task, questions: Sequence[Question], judge: Judge | None, advance: Advance
) -> Asked:
    prompts: list[Ids] = [model.encoder.prompt(question.prompts[0]) for question in questions]
    template = model.encoder.template
    stop = [*task.generation.stop, *(template.end_of_turn() if template else [])]
    written = task.generation
    greedy = written.samples == 1
    options = GenerationOptions(
        max_new_tokens=written.max_new_tokens,
        stop=stop,
        n=written.samples,
        greedy=greedy,
        temperature=1.0 if greedy else written.temperature,
        top_p=1.0 if greedy else written.top_p,
    )
    texts = model.texts(prompts, options, [question.number for question in questions], advance)
    if task.kind == "code":
        figures = _judged_by_rank_0(task, questions, texts, template is not None)
    elif judge is not None:
        figures = [judge.figures(question, found) for question, found in zip(questions, texts, strict=True)]
    else:
        figures = [
            text_figures(task, question, one[0]) for question, one in zip(questions, texts, strict=True)
        ]
    room = model.room(written.max_new_tokens)
    return Asked(figures, texts, sum(len(prompt) > room for prompt in prompts))


def _judged_by_rank_0(
    task: Task, questions: Sequence[Question], texts: Sequence[Sequence[str]], chat: bool
) -> list[Figures]:
    """Programs are run once, and all ranks told."""
    told: list[Any] = [code_figures(task, questions, texts, chat) if dist.get_rank() == 0 else None]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(told)
    return told[0]
