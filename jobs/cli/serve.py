"""`tmctl serve`: serve a bundle over HTTP, on a Ray cluster or on this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from jobs.cli.artifact_options import RootDocument, read_root_document
from jobs.cli.output import emit, print_progress, print_settings, warn
from tinymusician.artifacts.reference import ROOT_KEY_VARIABLE, is_alias
from tinymusician.bundle_refs import is_packaged_bundle
from tinymusician.errors import ClusterError, RequestError
from tinymusician.json_types import JsonObject
from tinymusician.runtime.bundle import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from jobs.launch.serve_deploy import ServeDeployment
    from serve.config import ServeConfig

_POLL_SECONDS = 5.0


# Long: its parameters are the options of the command.
def serve(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="[REF]",
            help="band-bundle@stable follows the alias; NAME, a folder or the packaged bundle is fixed.",
        ),
    ] = DEFAULT_BUNDLE,
    host: Annotated[
        str, typer.Option(help="The network interface; other than loopback it needs --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option(help="The file of API keys (`tmctl api-keys create`), on the endpoint's machine.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from", metavar="URL", help="The URL of the release; several are mirrors.", show_default="store"
        ),
    ] = None,
    root_key: Annotated[
        str | None,
        typer.Option(metavar="HEX", envvar=ROOT_KEY_VARIABLE, help="The publisher's public root key, for NAME@ALIAS."),
    ] = None,
    root: RootDocument = None,
    replicas: Annotated[int, typer.Option(min=1, help="The minimum number of engines.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="The maximum number of engines, added under load.")] = 1,
    threads: Annotated[
        int,
        typer.Option(
            min=0, help="CPU threads per engine; 0 is as many as its process may use, on a local Ray all but one."
        ),
    ] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a setting, e.g. limits.seconds=30; --dry-run lists them."
        ),
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="The Ray dashboard's address, e.g. http://HEAD:8265.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when the endpoint is ready, and leave it running.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate and print all settings, and start nothing.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check the settings, API keys and bundle on this machine, and start nothing."),
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the endpoint, after the requests that run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object when the endpoint is ready.")] = False,
) -> None:
    """Serve a bundle over HTTP: `POST /v1/audio/generations`, and a web page at `/`.

    Without --detach it serves until Ctrl-C. Serving again on the same cluster replaces the bundle and its settings
    without dropping a request.

    Examples:
    - `tmctl serve`: the packaged bundle

    - `tmctl serve band-bundle`

    - `tmctl serve band-bundle@stable --root-key $(tmctl signing-keys show --json | jq -r .root[0])`

    - `tmctl serve band-bundle@stable --cluster http://head:8265 --host 0.0.0.0 --api-keys FILE --detach`
    """
    from jobs.launch.serve_deploy import ServeDeployment
    from serve.config import read_config

    if (chosen := ["--stop"] * stop + ["--check"] * check + ["--dry-run"] * dry_run)[1:]:
        raise RequestError(f"{' '.join(chosen)}: give one of them")
    if stop:
        ServeDeployment(cluster, start=False).stop(print_progress)
        print("endpoint stopped", file=sys.stderr)
        return
    values: JsonObject = {"host": host, "port": port, "replicas": replicas, "threads": threads}
    values |= {"model": _absolute_if_folder(reference), "sources": tuple(source or ()), "root_key": root_key}
    values |= {"root_document": _root_text(root)} if root is not None else {}
    values |= {"api_keys": api_keys.absolute() if api_keys else None, "max_replicas": max(replicas, max_replicas)}
    settings = read_config(_with_overrides(values, overrides or []))
    if root is not None and not (settings.is_alias or is_alias(settings.questions_model or "")):
        raise RequestError(f"--root {root}: only releases have a root document; {settings.model} is none")
    if dry_run:
        if json:
            print(settings.model_dump_json(indent=2))
        else:
            print_settings(settings)
        return
    if check:
        emit({"model": settings.model, "bundle": _check(settings)}, json, f"{settings.model} can be served")
        return
    endpoint = ServeDeployment(cluster)
    settings = _local_settings(settings) if endpoint.is_local_ray else settings
    deployed = _deploy(endpoint, settings)
    facts = {"url": deployed.url, "cluster": endpoint.where, "model": settings.model, "bundle": deployed.bundle}
    emit(facts, json, f"{settings.model} is served {deployed.place}")
    if detach:
        return
    print("Ctrl-C stops the endpoint; with `--detach` it keeps running.", file=sys.stderr)
    _serve_until_interrupt(endpoint, deployed.id)


def _root_text(path: Path) -> str:
    """A root document as the value of a setting; a cluster does not have this machine's files."""
    return read_root_document(path).decode("utf-8", "replace")


