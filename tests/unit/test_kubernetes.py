"""The manifests, as kustomize builds them: the schemas of Kubernetes, KubeRay and Ray Serve, and what must agree."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import chain
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray import __version__ as ray_version
from ray.serve.schema import ServeDeploySchema
from typer.main import get_command
from typer.testing import CliRunner

from jobs.cli.main import app
from jobs.launch.validate import check
from serve.config import read_config
from tests.kubernetes import MANIFESTS, OVERLAYS, ROOT, build, of_kind, schema
from tinymusician.recipe import load_recipe

VERSION = "1.33"
PAGE = (ROOT / "docs/kubernetes.md").read_text()
PLACEHOLDERS = {"PUBLIC-ROOT-KEY", "registry.example.org", "s3.example.org"}


def clusters(overlay: str) -> dict[str, dict[str, Any]]:
    """Every Ray cluster of an overlay, by the name of its resource."""
    result = {one["metadata"]["name"]: one["spec"] for one in of_kind(overlay, "RayCluster")}
    result |= {one["metadata"]["name"]: one["spec"]["rayClusterConfig"] for one in of_kind(overlay, "RayService")}
    return result | {one["metadata"]["name"]: one["spec"]["rayClusterSpec"] for one in of_kind(overlay, "RayJob")}


def templates(overlay: str) -> dict[str, dict[str, Any]]:
    """Every pod template of an overlay, by cluster and group."""
    result = {}
    for name, spec in clusters(overlay).items():
        result[f"{name}-head"] = spec["headGroupSpec"]["template"]
        result |= {f"{name}-{group['groupName']}": group["template"] for group in spec["workerGroupSpecs"]}
    return result


def container(template: dict[str, Any]) -> dict[str, Any]:
    (one,) = template["spec"]["containers"]
    return dict(one)


def gigabytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi|Ti)", quantity).groups()  # type: ignore[union-attr]  # or it fails
    return int(number) * {"Mi": 1 / 1024, "Gi": 1, "Ti": 1024}[unit] * 1.073741824


@pytest.fixture(params=[f"overlays/{name}" for name in OVERLAYS])
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_kubernetes_and_kuberay_know_every_field(overlay: str) -> None:
    for document in build(overlay):
        if document["apiVersion"] == "ray.io/v1":
            jsonschema.Draft202012Validator(schema(document["kind"])).validate(document)
        elif not document["apiVersion"].startswith("monitoring.coreos.com"):
            kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("field", ["autoscalerOptions.versoin", "authOptions.mode", "headGroupSpec.template.spec.x"])
def test_the_schema_refuses_what_kuberay_would_drop(field: str) -> None:
    """The check above is one: it fails for a field, a value and a field of a pod that do not exist."""
    (cluster,) = of_kind("overlays/cpu", "RayCluster")
    *path, last = field.split(".")
    cluster = yaml.safe_load(yaml.safe_dump(cluster))
    node = cluster["spec"]
    for name in path:
        node = node[name]
    node[last] = "wrong"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema("RayCluster")).validate(cluster)


def test_every_pod_is_one_that_the_namespace_admits(overlay: str) -> None:
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in templates(overlay).values():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", **template["metadata"]}}
        spec = template["spec"]
        kubernetes_validate.validate({**pod, "spec": spec}, VERSION, strict=True)
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        one = container(template)
        guard = one["securityContext"]
        assert (guard["allowPrivilegeEscalation"], guard["readOnlyRootFilesystem"]) == (False, True)
        assert guard["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in one["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert one["resources"]["limits"]["memory"] == one["resources"]["requests"]["memory"]


def test_no_pod_fills_its_machines_disk_or_lacks_shared_memory(overlay: str) -> None:
    for template in templates(overlay).values():
        resources = container(template)["resources"]
        sizes = {volume["name"]: volume.get("emptyDir") for volume in template["spec"]["volumes"]}
        on_disk = [one["sizeLimit"] for one in sizes.values() if one is not None and one.get("medium") != "Memory"]
        assert sum(map(gigabytes, on_disk)) <= gigabytes(resources["limits"]["ephemeral-storage"])
        objects = 0.3 * gigabytes(resources["limits"]["memory"])  # Ray's default, if none is set
        assert gigabytes(sizes["shared"]["sizeLimit"]) >= min(objects, 32)


def test_clusters_are_of_this_ray_with_its_token_and_scaler(overlay: str) -> None:
    for spec in clusters(overlay).values():
        assert spec["rayVersion"] == ray_version
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_nodes_have_time_for_a_checkpoint_before_they_end(overlay: str) -> None:
    """Ray drains a node at SIGTERM so long; Kubernetes kills it later."""
    (settings,) = of_kind(overlay, "ConfigMap")
    drain = int(settings["data"]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    for name, template in templates(overlay).items():
        if name.endswith("-head"):
            (variable,) = container(template)["env"]
            assert (variable["name"], variable["value"]) == ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
        else:
            assert template["spec"]["terminationGracePeriodSeconds"] >= drain + 20


def test_heads_and_engines_are_protected(overlay: str) -> None:
    protected = {
        budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: budget["spec"]["minAvailable"]
        for budget in of_kind(overlay, "PodDisruptionBudget")
    }
    heads = 64  # more than one: runs with clusters of their own, an endpoint that is upgraded
    assert min(protected["head"], protected["endpoint-head"]) > heads
    assert protected["engine"] == 1
    (priority,) = of_kind(overlay, "PriorityClass")
    for name, template in templates(overlay).items():
        assert template["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        if name.endswith("-head"):
            assert template["spec"]["priorityClassName"] == priority["metadata"]["name"]


def test_a_gpu_pod_is_a_whole_machine() -> None:
    gpus = templates("overlays/gpu")["music-gpus"]
    one = container(gpus)
    assert one["image"].startswith("registry.example.org/tinymusician-cluster-cuda:")
    assert one["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert one["resources"]["limits"]["rdma/ib"] == "1"
    cache = next(volume for volume in gpus["spec"]["volumes"] if volume["name"] == "cache")
    claim = cache["ephemeral"]["volumeClaimTemplate"]["spec"]
    limit = next(float(each["value"]) for each in one["env"] if each["name"] == "TMCTL_CACHE_LIMIT_GB")
    assert 1.2 * limit <= gigabytes(claim["resources"]["requests"]["storage"])
    others = [template for name, template in templates("overlays/gpu").items() if name != "music-gpus"]
    assert all("nvidia.com/gpu" not in container(each)["resources"]["limits"] for each in others)


def test_serve_config_is_valid_for_the_endpoint_and_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    (service,) = of_kind("overlays/gpu", "RayService")
    (settings,) = of_kind("overlays/gpu", "ConfigMap")
    monkeypatch.setenv("TMCTL_ROOT_KEY", settings["data"]["TMCTL_ROOT_KEY"])
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(config).applications
    endpoint = read_config(application.args)
    assert application.import_path == "serve.deployments:build"
    assert (endpoint.host, endpoint.is_alias) == (config["http_options"]["host"], True)
    assert endpoint.root_key == "PUBLIC-ROOT-KEY"
    engines = container(templates("overlays/gpu")["endpoint-engines"])
    assert str(endpoint.api_keys).startswith(tuple(mount["mountPath"] for mount in engines["volumeMounts"]))
    assert int(engines["resources"]["requests"]["cpu"]) >= endpoint.threads
    (group,) = clusters("overlays/gpu")["endpoint"]["workerGroupSpecs"]
    assert group["maxReplicas"] >= endpoint.max_replicas


@pytest.mark.parametrize("folder", ["components/run", "overlays/gpu-run"])
def test_the_run_is_a_command_and_fits_its_cluster(folder: str) -> None:
    if folder == "components/run":
        job = yaml.safe_load((MANIFESTS / folder / "run.yaml").read_text())
    else:
        (job,) = of_kind(folder, "RayJob")
        (cluster,) = of_kind(folder, "RayCluster")
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    tmctl, *words = job["spec"]["entrypoint"].split()
    command = get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    parameters = command.make_context("tmctl", words).params
    assert (tmctl, command.name, parameters["name"]) == ("tmctl", "pipeline", job["metadata"]["name"])
    # The models are in the site's store only.
    overrides = tuple(one for one in parameters["overrides"] or () if ".model=" not in one)
    check("pipeline", load_recipe(parameters["recipe"], overrides), here=False)
    assert job["spec"]["shutdownAfterJobFinishes"]


def test_no_pod_is_left_without_a_way_in_and_out_and_none_can_reach_all(overlay: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(overlay, "NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    chosen = [
        value
        for name in ("jobs", "serving")
        for rule in policies[name]["podSelector"]["matchExpressions"]
        for value in rule["values"]
    ]
    labels = {template["metadata"]["labels"]["app.kubernetes.io/component"] for template in templates(overlay).values()}
    assert set(chosen) == labels
    rules = chain.from_iterable(spec.get("ingress", []) for spec in policies.values())
    assert [port["port"] for rule in rules if "from" not in rule for port in rule["ports"]] == [8000]
    outwards = [rule for rule in policies["outwards"]["egress"] if "to" not in rule]
    assert {port["port"] for rule in outwards for port in rule["ports"]} == {53, 5353, 443, 6443}


def test_secrets_are_named_not_written(overlay: str) -> None:
    assert not of_kind(overlay, "Secret")
    for name, template in templates(overlay).items():
        secrets = {one["secret"]["secretName"] for one in template["spec"]["volumes"] if "secret" in one}
        assert all(f"secret generic {one} " in PAGE for one in secrets)
        assert ("signing-keys" in secrets) == (overlay == "overlays/cpu" and name == "music-head")
        if name.startswith("endpoint") or "engine" in name:
            assert secrets == {"store-reader", "api-keys"}, "the endpoint faces the internet, and writes nothing"
        assert ("job-keys" in secrets) == (name in ("music-head", "run-name-head")), "workers run users' code"
    (settings,) = of_kind(overlay, "ConfigMap")
    assert not {"AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"} & set(settings["data"])


def test_site_settings_are_in_overlays_only() -> None:
    for path in [*(MANIFESTS / "base").iterdir(), *(MANIFESTS / "components").rglob("*.yaml")]:
        assert not [word for word in PLACEHOLDERS if word in path.read_text()], path
    assert not (PLACEHOLDERS - {word for word in PLACEHOLDERS if word in str(build("overlays/gpu"))})


def test_signing_has_separate_pods(tmp_path: Path) -> None:
    """Each with a service account that may do nothing, and one key; neither has the job key, and no head has theirs."""
    shutil.copytree(MANIFESTS, tmp_path / "infra")
    site = tmp_path / "infra/overlays/site"
    site.mkdir()
    components = ["../../components/signing"]
    content = {"kind": "Kustomization", "resources": ["../../base"], "components": components}
    (site / "kustomization.yaml").write_text(yaml.safe_dump(content))
    keys = {"publish": {"store", "signing-keys"}, "timestamp": {"store", "timestamp-key"}}
    jobs = {one["metadata"]["name"]: one for one in of_kind(str(site), "CronJob")}
    assert set(jobs) == set(keys)
    accounts = {one["metadata"]["name"] for one in of_kind(str(site), "ServiceAccount")}
    for name, job in jobs.items():
        kubernetes_validate.validate(job, VERSION, strict=True)
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert {one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one} == keys[name]
        accounts.remove(pod["serviceAccountName"])  # an error if it is shared, or missing
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        (container_,) = pod["containers"]
        assert container_["securityContext"]["readOnlyRootFilesystem"]
        parsed = CliRunner().invoke(app, [*container_["command"][1:], *container_.get("args", []), "--help"])
        assert parsed.exit_code == 0, parsed.output
    assert (
        len({job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"] for job in jobs.values()})
        == 2
    )
    assert not of_kind(str(site), "RoleBinding")
    for cluster in of_kind(str(site), "RayCluster"):
        assert "signing-keys" not in yaml.safe_dump(cluster)


@pytest.mark.parametrize("name", [path.name for path in sorted((MANIFESTS / "components").iterdir())])
def test_every_component_applies_to_the_cluster_of_its_page(name: str, tmp_path: Path) -> None:
    """With those it needs; the page says which are not tested here, and so does the component."""
    needs = {"rdma": ["gpu"], "kueue-run": ["gpu", "run"]}.get(name, [])
    infra = tmp_path / "infra"
    shutil.copytree(MANIFESTS, infra)
    site = infra / "overlays/site"
    site.mkdir()
    components = [f"../../components/{one}" for one in [*needs, name]]
    kustomization = {"kind": "Kustomization", "resources": ["../../base"], "components": components}
    (site / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    without, built = build("base"), build(str(site))
    assert built != without
    for document in built:
        if document["apiVersion"] == "ray.io/v1":
            jsonschema.Draft202012Validator(schema(document["kind"])).validate(document)
    is_untested = "Not tested here" in (MANIFESTS / "components" / name / "kustomization.yaml").read_text()
    (row,) = [line for line in PAGE.splitlines() if line.strip().startswith(f"| `{name}` |")]
    assert ("not tested here" in row) == is_untested


def test_pod_monitors_and_alerts_agree_on_jobs() -> None:
    """Every pod that runs is scraped once, under a job that the alerts know; a pool's nodes may go without one."""
    monitors = {one["metadata"]["name"]: one["spec"] for one in of_kind("overlays/gpu", "PodMonitor")}
    pods = [
        {**template["metadata"]["labels"], "ray.io/cluster": cluster, "ports": container(template)["ports"]}
        for name, template in templates("overlays/gpu-run").items()
        for cluster in [re.sub("-(head|workers|gpus|engines)$", "", name)]
    ]
    jobs = []
    for pod in pods:
        ((name, spec),) = [(name, spec) for name, spec in monitors.items() if selects(spec["selector"], pod)]
        (endpoint,) = spec["podMetricsEndpoints"]
        assert endpoint["port"] in {port["name"] for port in pod["ports"]}
        running, relabeling = endpoint["relabelings"]
        assert running == {"sourceLabels": ["__meta_kubernetes_pod_phase"], "regex": "Running", "action": "keep"}
        jobs.append((pod["ray.io/cluster"], name, relabeling["replacement"]))
    assert ("music", "cluster", "cluster") in jobs
    assert ("run-name", "run", "pool") in jobs
    alerts = (ROOT / "infra/monitoring/alerts.yml").read_text()
    named = {name for match in re.findall(r'up{job=~?"([a-z|]+)"', alerts) for name in match.split("|")}
    assert named == {job for _, _, job in jobs} - {"engine"}


def selects(selector: dict[str, Any], labels: dict[str, Any]) -> bool:
    """Whether a label selector of Kubernetes selects a pod with these labels."""
    exact = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    rules = selector.get("matchExpressions", [])
    return exact and all((labels.get(rule["key"]) in rule["values"]) == (rule["operator"] == "In") for rule in rules)


def test_alerts_of_the_operator_are_those_of_compose() -> None:
    rules = {one["metadata"]["name"]: one["spec"] for one in of_kind("overlays/gpu", "PrometheusRule")}
    assert rules["tinymusician"] == yaml.safe_load((ROOT / "infra/monitoring/alerts.yml").read_text())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here: `make tools`")
@pytest.mark.parametrize("component", ["monitoring", "dcgm"])
def test_prometheus_reads_the_operators_rules(component: str, tmp_path: Path) -> None:
    (rule,) = [
        one
        for one in yaml.safe_load_all((MANIFESTS / "components" / component / "rules.yaml").read_text())
        if one["kind"] == "PrometheusRule"
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]))
    words = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "SUCCESS" in ended.stdout
