"""The commands `megalm corpus ...`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_corpus_classifier import classifier_app
from megalm.cli_options import AsJson, TextKey

corpus_app = typer.Typer(
    help="Make clean documents out of raw sources, and look into them.", no_args_is_help=True
)
corpus_app.add_typer(classifier_app, name="classifier")


@corpus_app.command("build")
def build(
    recipe: Annotated[str, typer.Argument(help="YAML file of the corpus.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Values to change, e.g. output=corpora/web", metavar="KEY=VALUE"),
    ] = None,
    executor: Annotated[str | None, typer.Option(help="Where tasks run: local, slurm or ray.")] = None,
    tasks: Annotated[int | None, typer.Option(help="Tasks, and so shards.")] = None,
    workers: Annotated[int | None, typer.Option(help="Tasks at a time.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what another build left there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a corpus; repeat the command to go on after a kill."""
    from megalm.corpus.bias.table import removal_lines
    from megalm.corpus.build import build_corpus
    from megalm.corpus.funnel import funnel, funnel_lines
    from megalm.corpus.recipe import load_recipe
    from megalm.corpus.report import damage_in, page_path

    options = {"executor.kind": executor, "tasks": tasks, "executor.workers": workers}
    changes = [f"{key}={value}" for key, value in options.items() if value is not None]
    loaded = load_recipe(recipe, [*(overrides or []), *changes])
    report = build_corpus(loaded, overwrite=overwrite, progress=True)
    if report is None:
        jobs = json.loads((loaded.output / "work" / "slurm.json").read_text())
        line = f"submitted as SLURM jobs {', '.join(jobs)}" if jobs else "all tasks are done"
        typer.echo(json.dumps({"output": str(loaded.output), "jobs": jobs}) if as_json else line)
        return
    if damage := damage_in(report):
        print(f"megalm: warning: {damage}", file=sys.stderr)
    if as_json:
        typer.echo(json.dumps({"output": str(loaded.output), **report}))
        return
    for line in (*funnel_lines(funnel(report)), *removal_lines(report.get("removal_by_group", []), top=5)):
        typer.echo(line)
    typer.echo(page_path(loaded.output))


@corpus_app.command("report")
def report(
    output: Annotated[Path, typer.Argument(help="A corpus: the output of a recipe, built to its end.")],
    as_json: AsJson = False,
) -> None:
    """Draw report.html again from report.json, and print the funnel."""
    from megalm.corpus.funnel import funnel, funnel_lines
    from megalm.corpus.report import draw_again, page_path

    found = draw_again(output)
    if as_json:
        typer.echo(json.dumps({"output": str(output), **found}))
        return
    for line in funnel_lines(funnel(found)):
        typer.echo(line)
    typer.echo(page_path(output))


@corpus_app.command("show")
def show(
    path: Annotated[Path, typer.Argument(help="A corpus (the output of a recipe) or one shard.")],
    removed: Annotated[
        bool, typer.Option("--removed", help="Show the documents that steps removed.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Only those removed for this reason.")] = None,
    document: Annotated[int, typer.Option(min=0, help="Number of the first document, from 0.")] = 0,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many; by default 1, or all in a terminal.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Page through documents, with the reason for each decision."""
    from megalm.corpus.show import render, show_documents

    paged = count is None and sys.stdout.isatty() and not as_json
    entries = show_documents(path, removed, reason, document, None if paged else count or 1)
    if as_json:
        typer.echo(json.dumps({"documents": list(entries)}))
    elif paged:
        for entry in entries:
            typer.echo(render(entry))
            if typer.prompt("Enter for the next, q to end", default="", show_default=False) == "q":
                break
    else:
        for entry in entries:
            typer.echo(render(entry))


@corpus_app.command("bias")
def bias(
    path: Annotated[
        Path, typer.Argument(help="A corpus (the output of a recipe), shards, JSONL or text files.")
    ],
    terms: Annotated[
        Path | None, typer.Option(help="A file of term lists, laid over those of megalm (English).")
    ] = None,
    text_key: TextKey = "text",
    top: Annotated[int, typer.Option(min=1, help="Rows of each table but that of groups.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Count whom documents mention, beside which words, and whom the filters of a corpus removed."""
    from megalm.corpus.bias.audit import audit
    from megalm.corpus.bias.table import removal_lines, representation_lines

    figures = audit(path, terms, text_key)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    for line in (
        *representation_lines(figures, top),
        *removal_lines(figures.get("removal_by_group", []), top),
    ):
        typer.echo(line)


@corpus_app.command("crawl")
def crawl(
    url: Annotated[str, typer.Argument(help="Where to begin; only pages of its host are read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="WARC file to write, e.g. site.warc.gz.")],
    max_pages: Annotated[int, typer.Option(min=1, help="Stop after so many pages.")] = 100,
    delay: Annotated[float, typer.Option(min=0, help="Seconds between two requests.")] = 1.0,
    agent: Annotated[str | None, typer.Option(help="What the crawler calls itself.")] = None,
    max_depth: Annotated[int, typer.Option(min=0, help="Follow so many links in a row at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Read the pages of one site, as its robots.txt allows; repeat the command to go on after a kill."""
    from megalm.corpus.crawl import AGENT
    from megalm.corpus.crawl import crawl as crawl_site

    counts = crawl_site(url, output, max_pages, delay, agent or AGENT, max_depth)
    line = "  ".join(f"{name} {count:,}" for name, count in counts.items())
    typer.echo(json.dumps({"output": str(output), **counts}) if as_json else f"{output}  {line}")
