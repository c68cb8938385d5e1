"""The tasks and scores of EleutherAI's lm-evaluation-harness over our model, without a network."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm.errors import UserError
from megalm.evaluate.model import AskedModel
from megalm.evaluate.request import EvalRequest
from megalm.evaluate.results import Entry, write_results
from megalm.evaluate.run import open_asked
from megalm.evaluate.task import BUNDLE
from megalm.generate.request import GenerationOptions

for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(_name, "1")  # both libraries read it once, when they are imported
try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise UserError(f"--engine lm-eval needs lm-eval ({error}): pip install 'megalm[eval]'") from None

MAX_NEW_TOKENS = 256
"""Where a task says nothing, as in lm-eval's own models."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NORMAL = 1.96  # standard errors on each side of 95%


class HarnessModel(LM):
    """Our model as lm-eval knows models: texts in, figures and texts out.

    Every rank runs lm-eval with all questions and takes part in each call; it thinks that it is alone.
    """

    def __init__(self, model: AskedModel) -> None:
        super().__init__()
        self.model = model

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log p, whether it is what greedy decoding writes) of each request's (context, continuation)."""
        pairs = self.model.encoder.text_pairs([request.args for request in requests])
        return [(found.logprob, found.is_greedy) for found in self.model.likelihoods(pairs)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """log p of each request's (text,), seen in windows of the whole context that have nothing in common."""
        length, encoder = self.model.length, self.model.encoder
        documents = [encoder.document(request.args[0], length, length) for request in requests]
        found = iter(self.model.likelihoods([pair for pairs in documents for pair in pairs]))
        return [sum(next(found).logprob for _ in pairs) for pairs in documents]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The text that each request's (context, settings) asks for."""
        prompts = [self.model.encoder.text(request.args[0]) for request in requests]
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        texts = [""] * len(requests)
        for settings, places in alike.items():
            options = _options(json.loads(settings))
            written = self.model.texts([prompts[i] for i in places], options, places)
            for place, text in zip(places, written, strict=True):
                texts[place] = text[0]
        return texts


def _options(settings: dict[str, Any]) -> GenerationOptions:
    until = settings.get("until") or []
    length = next((settings[name] for name in _LENGTHS if settings.get(name)), MAX_NEW_TOKENS)
    drawn = bool(settings.get("do_sample", settings.get("temperature", 0)))
    return GenerationOptions(
        max_new_tokens=int(length),
        stop=[text for text in ([until] if isinstance(until, str) else until) if text],
        greedy=not drawn,
        temperature=float(settings.get("temperature") or 1.0) if drawn else 1.0,
        top_p=float(settings.get("top_p", 1.0)) if drawn else 1.0,
        top_k=int(settings.get("top_k", 0)) if drawn else 0,
    )


def main(request: EvalRequest) -> dict[str, Any]:
    """Ask lm-eval's tasks called `request.tasks`, or those in a `task_folder` of one's own; returns what results.json holds. Collective.

    Data have to lie on this machine, as the tasks say. Intervals are lm-eval's standard errors x 1.96.
    """
    if request.chat_template is not None or request.texts or request.window or request.stride:
        raise UserError("--chat, --text, --window and --stride are of --engine megalm: leave them out")
    own = request.task_folder if request.task_folder != BUNDLE else None
    manager = TaskManager(include_path=None if own is None else str(own), include_defaults=own is None)
    if unknown := [name for name in request.tasks if name not in manager.all_tasks]:
        raise UserError(
            f"lm-eval has no task {unknown[0]!r} in {own or 'its own tasks'}; check --tasks and --task-folder"
        )
    model, told = open_asked(request)
    try:
        found = simple_evaluate(
            model=HarnessModel(model),
            tasks=list(request.tasks),
            num_fewshot=request.few_shot,
            limit=request.limit,
            task_manager=manager,
            log_samples=False,
            random_seed=request.seed,
            numpy_random_seed=request.seed,
            torch_random_seed=request.seed,
            fewshot_random_seed=request.seed,
            bootstrap_iters=1000,
        )
    except (OSError, ValueError) as error:  # of data that are not there, and of malformed tasks
        raise UserError(f"lm-eval: {' '.join(str(error).split())}") from None
    finally:
        model.answers.close()
    shared: list[Entry | None] = [None]
    if dist.get_rank() == 0:  # lm-eval sums up on the first process of a machine alone
        results: Entry = {"format": 1, "model": told, "seed": request.seed, "averages": {}}
        results["tasks"] = {f"{name} (lm-eval)": entry for name, entry in _entries(found)}
        shared = [write_results(Path(request.output), results)]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(shared)
    assert shared[0] is not None
    return shared[0] | {"asked": {"questions": model.asked, "answered_before": model.known}}


def _entries(found: Any) -> Iterator[tuple[str, Entry]]:
    for name, figures in found["results"].items():
        metrics = _metrics(figures)
        if metrics:
            yield (
                name,
                {
                    "kind": "lm-eval",
                    "questions": found.get("n-samples", {}).get(name, {}).get("effective", 0),
                    "few_shot": found.get("n-shot", {}).get(name, 0),
                    "main": next(iter(metrics)),
                    "chance": None,
                    "truncated": 0,
                    "metrics": metrics,
                },
            )


def _metrics(figures: dict[str, Any]) -> dict[str, Any]:
    """`acc,none` and `acc_stderr,none` as a score with its interval."""
    found = {}
    for key, value in figures.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{metric}_stderr,{kind}")
        low, high = None, None
        if isinstance(error, int | float):
            low, high = value - _NORMAL * error, value + _NORMAL * error
        found[metric if kind == "none" else f"{metric} ({kind})"] = {"value": value, "low": low, "high": high}
    return found
