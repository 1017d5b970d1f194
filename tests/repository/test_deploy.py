"""What lies in deploy/ fits together: the services find each other, and what they share has one name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from emovllm_server.arguments import parse as parse_arguments
from emovllm_server.top.scrape import parse
from support.dashboard import DASHBOARD, ROOT, check_dashboard, filled, missing, queries

DEPLOY = ROOT / "deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def servers() -> dict[str, Any]:
    """The server's service by profile: of the one file, and of both together."""
    service, own = read("compose.yaml")["services"]["emovllm"], read("compose.gpu.yaml")["services"]["emovllm"]
    return {"cpu": service, "gpu": {**service, **own, "build": {**service["build"], **own["build"]}}}


def manifests() -> dict[str, Any]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))}


def test_prometheus_scrapes_the_server_of_the_compose_file() -> None:
    (job,) = read("prometheus/prometheus.yml")["scrape_configs"]
    compose = read("compose.yaml")
    assert job["static_configs"] == [{"targets": [check_dashboard.TARGET]}]
    host, port = check_dashboard.TARGET.split(":")
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.M))
    for profile, service in servers().items():
        # Compose reaches a service by its name.
        assert compose["services"][host]["image"] == servers()["cpu"]["image"]
        assert service["ports"] == [f"{port}:{port}"]
        assert service["build"]["target"] == profile
        assert profile in targets
        assert service["profiles"] == [profile]
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists(), volume


def test_both_files_start_the_same_services() -> None:
    one, other = read("compose.yaml")["services"], read("compose.gpu.yaml")["services"]
    assert set(one) == set(other)
    assert {tuple(service["profiles"]) for service in one.values()} == {("cpu",)}
    assert {tuple(service["profiles"]) for service in other.values()} == {("gpu",)}


def test_a_model_and_a_circuit_are_asked_for_where_they_are_needed_and_nowhere_else() -> None:
    assert ":?" not in (DEPLOY / "compose.yaml").read_text()
    model, flag, circuit, *_ = read("compose.gpu.yaml")["services"]["emovllm"]["command"]
    assert model.startswith("${MODEL:?set MODEL")
    assert flag == "--circuit"
    assert circuit.startswith("${CIRCUIT:?set CIRCUIT")
    # A variable that is empty would be an argument all the same, and the server start and end for ever.
    for service in servers().values():
        assert not any(re.search(r"\$\{\w+(:?-)?\}", argument) for argument in service["command"])


def test_images_are_pinned() -> None:
    for service in read("compose.yaml")["services"].values():
        assert "build" in service or re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", service["image"])


