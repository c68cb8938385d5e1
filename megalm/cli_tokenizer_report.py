"""The commands that look at tokenizers: `megalm tokenizer info`, `show`, `compare` and `chat`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from megalm.cli_options import AsJson, SampleBy, TextKey, TokenizerPath, read_stdin

By = Annotated[
    list[str] | None,
    typer.Option(
        "--by", help="Group by this key of the JSON lines, e.g. metadata.language; may be repeated."
    ),
]
SampleBytes = Annotated[int | None, typer.Option(help="Read about so many bytes of text.")]
Examples = Annotated[int, typer.Option(min=0, help="How many pieces to show of each kind.")]
Ids = Annotated[bool, typer.Option("--ids", help="Show the id behind each token.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write the view as an HTML page instead.")]
MEASURES = (
    "bytes_per_token",
    "characters_per_token",
    "words_per_token",
    "fertility",
    "unknown_rate",
    "byte_piece_rate",
)


def info(
    tokenizer: TokenizerPath,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help="Measure on these JSONL or text files, or directories of them."),
    ] = None,
    by: By = None,
    sample_bytes: SampleBytes = None,
    text_key: TextKey = "text",
    sample_by: SampleBy = "document",
    examples: Examples = 10,
    as_json: AsJson = False,
) -> None:
    """Describe a tokenizer, and with inputs how well it does on them."""
    from megalm.errors import UserError
    from megalm.tokenizer import load_tokenizer
    from megalm.tokenizer.vocabulary import describe

    if (by or sample_bytes is not None) and not inputs:
        raise UserError("--by and --sample-bytes are for measuring, but no inputs are given; name files")
    opened = load_tokenizer(tokenizer)
    described = describe(opened, examples)
    report = None
    if inputs:
        from megalm.tokenizer.report import measure_corpus

        [measured] = measure_corpus(
            [opened],
            inputs,
            text_key,
            sample_by,  # type: ignore[arg-type]  # checked by measure_corpus
            by or (),
            sample_bytes,
        )
        report = measured.summary(examples)
    if as_json:
        typer.echo(json.dumps({**described, **({"corpus": report} if report else {})}))
        return
    _print_description(described)
    if report:
        _print_report(report)


def compare(
    tokenizers: Annotated[list[Path], typer.Argument(help="Tokenizers: directories or files.")],
    inputs: Annotated[
        list[Path] | None, typer.Option("--input", help="JSONL or text file or directory; may be repeated.")
    ] = None,
    by: By = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of bytes a token: .png or .svg.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Show where the first two cut this text differently.")
    ] = None,
    hidden_size: Annotated[
        int, typer.Option(min=1, help="Count the embedding's parameters at this width.")
    ] = 4096,
    sample_bytes: SampleBytes = None,
    text_key: TextKey = "text",
    sample_by: SampleBy = "document",
    as_json: AsJson = False,
) -> None:
    """Compare tokenizers on one corpus, or the first two on one text."""
    from megalm.errors import UserError
    from megalm.tokenizer import load_tokenizer
    from megalm.tokenizer.compare import check_plot_path, comparison, differences, write_plot
    from megalm.tokenizer.report import measure_corpus

    if not inputs and text is None:
        raise UserError("there is nothing to compare the tokenizers on; give --input FILE or --text TEXT")
    if not inputs and (plot or by or sample_bytes is not None):
        raise UserError("--plot, --by and --sample-bytes are for measuring; give --input FILE")
    if plot:
        check_plot_path(plot)
    if text is not None and len(tokenizers) < 2:
        raise UserError("--text shows how two tokenizers differ, but there is one; name another")
    opened = [load_tokenizer(path) for path in tokenizers]
    names = _names(tokenizers)
    result: dict[str, Any] = {}
    if inputs:
        reports = measure_corpus(
            opened,
            inputs,
            text_key,
            sample_by,  # type: ignore[arg-type]  # checked by measure_corpus
            by or (),
            sample_bytes,
        )
        result["tokenizers"] = comparison(names, opened, reports, hidden_size)
        if plot:
            write_plot(plot, names, reports, by[0] if by else None)
    if text is not None:
        found = differences(opened[0], opened[1], text)
        result["differences"] = [
            {"start": d.start, "stop": d.stop, names[0]: d.pieces[0], names[1]: d.pieces[1]} for d in found
        ]
    if as_json:
        typer.echo(json.dumps(result))
        return
    if inputs:
        _print_comparison(result["tokenizers"], hidden_size)
    if text is not None:
        _print_differences(result["differences"], names[:2])


def show(
    tokenizer: TokenizerPath,
    text: Annotated[str | None, typer.Option(help="Read from standard input if left out.")] = None,
    ids: Ids = False,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the tokens of a text in colours."""
    from megalm.tokenizer import load_tokenizer
    from megalm.tokenizer.view import cells

    opened = load_tokenizer(tokenizer)
    text = read_stdin() if text is None else text
    numbers, offsets = opened.encode_with_offsets(text)
    if as_json:
        tokens = zip(numbers, offsets, strict=True)
        found = [
            {"id": i, "start": a, "stop": b, "bytes": opened.token_bytes(i).hex()} for i, (a, b) in tokens
        ]
        typer.echo(json.dumps({"tokens": found}))
        return
    _view(cells(opened, text, numbers, offsets), f"Tokens of {tokenizer.name}", ids, html, False)


