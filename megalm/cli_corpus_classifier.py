"""The commands `megalm corpus classifier ...`: train a classifier of documents, score documents with it."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from megalm.cli_options import AsJson, SampleBy, TextKey

classifier_app = typer.Typer(
    help="Train classifiers of documents (quality, toxicity) and score documents with them.",
    no_args_is_help=True,
)

Model = Annotated[Path, typer.Argument(help="A file that `train` wrote.")]


@classifier_app.command("train")
def train(
    inputs: Annotated[
        list[Path], typer.Argument(help="JSONL files (.gz, .zst too) of labelled documents, or directories.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of the classifier, e.g. quality.safetensors.")
    ],
    text_key: TextKey = "text",
    label_key: Annotated[
        str, typer.Option(help="Key of a JSON line that holds the label; nested ones with dots.")
    ] = "label",
    positive: Annotated[
        list[str] | None,
        typer.Option(help="A label that is looked for, against all others; may be repeated."),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the texts, by their hash, to measure on; 0 for none.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Another seed holds other texts out.")] = 0,
    balance: Annotated[
        bool, typer.Option("--balance", help="Let every label weigh the same, however many documents it has.")
    ] = False,
    c: Annotated[
        list[float] | None,
        typer.Option(
            "--c", help="Inverse strength of the penalty on weights; repeat it to have the best taken."
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(help="Parts of the cross-validation that chooses threshold and --c.")
    ] = 5,
    threshold: Annotated[
        float | None, typer.Option(help="Set the threshold; by default the best F1.")
    ] = None,
    precision: Annotated[
        float | None, typer.Option(help="Take the lowest threshold with this precision.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Take the threshold that this share of the documents reaches.")
    ] = None,
    min_documents: Annotated[int, typer.Option(help="Leave out n-grams that fewer documents have.")] = 2,
    word_ngrams: Annotated[int, typer.Option(help="Longest n-gram of words; 0 for none.")] = 2,
    min_char_ngram: Annotated[int, typer.Option(help="Shortest n-gram of characters.")] = 3,
    max_char_ngram: Annotated[int, typer.Option(help="Longest n-gram of characters; 0 for none.")] = 5,
    bucket_bits: Annotated[int, typer.Option(help="N-grams are hashed to two to this power buckets.")] = 20,
    max_characters: Annotated[int, typer.Option(help="How much of a text is looked at.")] = 20_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier on labelled documents, choose its threshold, measure it on held-out documents."""
    from megalm.corpus.classify.features import FeatureSettings
    from megalm.corpus.classify.train import TrainSettings, train_classifier
    from megalm.errors import UserError

    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; choose another output, or replace it with --overwrite")
    settings = TrainSettings(
        text_key=text_key,
        label_key=label_key,
        positive=positive or [],
        held_out=held_out,
        seed=seed,
        balance=balance,
        folds=folds,
        threshold=threshold,
        precision=precision,
        share=share,
        min_documents=min_documents,
        features=FeatureSettings(
            word_ngrams=word_ngrams,
            min_char_ngram=min_char_ngram,
            max_char_ngram=max_char_ngram,
            bucket_bits=bucket_bits,
            max_characters=max_characters,
        ),
        **({"c": c} if c else {}),
    )
    described = train_classifier(inputs, output, settings, progress=sys.stderr.isatty()).model_dump()
    if as_json:
        typer.echo(json.dumps({"output": str(output), **described}))
    else:
        _print_description(output, described)


@classifier_app.command("score")
def score(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="JSONL or text files, or directories; - reads JSON lines or one text from standard input."
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option(help="Whose probability is the score; by default the label that is looked for."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the documents with their scores as JSON lines."),
    ] = None,
    score_key: Annotated[
        str, typer.Option(help="Key of the score in what is written, within `metadata` if there is such.")
    ] = "score",
    text_key: TextKey = "text",
    sample_by: SampleBy = "document",
    as_json: AsJson = False,
) -> None:
    """Print the score of each document, or write the documents with their scores."""
    from megalm.corpus.classify.model import Classifier
    from megalm.corpus.classify.score import called, score_documents, write_scored

    classifier = Classifier.load(model)
    documents = score_documents(classifier, inputs, text_key, sample_by)  # type: ignore[arg-type]  # checked there
    chosen = classifier.choose_label(label) if label or output or len(classifier.labels) == 2 else None
    if output:
        assert chosen is not None
        documents = write_scored(documents, output, chosen, score_key)
    counts: Counter[str] = Counter()
    results = []
    for document in documents:
        name = called(classifier, document.scores)
        counts[name] += 1
        if output:
            continue
        value = document.scores[chosen or name]
        if as_json:
            results.append({"id": document.id, "label": name, "score": value, "scores": document.scores})
        else:
            typer.echo(f"{value:.6f}\t{name}\t{document.id}")
    found = dict(sorted(counts.items()))
    summary = {"documents": counts.total(), "labels": found}
    if as_json:
        typer.echo(
            json.dumps({"output": str(output), **summary} if output else {**summary, "scores": results})
        )
    elif output:
        line = ", ".join(f"{name} {count:,}" for name, count in found.items())
        typer.echo(f"{output}  {counts.total():,} documents: {line}")


@classifier_app.command("info")
def info(model: Model, as_json: AsJson = False) -> None:
    """Print what a classifier was trained on and how good it was."""
    from megalm.corpus.classify.model import Classifier

    described = Classifier.load(model).description.model_dump()
    if as_json:
        typer.echo(json.dumps({"model": str(model), **described}))
    else:
        _print_description(model, described)


def _print_description(path: Path, described: dict[str, Any]) -> None:
    training = described["training"]
    documents = ", ".join(f"{label} {count:,}" for label, count in training["documents"].items())
    end = "" if training["converged"] else ", not converged"
    typer.echo(f"{path}")
    typer.echo(
        f"documents   {documents}; {training['copies']:,} copies; {training['empty']:,} without n-grams"
    )
    typer.echo(f"training    c {training['c']:g}, {training['iterations']} iterations{end}")
    typer.echo(
        "threshold   " + ", ".join(f"{name} {value:.4f}" for name, value in described["thresholds"].items())
    )
    for kind in ("cross_validation", "held_out"):
        if training[kind]:
            for line in _measures(kind.replace("_", "-"), training[kind]):
                typer.echo(line)


def _measures(title: str, measures: dict[str, Any]) -> list[str]:
    """A line for what is measured of all labels, and one for each of more than two."""
    measures = dict(measures)
    each = measures.pop("labels", {})
    rows = [(title, measures), *((f"  {label}", rates) for label, rates in each.items())]
    return [
        f"{name:<18} "
        + "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()
        )
        for name, row in rows
    ]
