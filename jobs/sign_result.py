"""Stores what a job produced, as its driver received it: for people, and signed for those who sign releases."""

from __future__ import annotations

from tinymusician.artifacts.attestations import (
    ArtifactAttestation,
    EvaluationFigures,
    attest,
    attestation_of,
    write_figures,
)
from tinymusician.artifacts.run_state import RunResult, now
from tinymusician.artifacts.runs import RunStore
from tinymusician.errors import UntrustedError
from tinymusician.recipe import parse_recipe


def sign_result(run: RunStore, result: RunResult | None) -> None:
    """Write a run's result, attest its artifacts, and sign its figures; without a result, the earlier one still holds.

    The result comes from the workers, through Ray; nothing here is read from the store but the record, whose digest the
    submission gave.

    Raises:
        KeyFileError: the job key cannot be read.
    """
    if result is None:
        return
    publish = parse_recipe(run.record().recipe, run.id).publish.model_dump(mode="json")
    for reference in (result.artifact, *result.others):
        if reference is not None:
            attest(run.store, ArtifactAttestation(artifact=reference, created=now(), run=run.id, publish=publish))
    if result.evaluated:
        write_figures(run.store, EvaluationFigures(run=run.id, models=result.evaluated, publish=publish))
    run.write_result(result)


def made_by(run: RunStore) -> str:
    """The artifact that a run has made, as its driver attests.

    Raises:
        UntrustedError: it does not; the store says something else.
    """
    artifact = str(run.result().artifact)
    if attestation_of(run.store, artifact).run != run.id:
        raise UntrustedError(f"run {run.id!r}: its driver does not attest {artifact}, which {run.store.url} names")
    return artifact
