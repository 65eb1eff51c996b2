"""Releases a bundle, for `tmctl artifacts` and the pipeline: evaluation, gates, signature."""

from __future__ import annotations

from pydantic import ValidationError

from tinymusician.artifacts.attestations import attestation_of, figures_of
from tinymusician.artifacts.blobs import blob_key
from tinymusician.artifacts.envelope import payload_sha256
from tinymusician.artifacts.gates import check_gates, check_question_gates, describe_failures, is_benchmarked
from tinymusician.artifacts.keys import keys_folder
from tinymusician.artifacts.lineage import attestation
from tinymusician.artifacts.manifest import Manifest
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import Release, latest_key, release_key
from tinymusician.artifacts.s3 import S3Store
from tinymusician.artifacts.store import Store
from tinymusician.artifacts.timestamp import timestamp_key
from tinymusician.artifacts.trust import root_key
from tinymusician.errors import KeyFileError, NotFoundError, StoreError, UntrustedError
from tinymusician.json_types import JsonObject
from tinymusician.recipe import PublishConfig


def release_metrics(store: Store, run: str, reference: str, baseline: str) -> JsonObject:
    """The metrics of an artifact and of its baseline in an evaluation, as a release signs them.

    Raises:
        NotFoundError: the run did not evaluate both.
        UntrustedError: no trusted driver signed its figures.
    """
    models = figures_of(store, run).models
    for name, expected in (("the artifact", reference), ("its baseline", baseline)):
        if expected not in models:
            evaluated = ", ".join(models) or "nothing"
            raise NotFoundError(f"run {run!r}: did not evaluate {name}, {expected}; it evaluated {evaluated}")
    return {
        "run": run,
        "own": models[reference],
        "baseline": {"model": baseline, **models[baseline]},
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
        ReleaseRegistry(store, folder).check_can_release()
    except KeyFileError as error:
        raise KeyFileError(f"{error}; a pipeline with --until evaluate needs none") from None


def publish(
    registry: ReleaseRegistry, manifest: Manifest, evaluation: JsonObject | None, config: PublishConfig
) -> Release:
    """Sign an artifact as the newest release of the recipe's alias, with its attestation, metrics and gates.

    Raises:
        UntrustedError: no trusted driver attests that it made the artifact.
    """
    attestation_of(registry.store, manifest.reference)
    about: JsonObject = {"attestation": attestation(manifest), "metrics": manifest.metrics}
    about["publish"] = config.model_dump(mode="json")
    if evaluation is not None:
        about["evaluation"] = evaluation
    return registry.release(manifest, config.alias, about, config.days)


def publish_config(store: Store, reference: str) -> PublishConfig:
    """The gates, baseline and days of the recipe that was submitted to make an artifact; imports have the defaults.

    Raises:
        UntrustedError: no trusted driver attests that it made the artifact.
    """
    return PublishConfig.model_validate(attestation_of(store, reference).publish)


def released_config(release: Release) -> PublishConfig:
    """The gates and days that a release was signed with; numbers are text there.

    Raises:
        UntrustedError: it was signed without any.
    """
    try:
        return PublishConfig.model_validate(release.about["publish"])
    except (KeyError, ValidationError):
        raise UntrustedError(
            f"release {release.reference}, version {release.version}: is signed without gates; name them with --recipe"
        ) from None


def promote(
    registry: ReleaseRegistry, source: Release, alias: str, config: PublishConfig, reason: str | None
) -> Release:
    """Point an alias at the artifact of another alias, if its evaluation passes the gates or a reason is given.

    Raises:
        UntrustedError: it does not pass, and no reason is given; or no trusted driver attests its artifact.
    """
    attestation_of(registry.store, source.artifact)
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
    if registry.roots()[-1].has_timestamp:
        sha256 = payload_sha256(store.get(latest_key(name, alias)), release.reference)
        keys += [timestamp_key(name, alias), release_key(name, alias, release.version, sha256)]
    return {key: store.presigned(key, seconds) for key in keys}
