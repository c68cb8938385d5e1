"""The commands `megalm feedback`: from what people said of answers to data to train on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megalm.cli_options import AsJson, Overwrite, print_result
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.feedback.store import Store

feedback_app = typer.Typer(
    help="What people said of a served model's answers, and better models by it: export, count, delete, promote, roll back.",
    rich_markup_mode=None,
)
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store", metavar="URL", help="The server's database: sqlite:///FILE or postgresql://USER@HOST/NAME."
    ),
]


@feedback_app.command("export")
def export(
    store: StoreUrl,
    form: Annotated[
        str, typer.Option(help="sft (good answers), preference (pairs, for DPO and reward models) or kto.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON lines.")],
    held_out: Annotated[
        float,
        typer.Option(
            help="Share of the conversations that goes into a second file, e.g. pairs.held_out.jsonl."
        ),
    ] = 0.0,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Answers that max_tokens cut off may be learned, too; else they are dropped."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write what was said as data to train on: with consent only, personal data masked, without copies."""
    opened = _open(store)
    from megalm.feedback.export import ExportSettings, export_file

    settings = ExportSettings(form, held_out, unfinished)  # type: ignore[arg-type]
    made = export_file(opened, output, settings, overwrite)
    if as_json:
        typer.echo(json.dumps(made))
        return
    for record in made.values():
        typer.echo(f"{record['path']}  {record['records']:,} records{_counts(' of ', record['sources'])}")
        if record["dropped"]:
            typer.echo(f"  dropped{_counts(': ', record['dropped'])}")
    first = made["train"]
    if first["conversations_without_consent"]:
        typer.echo(f"conversations without consent: {first['conversations_without_consent']:,}")
    if first["masked"]:
        typer.echo(f"masked{_counts(': ', first['masked'])}")


@feedback_app.command("stats")
def stats(
    store: StoreUrl,
    days: Annotated[int | None, typer.Option(min=1, help="The last days only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count what is there: totals, by model, by reason."""
    opened = _open(store)
    from megalm.feedback.summary import summary

    found = summary(opened, days)
    if as_json:
        typer.echo(json.dumps(found))
        return
    print_result(False, found["totals"])
    for row in found["by_model"]:
        typer.echo(f"model {row.pop('model')}{_counts(': ', row)}")
    for row in found["by_reason"]:
        typer.echo(f"reason {row['reason']} ({'up' if row['value'] > 0 else 'down'}): {row['count']:,}")


@feedback_app.command("delete-user")
def delete_user(
    name: Annotated[str, typer.Argument(help="Name of the API key; `anyone` on a server without keys.")],
    store: StoreUrl,
    user: Annotated[
        str | None, typer.Option(help="One user of the key, as the header x-user names them; `` for none.")
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="All users of the key.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete all that is kept of somebody, for good."""
    opened = _open(store)
    from megalm.feedback.conversations import delete_owner, users_of
    from megalm.feedback.store import Who

    users = users_of(opened, name)
    if user is not None:
        users = [one for one in users if one == user]
    elif len(users) > 1 and not all_users:
        raise UserError(
            f"{len(users)} users of {name!r} are there: name one with --user, or give --all-users"
        )
    if not users:
        raise UserError(f"nothing is kept of {name!r}{'' if user is None else f', user {user!r}'}")
    counts: dict[str, int] = {}
    for one in users:
        for kind, count in delete_owner(opened, Who(name, one)).items():
            counts[kind] = counts.get(kind, 0) + count
    print_result(as_json, {"deleted": counts})
    if not opened.close():
        raise UserError(
            f"deleted, but another process that reads {opened.shown} keeps the words in its log of changes: end that process; "
            "they go with its end, or with the server's next start or deletion"
        )


@feedback_app.command("migrate")
def migrate(store: StoreUrl, as_json: AsJson = False) -> None:
    """Bring the store's tables up to this version of megalm, as the server does when it starts."""
    opened = _open(store, create=True)
    print_result(as_json, {"before": opened.version_before, "now": opened.version})


def _open(url: str, create: bool = False) -> "Store":
    """create: make it, or bring it up; else neither that nor anything else is changed by opening it."""
    try:
        from megalm.feedback.store import Store
    except ModuleNotFoundError as error:
        raise UserError(f"megalm feedback needs {error.name}: pip install 'megalm[serve]'") from None
    return Store(url, create)


def _counts(before: str, found: dict[str, Any]) -> str:
    told = ", ".join(f"{count:,} {name}" for name, count in found.items())
    return f"{before}{told}" if told else ""
