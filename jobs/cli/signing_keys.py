"""`tmctl signing-keys`: the keys that sign releases, and which of them devices trust."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from jobs.cli.output import emit
from tinymusician.artifacts.job_keys import job_keys_folder, local_job_key, trust_job_key, trusted_job_keys
from tinymusician.artifacts.keys import key_id, keys_folder, public_hex
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.trust import RootMetadata

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Create and replace the keys that sign releases.\n\n"
    "The root key certifies the release key; apps contain its public half. Keep it offline: only `create`, `renew` "
    "and `rotate` need it. `TMCTL_KEYS` names the folder of private keys; they never leave it.",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def registry() -> ReleaseRegistry:
    """The store's releases, with the keys of this machine."""
    return ReleaseRegistry(open_store(), keys_folder())


@app.command()
def create(json: Json = False) -> None:
    """Create both keys, and publish the root document.

    Example: `TMCTL_STORE=s3://music/band tmctl signing-keys create`
    """
    _print_root(registry().create(), json)
    if not json:
        print(f"private keys in {keys_folder()}: move root-*.pem to a machine or medium that is offline")


@app.command()
def show(json: Json = False) -> None:
    """Show the keys that devices trust now. An app is built with the root key."""
    _print_root(registry().roots()[-1], json)


@app.command()
def renew(json: Json = False) -> None:
    """Extend the root document by a year: after it expires, devices accept nothing new."""
    _print_root(registry().extend(), json)


@app.command()
def rotate(
    root: Annotated[bool, typer.Option("--root", help="Replace the root key; devices follow automatically.")] = False,
    revoke: Annotated[
        bool, typer.Option("--revoke", help="A release key may be stolen: nothing that was signed before is trusted.")
    ] = False,
    json: Json = False,
) -> None:
    """Replace the release key (or the root key), and sign the newest releases again.

    Afterwards devices accept nothing that the old release key signed. With `--revoke`, no alias points at anything:
    inspect the good artifacts, and `tmctl artifacts publish` and `promote` them again.
    """
    role: Literal["root", "release"] = "root" if root else "release"
    _print_root(registry().rotate(role, revoke), json)


@app.command()
def job(json: Json = False) -> None:
    """Show the drivers whose results may be released: their public keys, this machine's own first.

    A driver signs what its jobs made with a job key, which is created when it is first needed. `TMCTL_JOB_KEYS` names
    the folder of private and trusted public job keys.
    """
    local = public_hex(local_job_key())
    others = [public for public in trusted_job_keys().values() if public != local]
    lines = [f"local   {local} ({key_id(local)[:12]})", *(f"trusted {one} ({key_id(one)[:12]})" for one in others)]
    emit({"local": local, "trusted": others, "folder": str(job_keys_folder())}, json, "\n".join(lines))


@app.command("trust-job")
def trust_job(
    public_key: Annotated[str, typer.Argument(help="The public key that `tmctl signing-keys job` shows there.")],
) -> None:
    """Trust the drivers of a cluster: what they attest may be released from here.

    Example: `docker compose exec head tmctl signing-keys job`, then here `tmctl signing-keys trust-job PUBLIC_KEY`
    """
    print(f"trusted: {trust_job_key(public_key)}; remove that file to end it")


def _print_root(root: RootMetadata, as_json: bool) -> None:
    lines = [f"root document {root.version}, of {root.created:%Y-%m-%d}, until {root.expires:%Y-%m-%d}"]
    for role, publics in (("root", root.root), ("release", root.release)):
        lines += [f"{role} key {public} ({key_id(public)[:12]})" for public in publics]
    emit({**root.model_dump(mode="json"), "folder": str(keys_folder())}, as_json, "\n".join(lines))