class _Deployed(NamedTuple):
    """An endpoint's deployment and, on this machine, its address and the digest of its bundle, which answers there."""

    id: str
    port: int
    url: str | None = None
    bundle: str | None = None

    @property
    def place(self) -> str:
        """Where it is served."""
        if self.url is None or self.bundle is None:
            return f"on port {self.port} of the cluster's machines"
        return f"at {self.url} (bundle {self.bundle[:12]})"


def _local_settings(settings: ServeConfig) -> ServeConfig:
    """The settings on a local Ray: engines reserve no CPU, so that jobs run beside them, and leave one core free."""
    if settings.num_cpus is not None:
        return settings
    from tinymusician.runtime.cpus import available_cpus

    cores = available_cpus()
    return settings.model_copy(update={"num_cpus": 0.0, "threads": settings.threads or max(1, cores - 1)})


def _check(settings: ServeConfig) -> str | None:
    """Check that API keys and bundles are there; returns the digest of the model's if it cannot change.

    Raises:
        TinyMusicianError: they are not, or cannot be read.
    """
    from serve.api_keys import read_keys
    from serve.bundle_source import check_questions_model, open_bundle_source

    if settings.api_keys is not None:
        read_keys(settings.api_keys)
    if settings.questions_model is not None:
        check_questions_model(settings)
    return open_bundle_source(settings).check()


def _deploy(endpoint: ServeDeployment, settings: ServeConfig) -> _Deployed:
    """Deploy, wait until every engine is ready, and until the address answers with this bundle.

    Raises:
        ClusterError: the endpoint cannot be deployed, or another one answers at its address.
    """
    from jobs.launch.serve_deploy import bundle_at, sends_files_in_pieces
    from serve.config import PROXY_CALLBACK, PROXY_CALLBACK_VARIABLE, reachable_url
    from tinymusician.artifacts.open import open_store

    expected = None
    if endpoint.is_here:  # report errors before an engine is started
        expected = _check(settings)
    if (previous := endpoint.model()) is not None:
        print(f"replaces the endpoint of {previous} on this cluster", file=sys.stderr)
    endpoint.deploy(settings, open_store())
    deployment = endpoint.wait(print_progress).id
    if not endpoint.is_here:
        return _Deployed(deployment, settings.port)
    url = reachable_url(settings.host, settings.port)
    try:
        deployed = _Deployed(deployment, settings.port, url, bundle_at(url, expected))
    except ClusterError:
        endpoint.restore()
        raise
    if not sends_files_in_pieces(url):
        warn(
            "clients that read bundle files slowly cost Ray's proxy memory without bound; start Ray with "
            f"{PROXY_CALLBACK_VARIABLE}={PROXY_CALLBACK}"
        )
    return deployed


def _absolute_if_folder(reference: str) -> str:
    """The full path of a folder of this machine: engines have another working directory."""
    is_folder = Path(reference).is_dir() and not is_packaged_bundle(reference)
    return os.fspath(Path(reference).absolute()) if is_folder else reference


def _with_overrides(values: JsonObject, overrides: list[str]) -> JsonObject:
    import yaml

    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise RequestError(f"--set {override!r}: KEY=VALUE is needed, such as limits.seconds=30")
        *path, last = name.split(".")
        part = values
        for key in path:
            part = part.setdefault(key, {})
            if not isinstance(part, dict):
                raise RequestError(
                    f"--set {override!r}: {key} has no settings of its own; `tmctl serve REF --dry-run` lists all"
                )
        part[last] = yaml.safe_load(value)
    return values


def _serve_until_interrupt(endpoint: ServeDeployment, deployment: str) -> None:
    """Wait for Ctrl-C and stop the endpoint; return if another `tmctl serve` has replaced it.

    Raises:
        ClusterError: the cluster is gone, or the endpoint was stopped.
    """
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    while True:
        interrupted.wait(_POLL_SECONDS)
        state = endpoint.state()
        if state.status == "ABSENT":
            raise ClusterError(f"cluster {endpoint.where}: the endpoint was stopped")
        if state.id != deployment:
            print("another `tmctl serve` has replaced this endpoint", file=sys.stderr)
            return
        if interrupted.is_set():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
            endpoint.stop(print_progress)
            return
