"""What the answer to a single question scores, by name."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from megalm.evaluate.bias_scores import Figures
from megalm.evaluate.corpus_scores import CORPUS_METRICS
from megalm.evaluate.encode import Likelihood, Pair
from megalm.evaluate.final_answers import after_hashes, boxed, code_of, last_number, same_answer
from megalm.evaluate.kinds import ACCURACIES
from megalm.evaluate.metrics import exact_match, rouge, token_f1
from megalm.evaluate.question import Question
from megalm.evaluate.task import Task, passes_of
from megalm.sandbox import Limits, check_sandbox, run_tests_of
from megalm.sandbox import Task as Program


def choice_figures(
    question: Question, pairs: Sequence[Pair], found: Sequence[Likelihood], metrics: Sequence[str]
) -> Figures:
    """Of a question with options: whether the likeliest one is right.

    acc: by log p; acc_norm, acc_bytes, acc_tokens: by log p a character, a byte (UTF-8), a token of the option. probability: that of the
    right options among all. gold, called: for macro_f1, by `acc`.
    """
    logprob_C = np.array([likelihood.logprob for likelihood in found])
    lengths_C: dict[str, list[int]] = {
        "acc": [1] * len(found),
        "acc_norm": [len(option) for option in question.options],
        "acc_bytes": [len(option.encode()) for option in question.options],
        "acc_tokens": [len(pair.continuation) for pair in pairs],
    }
    figures = {}
    for name in ACCURACIES:
        called = int((logprob_C / np.maximum(lengths_C[name], 1)).argmax())
        if name in metrics:
            figures[name] = float(called in question.gold)
        if name == "acc" and "macro_f1" in metrics:
            figures |= {"gold": question.gold[0], "called": called}
        if name == "acc" and "changed" in metrics:
            figures["called"] = called
    if "probability" in metrics:
        share_C = np.exp(logprob_C - logprob_C.max())
        figures["probability"] = float(share_C[question.gold].sum() / share_C.sum())
    return figures


def continuation_figures(found: Likelihood) -> Figures:
    """acc: each token is the likeliest one."""
    return {"acc": float(found.is_greedy), "logprob": found.logprob}


def document_figures(text: str, pairs: Sequence[Pair], found: Sequence[Likelihood]) -> Figures:
    """log p of a document, and what it is divided by; words are what white space parts."""
    return {
        "logprob": sum(likelihood.logprob for likelihood in found),
        "tokens": sum(len(pair.continuation) for pair in pairs),
        "bytes": len(text.encode()),
        "words": len(re.split(r"\s+", text)),
    }


def text_figures(task: Task, question: Question, text: str) -> Figures:
    """Of a written answer, after `task.extract`: what single texts score; nothing for metrics of all texts together."""
    extracted, references = extract(task, text), [extract(task, one) for one in question.references]
    figures = {}
    for name in task.metrics:
        if name == "exact_match":
            figures[name] = exact_match(extracted, references)
        elif name == "f1":
            figures[name] = token_f1(extracted, references)
        elif name == "number":
            figures[name] = float(any(same_answer(extracted, one) for one in references) and bool(extracted))
        elif name not in CORPUS_METRICS:
            figures[name] = rouge(name, [extracted], [references])
    return figures


def extract(task: Task, text: str) -> str:
    """What of a text is compared; of one that has no such thing nothing, of references without one all."""
    finders: dict[str, Callable[[str], str | None]] = {
        "whole": lambda whole: whole.strip(),
        "first_line": lambda whole: whole.strip().split("\n")[0].strip(),
        "last_number": last_number,
        "hashes": after_hashes,
        "boxed": boxed,
    }
    return finders[task.extract](text) or ""


def code_figures(
    task: Task, questions: Sequence[Question], answers: Sequence[Sequence[str]], chat: bool
) -> list[Figures]:
    """Of each question pass@k for the task's k, all programs run in the sandbox. chat: an answer holds its code in a block."""
    check_sandbox()
    programs = [
        Program(
            code_of(text) if chat else question.prompts[0].question + text,
            question.tests,
            question.entry_point,
        )
        for question, texts in zip(questions, answers, strict=True)
        for text in texts
    ]
    verdicts = iter(run_tests_of(programs, Limits()))
    found = []
    for texts in answers:
        right = sum(all(verdict.passed for verdict in next(verdicts)) for _ in texts)
        figures = {"samples": float(len(texts)), "right": float(right)}
        for name in task.metrics:
            figures[name] = pass_at(passes_of(name, len(texts), task.name), len(texts), right)
        found.append(figures)
    return found


def pass_at(k: int, samples: int, right: int) -> float:
    """Chance that of k of the samples, drawn without putting back, one is right: the unbiased estimator of arXiv:2107.03374."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def verbatim_figures(pair: Pair, found: Likelihood) -> Figures:
    """Of a document's tokens: verbatim, whether greedy decoding writes all of them; their number and log p."""
    return {
        "verbatim": float(found.is_greedy),
        "logprob": found.logprob,
        "tokens": float(len(pair.continuation)),
    }
