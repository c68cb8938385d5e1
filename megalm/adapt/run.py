"""The command `megalm adapt`: cleans and indexes files of a domain, trains on them with replay, compares before and after."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from megalm import atomic
from megalm.adapt.data import Blend, build_corpus_of, general_blends, index, scaled
from megalm.adapt.recipe import AdaptRecipe, load_adapt_recipe
from megalm.checkpoint import find_checkpoint, read_config, tokenizer_of
from megalm.checkpoint.directory import refuse_adapters
from megalm.config import Config, load_config
from megalm.config.load import parse_config
from megalm.dataset.fim import FimTokens
from megalm.errors import UserError
from megalm.tokenizer.load import load_tokenizer
from megalm.train.callbacks.metrics import read_metrics
from megalm.train.callbacks.sources import source_names

Row = dict[str, Any]


def main(
    recipe_path: str,
    base: str,
    files: Sequence[str],
    output: str,
    general: Sequence[str] = (),
    overrides: Sequence[str] = (),
    train: Callable[[Path], bool] | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Adapt the checkpoint `base` to the domain of `files`; everything is written below `output`.

    general: files of general text to replay and to look after; by default what the base was trained on. train: runs the
    configuration at a path and returns whether there is a result to look at, by default in this process. workers: of the
    corpus build. The same call again goes on where it was. Returns the configuration's path, the directory of the run and
    what held-out text of each kind says before and after. UserError for what the user can mend.
    """
    recipe, corpus = load_adapt_recipe(recipe_path, overrides)
    checkpoint = find_checkpoint(base)
    refuse_adapters(checkpoint)
    of_base = read_config(checkpoint)
    if not files:
        raise UserError("no files of the domain given: name some, or directories of them")
    if of_base.model.architecture != "gpt" or of_base.model.sequence_head.outputs:
        raise UserError(f"{base} predicts no next tokens, which it would be trained on: take a GPT")
    tokenizer = tokenizer_of(checkpoint, of_base)
    if tokenizer is None:
        raise UserError(f"{base}: no tokenizer in it or in its run; put the model's beside it")
    if recipe.fim_rate:
        _check_fim(tokenizer, recipe.fim_rate)
    folder = Path(output)
    replayed, guarded = general_blends(of_base, general, tokenizer, folder / "data", recipe)
    documents = build_corpus_of(corpus, files, folder / "corpus", workers)
    tokens = index([documents], tokenizer, folder / "data" / "domain", recipe.splits)
    trained = folder / "data" / "domain"
    if recipe.fim_rate:  # held-out text stays in its order: before and after are compared on it
        trained = folder / "data" / "domain_fim"
        index([documents], tokenizer, trained, recipe.splits, recipe.fim_rate)
    domain = [{"path": f"{trained}_train"}]
    blend = scaled(domain, 1 - recipe.replay) + (scaled(replayed, recipe.replay) if recipe.replay else [])
    valid = [{"path": f"{folder / 'data' / 'domain'}_valid"}, *guarded]
    config = training_config(recipe, of_base, checkpoint, tokenizer, tokens, blend, valid, folder / "run")
    path = folder / "train.yaml"
    atomic.write_text(path, yaml.safe_dump(config, sort_keys=False))
    trained_now = (train or _train_here)(path)
    rows = compare(load_config(path)) if trained_now else []
    return {"config": str(path), "run_dir": str(folder / "run"), "before_and_after": rows}


def _check_fim(tokenizer: Path, rate: float) -> None:
    """UserError before anything is made: a base's tokenizer cannot be trained again."""
    try:
        FimTokens.of(load_tokenizer(tokenizer))
    except UserError:
        raise UserError(
            f"fim_rate {rate:g} needs tokens such as <|fim_prefix|>, which the base's tokenizer {tokenizer} lacks: give fim_rate=0"
        ) from None


def training_config(
    recipe: AdaptRecipe,
    base: Config,
    checkpoint: Path,
    tokenizer: Path,
    tokens: int,
    blend: Blend,
    valid: Blend,
    directory: Path,
) -> dict[str, Any]:
    """The configuration of the training as it is written down; `tokens`: of the domain's training text."""
    given = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.config.items()}
    batch = base.batch.model_dump() | given.pop("batch", {})
    per_step = batch["global_batch_size"] * batch["seq_length"]
    optimizer, loop = given.pop("optimizer", {}), given.pop("train", {})
    steps = loop.get("steps") or math.ceil(recipe.epochs * tokens / (1 - recipe.replay) / per_step)
    found: dict[str, Any] = {
        "run": {"dir": str(directory), "load": str(checkpoint), "seed": base.run.seed},
        "task": "pretrain",
        "model": base.model.model_dump(exclude={"preset"}),
        "tokenizer": {"path": str(tokenizer)},
        "data": {"train": blend, "valid": valid},
        "batch": batch,
        "optimizer": {"warmup_steps": math.ceil(recipe.warmup * steps)} | optimizer,
        "precision": {"dtype": base.precision.dtype},
        "train": {
            "steps": steps,
            "eval_interval": math.ceil(steps / recipe.validations),
            "eval_at_start": True,
            "eval_by_source": True,
        }
        | loop,
    }
    for key, value in given.items():
        found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
    parse_config(found)  # refuses what cannot work before anything is trained
    return found


def _train_here(path: Path) -> bool:
    from megalm.train import run

    run.main(load_config(path))
    return True


def compare(config: Config) -> list[Row]:
    """Loss and perplexity on each held-out source before the first step and after the last that was validated."""
    directory = Path(config.run.dir)
    lines = [line for line in read_metrics(directory / "metrics.jsonl") if "valid_loss" in line]
    before = next((line for line in lines if line["step"] == 0), None)
    if before is None or lines[-1]["step"] == 0:
        raise UserError(f"{directory} was not trained to a validation yet; give the command again")
    rows = []
    for name in source_names(config.data.valid):
        row: Row = {"text": name, "step": lines[-1]["step"]}
        for figure in ("loss", "perplexity"):
            row[f"{figure}_before"] = before[f"valid_{figure}_{name}"]
            row[f"{figure}_after"] = lines[-1][f"valid_{figure}_{name}"]
        rows.append(row)
    return rows


def render(rows: Sequence[Row]) -> str:
    """The comparison as a table for the terminal."""
    lines = [f"{'held-out text':<32} {'perplexity before':>18} {'after':>10} {'change':>8}"]
    for row in rows:
        before, after = row["perplexity_before"], row["perplexity_after"]
        lines.append(f"{row['text'][:32]:<32} {before:>18.3f} {after:>10.3f} {after / before - 1:>+8.1%}")
    return "\n".join(lines)
