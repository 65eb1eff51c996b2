"""What `tmctl artifacts` and the pipeline do to release a bundle: evaluation, gates, signature."""

from __future__ import annotations

from typing import Any

from jobs.evaluate.evaluator import short_label
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.gates import findings, refusal
from tinymusician.artifacts.lineage import attestation
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import Release, latest_key
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.store import Store
from tinymusician.artifacts.trust import root_key
from tinymusician.errors import NotFoundError, StoreError, UntrustedError
from tinymusician.recipe import PublishConfig

_RELEASED_METRICS = (
    "fad",
    "fad_infinity",
    "kad",
    "clap",
    "clap_shuffled",
    "kl",
    "degenerate",
    "bytes",
    "real_time_factor",
)


def release_metrics(store: Store, run: str, reference: str, baseline: str) -> dict[str, Any]:
    """An evaluation's figures of an artifact and of its baseline.

    Raises:
        NotFound: the run did not judge both.
    """
    models = RunStore(store, run).status().metrics
    for name, expected in (("it", reference), ("its baseline", baseline)):
        if short_label(expected) not in models:
            judged = ", ".join(models) or "nothing"
            raise NotFoundError(f"run {run!r}: has not judged {name}, {short_label(expected)}; it has judged {judged}")
    metrics, base = (
        {key: models[short_label(one)].get(key) for key in _RELEASED_METRICS} for one in (reference, baseline)
    )
    return {"run": run, "own": metrics, "baseline": {"model": baseline, **base}}


def publish(
    registry: ReleaseRegistry, manifest: Manifest, evaluation: dict[str, Any] | None, config: PublishConfig
) -> Release:
    """Sign an artifact as the newest release of the recipe's alias, with what is known of it."""
    about: dict[str, Any] = {"attestation": attestation(manifest), "metrics": manifest.metrics}
    if evaluation is not None:
        about["evaluation"] = evaluation
    return registry.release(manifest, config.alias, about, config.days)


def promote(
    registry: ReleaseRegistry, source: Release, alias: str, config: PublishConfig, reason: str | None
) -> Release:
    """Let an alias point at what another one points at, if its evaluation passes the gates or somebody says why.

    Raises:
        Refused: it does not pass, and no reason is given.
    """
    evaluation = source.about.get("evaluation")
    results = findings(evaluation["own"], evaluation["baseline"], config.gates) if evaluation else []
    failed = refusal(results) if evaluation else "evaluation: it has none"
    if failed and not reason:
        raise UntrustedError(
            f"release {source.reference}, version {source.version}: {failed}. Nothing was promoted; --override REASON "
            f"does it all the same, and is kept"
        )
    about: dict[str, Any] = {
        "promoted_from": f"{source.reference}, version {source.version}",
        "gates": [one._asdict() for one in results],
        "overridden": reason if failed else None,
    }
    return registry.move(source, alias, about, config.days)


def presigned_urls(registry: ReleaseRegistry, name: str, alias: str, seconds: int) -> dict[str, str]:
    """Presigned addresses of all keys that a device needs for what an alias points at now, or looks for in vain.

    Raises:
        StoreError: the store cannot sign addresses.
    """
    store = registry.store
    if not isinstance(store, S3Store):
        raise StoreError(f"store {store.url}: has no presigned addresses; S3 has")
    release = registry.newest(name, alias)
    keys = [root_key(version) for version in range(1, registry.roots()[-1].version + 2)]
    keys += [latest_key(name, alias), *(blob_key(file.sha256) for file in release.files)]
    return {key: store.presigned(key, seconds) for key in keys}