def chat(
    tokenizer: TokenizerPath,
    messages: Annotated[
        Path, typer.Option(help="JSON file: a list of messages, or an object with messages, tools.")
    ],
    template: Annotated[
        str | None, typer.Option(help="Bundled template's name or a file; by default the tokenizer's own.")
    ] = None,
    add_generation_prompt: Annotated[
        bool, typer.Option("--add-generation-prompt", help="End with the begin of the assistant's next turn.")
    ] = False,
    ids: Ids = False,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Show messages as a chat template writes them; what is not trained on has no colour."""
    from megalm.tokenizer import load_tokenizer
    from megalm.tokenizer.chat import load_chat_template
    from megalm.tokenizer.view import cells

    opened = load_tokenizer(tokenizer)
    chat_template = load_chat_template(template or tokenizer, opened, config=tokenizer)
    read = _read_messages(messages)
    encoded, offsets = chat_template.encode_with_offsets(
        read["messages"], add_generation_prompt, tools=read.get("tools"), documents=read.get("documents")
    )
    if as_json:
        typer.echo(json.dumps(encoded._asdict()))
        return
    shown = cells(opened, encoded.text, encoded.ids, offsets, encoded.loss_mask)
    _view(shown, f"{messages.name} under {template or tokenizer.name}", ids, html, True)


def _view(shown: Sequence[Any], title: str, ids: bool, html: Path | None, marks_spoken: bool) -> None:
    from rich.console import Console

    from megalm import atomic
    from megalm.tokenizer.view import to_html, to_plain, to_terminal

    console = Console(highlight=False, soft_wrap=True)
    if html:
        atomic.write_text(html, to_html(shown, title, marks_spoken))
        typer.echo(f"wrote {html}")
    elif console.is_terminal and not console.no_color:
        console.print(to_terminal(shown, ids, marks_spoken))
    else:
        typer.echo(to_plain(shown, ids, marks_spoken))


def _read_messages(path: Path) -> dict[str, Any]:
    from megalm.errors import UserError

    if not path.exists():
        raise UserError(f"no messages at {path}; check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON in UTF-8 ({error}); write a list of messages") from error
    if isinstance(content, list):
        return {"messages": content}
    if isinstance(content, dict) and isinstance(content.get("messages"), list):
        return content
    raise UserError(
        f"{path} holds neither a list of messages nor an object with `messages`; write one of them"
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of tokenizers: the directory's or file's, the path as given where two would be the same."""
    names = [
        path.parent.name if path.stem in ("tokenizer", "vocab", "encoder") else path.name for path in paths
    ]
    return [
        name if names.count(name) == 1 and name else str(path)
        for name, path in zip(names, paths, strict=True)
    ]


def _print_description(described: dict[str, Any]) -> None:
    special = described["special_tokens"]
    lengths = described["pieces_by_length"]
    typer.echo(f"vocab_size: {described['vocab_size']:,}")
    typer.echo(f"kind: {described['kind']}")
    typer.echo(f"eod_id: {described['eod_id']}")
    typer.echo(f"unknown_id: {described['unknown_id']}")
    typer.echo(f"lossless: {'yes' if described['lossless'] else 'no'}")
    typer.echo(f"hash: {described['hash']}")
    shown = " ".join(f"{token}={i}" for token, i in list(special.items())[:20])
    typer.echo(f"special_tokens: {len(special)}  {shown}{' ...' if len(special) > 20 else ''}")
    typer.echo(f"pieces: {described['pieces']:,}, {described['byte_pieces']:,} of them no whole character")
    typer.echo("pieces_by_length (bytes): " + "  ".join(f"{length}: {n:,}" for length, n in lengths.items()))
    typer.echo("longest_pieces: " + _pieces(described["longest_pieces"]))


def _print_report(report: dict[str, Any]) -> None:
    total = report["total"]
    typer.echo(f"\n{total['documents']:,} documents, {total['bytes']:,} bytes, {total['tokens']:,} tokens")
    _print_groups({"": {"all": total}, **report["groups"]})
    typer.echo(
        f"\nunused_pieces: {report['unused_pieces']:,}, the longest: " + _pieces(report["unused_examples"])
    )
    typer.echo("longest_used: " + _pieces(report["longest_used"]))
    typer.echo(
        "most_frequent: " + "  ".join(f"{p['text']} ({p['count']:,})" for p in report["most_frequent"])
    )


def _print_groups(groups: dict[str, dict[str, Any]]) -> None:
    header = [
        "",
        "bytes",
        "tokens",
        "bytes/token",
        "chars/token",
        "words/token",
        "tokens/word",
        "unknown",
        "byte pieces",
    ]
    for key, measures in groups.items():
        rows = [[name, f"{m['bytes']:,}", f"{m['tokens']:,}", *_figures(m)] for name, m in measures.items()]
        _print_table([[key, *header[1:]], *rows])
    if any(m["words_are_characters"] for measures in groups.values() for m in measures.values()):
        typer.echo("* written without spaces between words: each character counts as a word")


def _figures(measure: dict[str, Any]) -> list[str]:
    star = "*" if measure["words_are_characters"] else ""
    formats = ("{:.3f}", "{:.3f}", "{:.3f}" + star, "{:.3f}" + star, "{:.3%}", "{:.2%}")
    return [
        "-" if measure[name] is None else form.format(measure[name])
        for name, form in zip(MEASURES, formats, strict=True)
    ]


def _print_comparison(rows: list[dict[str, Any]], hidden_size: int) -> None:
    header = [
        "tokenizer",
        "vocabulary",
        f"embedding at {hidden_size}",
        "tokens",
        "bytes/token",
        "chars/token",
    ]
    header += ["words/token", "tokens/word", "unknown", "byte pieces", "unused"]
    table = [
        [
            row["tokenizer"],
            f"{row['vocab_size']:,}",
            f"{row['embedding_parameters'] / 1e6:,.1f} M",
            f"{row['tokens']:,}",
            *_figures(row),
            f"{row['unused_pieces']:,}",
        ]
        for row in rows
    ]
    _print_table([header, *table])
    for key, groups in rows[0]["groups"].items():
        typer.echo("\nbytes a token")
        names = [key, "bytes", *(row["tokenizer"] for row in rows)]
        lines = [
            [name, f"{group['bytes']:,}", *(_figures(row["groups"][key][name])[0] for row in rows)]
            for name, group in groups.items()
        ]
        _print_table([names, *lines])
    if any(row["words_are_characters"] for row in rows):
        typer.echo("* mostly written without spaces between words: each character counts as a word")


def _print_differences(found: list[dict[str, Any]], names: Sequence[str]) -> None:
    from megalm.tokenizer.vocabulary import readable

    typer.echo(f"{len(found)} places differ" if found else "no place differs")
    rows = [
        [
            f"{d['start']}-{d['stop']}",
            *("|".join(readable(piece.encode()) for piece in d[name]) for name in names),
        ]
        for d in found
    ]
    if rows:
        _print_table([["characters", *names], *rows], right=False)


def _print_table(rows: list[list[str]], right: bool = True) -> None:
    """Columns of text: the first to the left, the others to the right, or all to the left."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        padded = [" " * (width - cell_len(entry)) for entry, width in zip(row, widths, strict=True)]
        parts = [
            entry + pad if column == 0 or not right else pad + entry
            for column, (entry, pad) in enumerate(zip(row, padded, strict=True))
        ]
        typer.echo("  ".join(parts).rstrip())


def _pieces(pieces: Sequence[dict[str, Any]]) -> str:
    return "  ".join(piece["text"] for piece in pieces)
