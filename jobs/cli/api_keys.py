"""`tmctl api-keys`: the keys of an endpoint's clients, and their rate limits."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.output import emit, table
from tinymusician.errors import KeyFileError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Create and revoke the API keys of `tmctl serve`.\n\n"
    "The file holds hashes only. A running endpoint reads it again when it changes; give it with `--api-keys`.",
)
File = Annotated[Path | None, typer.Option("--file", help="The file of keys.", show_default="the user's own")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="A name for the key's owner.")],
    per_minute: Annotated[int, typer.Option(min=1, help="Requests per minute, which may come in one burst.")] = 60,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 4,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires.", show_default="never")] = None,
    file: File = None,
    json: Json = False,
) -> None:
    """Create a key, and print it once.

    Example: `tmctl api-keys create "the shop's page" --per-minute 30 --days 90`
    """
    from serve.api_keys import default_file, edit_keys, new_key

    if not 1 <= len(name) <= 64:
        raise KeyFileError(f"NAME {name!r}: 1 to 64 characters are needed")
    path = file or default_file()
    text, key = new_key(name, per_minute, max_concurrency, days)
    with edit_keys(path, missing=True) as keys:
        keys.append(key)
    facts = {"key": text, "id": key.id, "name": name, "expires": key.expires.isoformat(), "file": str(path)}
    emit(facts, json, f"{text}\nits hash is stored in {path}; the key is not shown again")


@app.command("list")
def list_(
    file: File = None,
    usage: Annotated[
        Path | None,
        typer.Option(
            help="The endpoint's file of last uses (`api_key_usage`).", show_default="beside the file of keys"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the keys, without their secrets, and when each was last used."""
    from serve.api_keys import FOREVER, default_file, read_keys
    from serve.key_usage import read_usage, usage_file

    path = file or default_file()
    keys, used = read_keys(path).keys, read_usage(usage or usage_file(path))
    facts = [
        key.model_dump(mode="json", exclude={"sha256"})
        | {"last_use": used[key.id].isoformat() if key.id in used else None}
        for key in keys
    ]
    rows = [
        [
            key.id,
            key.name,
            f"{key.created:%Y-%m-%d}",
            "never" if key.expires - key.created >= timedelta(days=FOREVER) else f"{key.expires:%Y-%m-%d}",
            f"{used[key.id]:%Y-%m-%d %H:%M}" if key.id in used else "-",
            str(key.per_minute),
            str(key.max_concurrency),
        ]
        for key in keys
    ]
    emit(facts, json, table(["ID", "NAME", "CREATED", "EXPIRES", "LAST USE", "PER MINUTE", "MAX CONCURRENCY"], rows))


@app.command()
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id (`tmctl api-keys list`).")],  # noqa: A002
    file: File = None,
) -> None:
    """Revoke a key, from the next request on."""
    from serve.api_keys import default_file, edit_keys

    path = file or default_file()
    with edit_keys(path) as keys:
        left = [key for key in keys if key.id != id]
        if len(left) == len(keys):
            raise KeyFileError(f"API key {id!r}: {path} has none with this id; `tmctl api-keys list` shows them")
        keys[:] = left
    print(f"{id} revoked")
