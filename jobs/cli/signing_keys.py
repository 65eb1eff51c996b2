"""`tmctl signing-keys`: the keys that sign releases, and which of them devices trust."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli.output import emit
from tinymusician.artifacts.job_keys import job_keys_folder, local_job_key, trust_job_key, trusted_job_keys
from tinymusician.artifacts.key_plan import KeyPlan
from tinymusician.artifacts.keys import key_id, keys_folder, public_hex
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.secret_input import PASSPHRASE_VARIABLE
from tinymusician.artifacts.trust import RoleName, RootMetadata, members_of, root_key
from tinymusician.errors import KeyFileError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Create and replace the keys that sign releases.\n\n"
    "The root key certifies the release key; apps contain its public half. Keep it offline: only `create`, `renew` "
    "and `rotate` need it. A timestamp key, if there is one, confirms every few days which release is the "
    "newest. `TMCTL_KEYS` names the folder of private keys; they never leave it.",
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def registry() -> ReleaseRegistry:
    """The store's releases, with the keys of this machine."""
    return ReleaseRegistry(open_store(), keys_folder())


Tokens = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URI", help="A key in a PKCS#11 token (RFC 7512) instead of a new file; repeatable.", show_default=False
    ),
]
Document = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the root document itself, for apps.", show_default=False)
]


# Long: its parameters are the options of the command.
@app.command()
def create(
    root_keys: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="The number of root keys.")] = 1,
    root_threshold: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="How many of them must sign.")] = 1,
    release_keys: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="The number of release keys.")] = 1,
    release_threshold: Annotated[int, typer.Option(min=1, max=8, metavar="N", help="How many of them must sign.")] = 1,
    timestamp: Annotated[
        bool,
        typer.Option("--timestamp", help="Devices also need a timestamp, which `tmctl artifacts timestamp` renews."),
    ] = False,
    scheme: Annotated[
        Literal["ed25519", "ecdsa-p256-sha256"], typer.Option(help="The scheme of new keys.")
    ] = "ed25519",
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help=f"Encrypt the private keys; {PASSPHRASE_VARIABLE} is a passphrase file.")
    ] = False,
    root_token: Tokens = None,
    release_token: Tokens = None,
    json: Json = False,
) -> None:
    """Create the keys, and publish the root document.

    With several root keys, devices start from the root document (`tmctl signing-keys show --document root.json`), and a
    thief needs as many keys as must sign.

    Examples:
    - `TMCTL_STORE=s3://music/band tmctl signing-keys create`

    - `tmctl signing-keys create --root-keys 3 --root-threshold 2 --timestamp`

    - `tmctl signing-keys create --root-token 'pkcs11:token=band;object=root?module-path=/usr/lib/opensc-pkcs11.so'`
    """
    tokens: dict[RoleName, list[str]] = {"root": root_token or [], "release": release_token or []}
    for option, count, uris in (("root", root_keys, tokens["root"]), ("release", release_keys, tokens["release"])):
        if uris and count not in (1, len(uris)):
            raise KeyFileError(f"--{option}-keys {count}: --{option}-token names {len(uris)}; leave the number out")
    root_keys, release_keys = len(tokens["root"]) or root_keys, len(tokens["release"]) or release_keys
    for option, count, threshold in (("root", root_keys, root_threshold), ("release", release_keys, release_threshold)):
        if threshold > count:
            raise KeyFileError(f"--{option}-threshold {threshold}: there are {count} {option} keys")
    plan = KeyPlan(root_keys, root_threshold, release_keys, release_threshold, timestamp, scheme, encrypt, tokens)
    _print_root(registry().create(plan), json)
    if not json:
        print(f"private keys in {keys_folder()}: move root-* to a machine or medium that is offline")


@app.command()
def show(document: Document = None, json: Json = False) -> None:
    """Show the keys that devices trust now. An app is built with the root key, or with the root document."""
    root = registry().roots()[-1]
    if document is not None:
        document.write_bytes(registry().store.get(root_key(root.version)))
    _print_root(root, json)


@app.command()
def renew(json: Json = False) -> None:
    """Extend the root document by a year: after it expires, devices accept nothing new."""
    _print_root(registry().extend(), json)


@app.command()
def rotate(
    root: Annotated[bool, typer.Option("--root", help="Replace the root keys; devices follow automatically.")] = False,
    timestamp: Annotated[
        bool, typer.Option("--timestamp", help="Replace the timestamp key, or add one where none was needed.")
    ] = False,
    revoke: Annotated[
        bool,
        typer.Option("--revoke", help="A release key may be stolen: nothing that it signed is trusted or stays."),
    ] = False,
    token: Tokens = None,
    json: Json = False,
) -> None:
    """Replace the release keys (or those of another role), and sign the newest releases again.

    Afterwards devices accept nothing that the old release keys signed. With `--revoke`, they also drop what they have
    installed of it, and no alias points at anything: inspect the good artifacts, and `tmctl artifacts publish` and
    `promote` them again.
    """
    if root and timestamp:
        raise KeyFileError("--root and --timestamp: replace the keys of one role at a time")
    role: RoleName = "root" if root else "timestamp" if timestamp else "release"
    _print_root(registry().rotate(role, revoke, token or ()), json)


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
    members = members_of(root)
    for role, each in members.items():
        needed = f"; {each.threshold} of {len(each.publics)} must sign" if len(each.publics) > 1 else ""
        lines += [f"{role} key {public} ({key_id(public)[:12]}){needed}" for public in each.publics]
    publics: dict[str, tuple[str, ...]] = {role: each.publics for role, each in members.items()}
    emit({**root.model_dump(mode="json"), **publics, "folder": str(keys_folder())}, as_json, "\n".join(lines))
