"""Releases a bundle, for `tmctl artifacts` and the pipeline: evaluation, gates, signature."""

from __future__ import annotations

from jobs.worker.model_refs import parse_label
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.gates import check_gates, check_question_gates, describe_failures, is_benchmarked
from tinymusician.artifacts.keys import keys_folder, load_key
from tinymusician.artifacts.lineage import attestation
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import Release, latest_key
from tinymusician.artifacts.runs import RunStore
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.store import Store
from tinymusician.artifacts.trust import root_key
from tinymusician.errors import KeyFileError, NotFoundError, StoreError, UntrustedError
from tinymusician.evaluate.results import EvaluationResult, run_metrics
from tinymusician.json_types import JsonObject
from tinymusician.recipe import PublishConfig


def release_metrics(store: Store, run: str, reference: str, baseline: str) -> JsonObject:
    """The metrics of an artifact and of its baseline in an evaluation, as a release signs them.

    Raises:
        NotFoundError: the run did not evaluate both.
    """
    try:
        result = RunStore(store, run).report(EvaluationResult)
    except NotFoundError as error:
        raise NotFoundError(f"run {run!r}: has no evaluation in {store.url}") from error
    models = {parse_label(model.model_id)[1]: model for model in result.models}
    for name, expected in (("the artifact", reference), ("its baseline", baseline)):
        if expected not in models:
            evaluated = ", ".join(models) or "nothing"
            raise NotFoundError(f"run {run!r}: did not evaluate {name}, {expected}; it evaluated {evaluated}")
    return {
        "run": run,
        "own": run_metrics(models[reference]),
        "baseline": {"model": baseline, **run_metrics(models[baseline])},
    }


def check_release_key(store: Store) -> None:
    """Check that this process can sign a release, before a pipeline does hours of work for one.

    Raises:
        KeyFileError: the folder of keys has no release key that the store's root document names.
        UntrustedError: the store has no valid root document.
        StoreError: the store cannot be read.
    """
    folder = keys_folder()
    try:
        load_key("release", folder, ReleaseRegistry(store, folder).roots()[-1].release_keys)
    except KeyFileError as error:
        raise KeyFileError(f"{error}; a pipeline with --until evaluate needs none") from None


def publish(
    registry: ReleaseRegistry, manifest: Manifest, evaluation: JsonObject | None, config: PublishConfig
) -> Release:
    """Sign an artifact as the newest release of the recipe's alias, with its attestation and metrics."""
    about: JsonObject = {"attestation": attestation(manifest), "metrics": manifest.metrics}
    if evaluation is not None:
        about["evaluation"] = evaluation
    return registry.release(manifest, config.alias, about, config.days)


def promote(
    registry: ReleaseRegistry, source: Release, alias: str, config: PublishConfig, reason: str | None
) -> Release:
    """Point an alias at the artifact of another alias, if its evaluation passes the gates or a reason is given.

    Raises:
        UntrustedError: it does not pass, and no reason is given.
    """
    evaluation, metrics = source.about.get("evaluation"), source.about.get("metrics") or {}
    if is_benchmarked(metrics):
        results = check_question_gates(metrics, config.question_gates)
    else:
        results = check_gates(evaluation["own"], evaluation["baseline"], config.gates) if evaluation else []
    failed = describe_failures(results) if results else "evaluation: it has none"
    if failed and not reason:
        raise UntrustedError(
            f"release {source.reference}, version {source.version}: {failed}. Nothing was promoted; --override REASON "
            f"promotes it anyway, and records the reason"
        )
    about: JsonObject = {
        "promoted_from": f"{source.reference}, version {source.version}",
        "gates": [one._asdict() for one in results],
        "overridden": reason if failed else None,
    }
    return registry.move(source, alias, about, config.days)


def presigned_urls(registry: ReleaseRegistry, name: str, alias: str, seconds: int) -> dict[str, str]:
    """Presigned URLs of all keys that a device reads, or looks for in vain, when it pulls an alias's current release.

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