def test_grafana_finds_its_source_and_its_dashboard() -> None:
    board = json.loads(DASHBOARD.read_text())
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    (provider,) = read("grafana/provisioning/dashboards/emovllm.yaml")["providers"]
    grafana = read("compose.yaml")["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == source["uid"]
    scrape = read("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    assert source["url"].endswith("//prometheus:9090")
    for panel in board["panels"]:
        for part in (panel, *panel.get("targets", ())):
            assert part.get("datasource", {"uid": "${datasource}"})["uid"] == "${datasource}"


def test_panels_have_their_own_ids_and_places() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_the_check_fills_in_every_variable_of_the_dashboard() -> None:
    board = json.loads(DASHBOARD.read_text())
    own = {variable["name"] for variable in board["templating"]["list"]} - {"datasource"}
    assert own <= set(check_dashboard.VARIABLES)
    for _, expression in queries(DASHBOARD):
        assert "$" not in filled(expression)
        assert "label_values" not in filled(expression)
    assert filled("label_values(up, job)") == "up"
    with pytest.raises(KeyError):
        filled("rate(up[$other])")


def test_what_a_query_lacks_is_named() -> None:
    found = parse('emovllm_requests_total{emotion="fear"} 1\n')
    fine = 'sum by (emotion, instance) (rate(emovllm_requests_total{emotion=~"$emotion", job="x = \\"y\\""}[1m]))'
    assert missing(fine, found) == []
    assert missing('emovllm_requests_total{reason!=""} / vllm:gone', found) == ["vllm:gone", "reason"]
    assert missing("label_values(emovllm_requests_total, model)", found) == ["model"]


def test_the_manifests_speak_of_one_server() -> None:
    found = manifests()
    assert sorted(found["kustomization"]["resources"]) == sorted(
        f"{name}.yaml" for name in found if name != "kustomization"
    )
    spaces = {found[name]["metadata"].get("namespace") for name in found if name not in ("kustomization", "namespace")}
    assert spaces == {found["namespace"]["metadata"]["name"]} == {found["kustomization"]["namespace"]}
    pod = found["deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for selector in (
        found["deployment"]["spec"]["selector"]["matchLabels"],
        found["service"]["spec"]["selector"],
        found["servicemonitor"]["spec"]["selector"]["matchLabels"],
        found["service"]["metadata"]["labels"],
    ):
        assert selector == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (service_port,) = found["service"]["spec"]["ports"]
    assert ports[service_port["targetPort"]] == service_port["port"] == 8000
    assert [end["port"] for end in found["servicemonitor"]["spec"]["endpoints"]] == [service_port["name"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["cache"]["persistentVolumeClaim"]["claimName"] == found["cache"]["metadata"]["name"]


def test_nothing_runs_as_root_and_all_agree_on_the_user() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    users = set(re.findall(r"^USER (\S+)$", dockerfile, re.M))
    pod = manifests()["deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert users == {str(pod["runAsUser"])} == {str(pod["fsGroup"])}
    assert dockerfile.count("\nUSER ") == dockerfile.count("\nFROM ")
    (cache,) = (volume for volume in servers()["cpu"]["volumes"] if volume.startswith("cache:"))
    assert f"--owner {pod['runAsUser']} --group {pod['runAsUser']} {cache.split(':')[1]}" in dockerfile


def test_a_server_that_stops_has_time_to_finish() -> None:
    pod = manifests()["deployment"]["spec"]["template"]["spec"]
    args = pod["containers"][0]["args"]
    assert int(args[args.index("--shutdown-timeout") + 1]) < pod["terminationGracePeriodSeconds"]
    for service in servers().values():
        command = service["command"]
        assert int(command[command.index("--shutdown-timeout") + 1]) < int(service["stop_grace_period"].rstrip("s"))
    unit = (DEPLOY / "systemd/emovllm.service").read_text()
    given = [re.search(pattern, unit) for pattern in (r"--shutdown-timeout (\d+)", r"(?m)^TimeoutStopSec=(\d+)$")]
    assert int(given[0][1]) < int(given[1][1])  # type: ignore[index]


def test_the_production_stack_serves_a_circuit_as_the_dockerfile_has_it() -> None:
    engines = read("production-stack/values.yaml")["servingEngineSpec"]
    pod, container = engines["securityContext"], engines["containerSecurityContext"]
    deployment = manifests()["deployment"]["spec"]["template"]["spec"]
    assert pod == deployment["securityContext"]
    # The chart has a default for it here, which the pod's would not override.
    assert container == {**deployment["containers"][0]["securityContext"], "runAsNonRoot": True}
    startup = deployment["containers"][0]["startupProbe"]
    assert engines["startupProbe"] == {key: startup[key] for key in ("periodSeconds", "failureThreshold")}
    (model,) = engines["modelSpec"]
    # A claim of one node would hold back every replica but the first.
    assert model["replicaCount"] == 1 or model["pvcAccessMode"] == ["ReadWriteMany"]
    assert "lmcacheConfig" not in model
    keys = [(engines["vllmApiKey"], "api-key"), (model["hf_token"], "hf-token")]
    assert [(key["secretName"], key["secretKey"]) for key, _ in keys] == [("emovllm", name) for _, name in keys]
    # As the chart's command: with `vllm serve`, the configuration alone says that there is a circuit.
    config = model["vllmConfig"]
    assert config["enablePrefixCaching"] is True
    _, args = parse_arguments([model["modelURL"], *config["extraArgs"]], "serve")
    assert args.additional_config == {"emovllm": {"circuit": "your-name/your-circuit"}}
    assert args.kv_offloading_size < int(model["requestMemory"].removesuffix("Gi"))
    # What Kubernetes gives a pod where nothing else is said, as in the chart.
    assert 0 < args.shutdown_timeout < 30


def test_no_compose_file_of_docker_copies_secrets_into_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv"} <= set(ignored)
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|KEY|SECRET)", (ROOT / "Dockerfile").read_text(), re.M)


def test_the_documented_metrics_are_those_there_are() -> None:
    from prometheus_client import CollectorRegistry

    from emovllm_server.metrics.collectors import Metrics

    registry = CollectorRegistry()
    Metrics(registry)
    page = Path(ROOT / "docs/reference/metrics.md").read_text()
    documented = dict(re.findall(r"^\| `(emovllm_\w+)` \| (\w+) \|", page, re.M))
    there = {family.name + ("_total" if family.type == "counter" else ""): family.type for family in registry.collect()}
    assert documented == there
