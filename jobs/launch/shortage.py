"""Why a job or an endpoint waits: what it requests, what its cluster has, and which runs hold it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.launch.cluster import connect
from jobs.launch.ray_environment import explicit_address
from jobs.launch.trusted_clusters import check_trusted
from tinymusician.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from ray.util.state.common import ActorState

_RESOURCES = ("CPU", "GPU")
_LIMIT = 1000
ENDPOINT = "the endpoint"


@dataclass(frozen=True)
class ResourceClaim:
    """Resources that a run or an endpoint holds, or for which it waits."""

    holder: str
    resources: Mapping[str, float]
    is_pending: bool


@dataclass(frozen=True)
class Shortage:
    """More of a resource is requested than is free."""

    resource: str
    requested: float
    total: float
    holders: Mapping[str, float]

    def __str__(self) -> str:
        free = max(0.0, self.total - sum(self.holders.values()))
        plural = "" if self.requested == 1 else "s"
        text = f"waiting for {self.requested:g} {self.resource}{plural}: {free:g} of {self.total:g} are free"
        held = [f"{holder} uses {amount:g}" for holder, amount in self.holders.items()]
        return "; ".join([text, *held])


def shortages(claims: Iterable[ResourceClaim], totals: Mapping[str, float], waiting: str) -> list[Shortage]:
    """The resources of which `waiting` requests more than is free; `totals` are those of the cluster."""
    result = []
    claims = list(claims)
    for resource in _RESOURCES:
        requested, holders = 0.0, dict[str, float]()
        for claim in claims:
            amount = claim.resources.get(resource, 0.0)
            if claim.is_pending:
                requested += amount if claim.holder == waiting else 0.0
            elif amount:
                holders[claim.holder] = holders.get(claim.holder, 0.0) + amount
        total = totals.get(resource, 0.0)
        if requested and requested > total - sum(holders.values()):
            result.append(Shortage(resource, requested, total, holders))
    return result


def run_holder(run_id: str) -> str:
    """The holder of a run's resources."""
    return f"run {run_id}"


def recorded_shortages(address: str, waiting: str) -> list[Shortage]:
    """What a run lacks on the cluster that its record names; nothing if no user of this machine has named that."""
    try:
        check_trusted(address)
    except ClusterError:
        return []
    return current_shortages(address, waiting)


def current_shortages(address: str, waiting: str) -> list[Shortage]:
    """What a run or the endpoint (`waiting`) lacks on the cluster at an address; nothing if it cannot be asked."""
    from ray.util.state.exception import RayStateApiException

    try:
        client, _ = connect(address, start=False)
        return shortages(*_cluster_claims(client, address), waiting)
    except (ClusterError, RayStateApiException, RuntimeError, OSError):
        return []


def shortages_here(waiting: str) -> list[Shortage]:
    """The same on the cluster that this process runs on, as the environment of Ray's jobs names it."""
    from ray.job_submission import JobSubmissionClient

    try:
        return shortages(*_cluster_claims(JobSubmissionClient(), None), waiting)
    except Exception:  # of any kind, while a head restarts: what is not known is not said
        return []


def _cluster_claims(
    client: JobSubmissionClient, address: str | None
) -> tuple[list[ResourceClaim], Mapping[str, float]]:
    from ray.util.state import list_actors, list_nodes, list_placement_groups

    options = {"address": address, "limit": _LIMIT, "raise_on_missing_output": False}
    with explicit_address() if address else contextlib.nullcontext():
        nodes = list_nodes(**options, filters=[("state", "=", "ALIVE")])
        actors = list_actors(**options, detail=True, filters=[("state", "!=", "DEAD")])
        groups = list_placement_groups(**options, detail=True, filters=[("state", "!=", "REMOVED")])
    jobs = [job for job in client.list_jobs() if "run" in (job.metadata or {})]
    runs = {job.job_id: run_holder(job.metadata["run"]) for job in jobs}
    claims = [
        ResourceClaim(_holder(actor, runs), actor.required_resources or {}, actor.state != "ALIVE")
        for actor in actors
        if not actor.placement_group_id
    ]
    for group in groups:
        holder = runs.get(group.creator_job_id, f"job {group.creator_job_id}")
        claims += [
            ResourceClaim(holder, bundle["unit_resources"], group.state != "CREATED") for bundle in group.bundles or ()
        ]
    totals = {name: sum(node.resources_total.get(name, 0) for node in nodes) for name in _RESOURCES}
    return claims, totals


def _holder(actor: ActorState, runs: Mapping[str, str]) -> str:
    if actor.ray_namespace == "serve":
        return ENDPOINT
    return runs.get(actor.job_id, f"job {actor.job_id}")
