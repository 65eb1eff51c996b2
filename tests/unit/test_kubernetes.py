"""The manifests: Kubernetes' schemas, Ray's schema of the Serve configuration, and consistency between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.main import get_command

from jobs.cli.main import app
from jobs.launch.validate import check
from serve.config import read_config
from tinymusician.recipe import load_recipe

ROOT = Path(__file__).parents[2] / "infra/kubernetes"
VERSION = "1.33"


def documents() -> list[dict[str, Any]]:
    result = yaml.safe_load((ROOT / "base/kustomization.yaml").read_text())["resources"]
    return [one for name in result for one in yaml.safe_load_all((ROOT / "base" / name).read_text())]


def of(kind: str) -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] == kind]


def gpu_group() -> dict[str, Any]:
    (patch,) = yaml.safe_load((ROOT / "gpu/kustomization.yaml").read_text())["patches"]
    (operation,) = yaml.safe_load(patch["patch"])
    assert operation["path"] == "/spec/workerGroupSpecs/-"
    return dict(operation["value"])


def templates() -> dict[str, dict[str, Any]]:
    """Every pod template by the name of its group."""
    (jobs,), (serving,) = of("RayCluster"), of("RayService")
    result = {"gpus": gpu_group()["template"]}
    for name, spec in (("jobs", jobs["spec"]), ("serving", serving["spec"]["rayClusterConfig"])):
        result[f"{name}-head"] = spec["headGroupSpec"]["template"]
        result |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return result


@pytest.mark.parametrize("document", [one for one in documents() if "ray.io" not in one["apiVersion"]], ids=str)
def test_kubernetes_knows_every_field(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("name", templates())
def test_every_pod_is_one_that_kubernetes_knows_and_the_namespace_admits(name: str) -> None:
    template = templates()[name]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", **template["metadata"]},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, VERSION, strict=True)
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in spec["containers"]:
        guard = container["securityContext"]
        assert (guard["allowPrivilegeEscalation"], guard["readOnlyRootFilesystem"]) == (False, True)
        assert guard["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_serve_config_is_valid_for_the_endpoint_and_ray() -> None:
    (service,) = of("RayService")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    settings = read_config(application.args)
    assert application.import_path == "serve.deployments:build"
    assert (settings.host, settings.is_alias) == (config["http_options"]["host"], True)
    mounted = [mount["mountPath"] for mount in templates()["engines"]["spec"]["containers"][0]["volumeMounts"]]
    assert str(settings.api_keys).startswith(tuple(mounted))
    (engines,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    cores = int(engines["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert cores >= settings.threads
    assert engines["maxReplicas"] >= settings.max_replicas


def test_the_run_is_a_command_and_its_cluster_is_there() -> None:
    (job,) = yaml.safe_load_all((ROOT / "run/pipeline.yaml").read_text())
    (cluster,) = of("RayCluster")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    tmctl, *words = job["spec"]["entrypoint"].split()
    command = get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    parameters = command.make_context("tmctl", words).params
    assert (tmctl, command.name) == ("tmctl", "pipeline")
    check("pipeline", load_recipe(parameters["recipe"]), here=False)
    groups = [*cluster["spec"]["workerGroupSpecs"], gpu_group()]
    assert parameters["workers"] <= max(group["maxReplicas"] for group in groups)


def test_no_pod_is_left_without_a_way_in_and_out_and_none_can_reach_all() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of("NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    chosen = [
        value
        for name in ("jobs", "serving")
        for rule in policies[name]["podSelector"]["matchExpressions"]
        for value in rule["values"]
    ]
    labels = {template["metadata"]["labels"]["app.kubernetes.io/component"] for template in templates().values()}
    assert set(chosen) == labels
    open_to_all = [
        port["port"]
        for spec in policies.values()
        for rule in spec.get("ingress", [])
        if "from" not in rule
        for port in rule["ports"]
    ]
    assert open_to_all == [8000]


def test_secrets_are_named_not_written() -> None:
    assert not of("Secret")
    named = {
        volume["secret"]["secretName"]
        for template in templates().values()
        for volume in template["spec"]["volumes"]
        if "secret" in volume
    }
    page = (ROOT.parents[1] / "docs/kubernetes.md").read_text()
    assert named == {"store", "signing-keys", "api-keys"}
    assert all(f"secret generic {name}" in page for name in named)
    (settings,) = of("ConfigMap")
    assert not {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"} & set(settings["data"])
