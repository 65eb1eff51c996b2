"""What drivers attest about the artifacts and evaluations in a store, signed with their job key.

    attestations/NAME/DIGEST.json     an artifact: which run made it, when, and its recipe's conditions of release
    runs/ID/figures.json              an evaluation: the figures of every model
    pipeline/FINGERPRINT.json         a pipeline's step that was done with these inputs

Anybody who can write to the store can write these keys, too, so each document repeats what its key says, and only those
count that a trusted job key signed. The date that orders the artifacts of a name is the driver's.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from pydantic import Field, ValidationError

from tinymusician.artifacts.envelope import seal_bytes, unseal_bytes
from tinymusician.artifacts.job_keys import local_job_key, trusted_job_keys
from tinymusician.artifacts.store import Store
from tinymusician.config_model import Document
from tinymusician.errors import NotFoundError, UntrustedError
from tinymusician.json_types import JsonObject

_MEDIA_TYPE = "application/vnd.tinymusician.{}+json"
_Signed = TypeVar("_Signed", bound=Document)


class ArtifactAttestation(Document):
    """An artifact by its permanent reference. `publish` is that section of the submitted recipe; imports have none."""

    artifact: str
    created: datetime
    run: str = ""
    publish: JsonObject = Field(default_factory=dict)


class EvaluationFigures(Document):
    """The figures of an evaluation, by the model's name in the recipe; `publish` is that section of the recipe."""

    run: str
    models: dict[str, JsonObject]
    publish: JsonObject


def attest(store: Store, attestation: ArtifactAttestation) -> None:
    """Sign an attestation with this machine's job key, and store it.

    Raises:
        KeyFileError: the job key cannot be read or created.
    """
    write_signed(store, attestation_key(attestation.artifact), "attestation", attestation)


def attestation_of(store: Store, reference: str) -> ArtifactAttestation:
    """The attestation of an artifact, given by its permanent reference.

    Raises:
        UntrustedError: no job key that is trusted here signed one.
    """
    key = attestation_key(reference)
    try:
        attestation = read_signed(store, key, "attestation", ArtifactAttestation)
    except NotFoundError:
        raise UntrustedError(f"artifact {reference}: no job has attested that it made it ({key} is missing)") from None
    if attestation.artifact != reference:
        raise UntrustedError(f"artifact {reference}: {key} is about {attestation.artifact}")
    return attestation


def is_attested(store: Store, reference: str) -> bool:
    """Whether a job key that is trusted here attests an artifact."""
    try:
        attestation_of(store, reference)
    except UntrustedError:
        return False
    return True


def write_figures(store: Store, figures: EvaluationFigures) -> None:
    """Sign the figures of an evaluation with this machine's job key, and store them."""
    write_signed(store, figures_key(figures.run), "figures", figures)


def figures_of(store: Store, run: str) -> EvaluationFigures:
    """The figures of an evaluation.

    Raises:
        NotFoundError: the run has none.
        UntrustedError: no job key that is trusted here signed them.
    """
    try:
        figures = read_signed(store, figures_key(run), "figures", EvaluationFigures)
    except NotFoundError as error:
        raise NotFoundError(f"run {run!r}: has no evaluation in {store.url}") from error
    if figures.run != run:
        raise UntrustedError(f"run {run!r}: {figures_key(run)} has the figures of run {figures.run!r}")
    return figures


def figures_key(run: str) -> str:
    """The key of an evaluation's figures."""
    return f"runs/{run}/figures.json"


def write_signed(store: Store, key: str, kind: str, document: Document) -> None:
    """Sign a document with this machine's job key, and store it under a key.

    Raises:
        KeyFileError: the job key cannot be read or created.
    """
    payload = document.model_dump_json().encode()
    store.put(key, seal_bytes(_MEDIA_TYPE.format(kind), payload, [local_job_key()]))


def read_signed(store: Store, key: str, kind: str, document: type[_Signed]) -> _Signed:
    """The document under a key. The caller compares what it says with what the key says.

    Raises:
        NotFoundError: there is none.
        UntrustedError: no job key that is trusted here signed it.
    """
    data, name = store.get(key), f"{store.url}: {key}"
    try:
        payload = unseal_bytes(data, _MEDIA_TYPE.format(kind), trusted_job_keys(), name)
    except UntrustedError as error:
        advice = "`tmctl signing-keys trust-job PUBLIC_KEY` trusts the drivers of a cluster of yours"
        raise UntrustedError(f"{error}; {advice}") from None
    try:
        return document.model_validate_json(payload)
    except ValidationError as error:
        raise UntrustedError(f"{name}: is signed, but no valid {kind} ({error.error_count()} fields)") from None


def attestation_key(reference: str) -> str:
    """The key of the attestation of an artifact."""
    name, _, digest = reference.partition("@sha256:")
    return f"attestations/{name}/{digest}.json"
