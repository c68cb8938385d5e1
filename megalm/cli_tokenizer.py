"""The commands `megalm tokenizer ...`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from megalm import cli_tokenizer_report
from megalm.cli_options import AsJson, SampleBy, TextKey, TokenizerPath, print_result, read_stdin

tokenizer_app = typer.Typer(help="Train tokenizers and use them.", no_args_is_help=True)
for command in (
    cli_tokenizer_report.info,
    cli_tokenizer_report.show,
    cli_tokenizer_report.compare,
    cli_tokenizer_report.chat,
):
    tokenizer_app.command(command.__name__)(command)

Text = Annotated[str | None, typer.Argument(help="Read from standard input if left out.")]


@tokenizer_app.command("train")
def train(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the tokenizer's files.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="JSONL or text files (.gz, .zst too), or directories of them; none for kind byte."
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Number of tokens, special ones included; kinds word, character: all if left out."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="bpe, unigram, sentencepiece-bpe, wordpiece, word, character or byte.")
    ] = "bpe",
    pretokenizer: Annotated[
        str | None,
        typer.Option(
            help="How texts are cut. bpe: gpt2, gpt4, gpt2-digits, gpt4-digits; unigram, sentencepiece-bpe: whitespace, "
            "digits."
        ),
    ] = None,
    normalizer: Annotated[
        list[str] | None,
        typer.Option(
            help="What texts go through first, may be repeated: nfc, nfd, nfkc, nfkd, lowercase, strip-accents; unigram, "
            "sentencepiece-bpe: nfkc, nmt-nfkc, then lowercase; wordpiece: bert, bert-cased."
        ),
    ] = None,
    special_token: Annotated[
        list[str] | None, typer.Option(help="Another special token; may be repeated.")
    ] = None,
    chat_tokens: Annotated[
        str | None, typer.Option(help="Special tokens of chats: chatml, llama3 or roles.")
    ] = None,
    min_count: Annotated[int, typer.Option(help="Leave out pieces that occur less often.")] = 1,
    ties: Annotated[
        str,
        typer.Option(
            help="Of equally frequent pairs, merge the one of smaller ids or of greater bytes first."
        ),
    ] = "ids",
    character_coverage: Annotated[
        float, typer.Option(help="Share of the text whose characters get tokens (SentencePiece, WordPiece).")
    ] = 0.9995,
    byte_fallback: Annotated[
        bool, typer.Option(help="Write all other characters as bytes (SentencePiece).")
    ] = True,
    max_words: Annotated[
        int | None, typer.Option(help="Look at so many of the most frequent words; bounds memory.")
    ] = None,
    text_key: TextKey = "text",
    sample_by: SampleBy = "document",
    sample_bytes: Annotated[int | None, typer.Option(help="Train on about so many bytes of text.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one for each CPU.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the tokenizer that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer."""
    from megalm.tokenizer.training.train import MAX_WORDS, train_tokenizer

    tokenizer = train_tokenizer(
        inputs or [],
        output,
        kind,
        vocab_size,
        pretokenizer=pretokenizer,
        normalizers=normalizer,
        special_tokens=special_token or (),
        chat_tokens=chat_tokens,
        min_count=min_count,
        ties=ties,  # type: ignore[arg-type]  # checked by train_tokenizer
        character_coverage=character_coverage,
        byte_fallback=byte_fallback,
        max_words=MAX_WORDS if max_words is None else max_words,
        text_key=text_key,
        sample_by=sample_by,  # type: ignore[arg-type]  # checked by train_tokenizer
        sample_bytes=sample_bytes,
        workers=workers,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )
    print_result(as_json, {"output": str(output), **_describe(tokenizer)})


@tokenizer_app.command("encode")
def encode(tokenizer: TokenizerPath, text: Text = None, as_json: AsJson = False) -> None:
    """Print the token ids of a text."""
    from megalm.tokenizer import load_tokenizer

    ids = load_tokenizer(tokenizer).encode(read_stdin() if text is None else text)
    typer.echo(json.dumps({"ids": ids}) if as_json else " ".join(map(str, ids)))


@tokenizer_app.command("decode")
def decode(
    tokenizer: TokenizerPath,
    ids: Annotated[
        list[int] | None, typer.Argument(help="Token ids; read from standard input if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the text of token ids."""
    from megalm.errors import UserError
    from megalm.tokenizer import load_tokenizer

    try:
        ids = ids or [int(word) for word in read_stdin().split()]
    except ValueError as error:
        raise UserError(
            f"the ids to decode are not whole numbers ({error}); separate them by spaces"
        ) from error
    text = load_tokenizer(tokenizer).decode(ids)
    typer.echo(json.dumps({"text": text}) if as_json else text)


@tokenizer_app.command("convert")
def convert(
    source: TokenizerPath,
    output: Annotated[Path, typer.Argument(help="Directory of the new tokenizer.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the tokenizer that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Save a tokenizer of any kind in Hugging Face's format."""
    from megalm.tokenizer.export import convert_tokenizer

    tokenizer = convert_tokenizer(source, output, overwrite)
    print_result(as_json, {"output": str(output), **_describe(tokenizer)})


def _describe(tokenizer: Any) -> dict[str, Any]:
    return {"vocab_size": tokenizer.vocab_size, "eod_id": tokenizer.eod_id, "hash": tokenizer.hash}
