"""What deploy/ holds is what Prometheus, Grafana and Kubernetes accept, and names only what there is."""

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.cli import serve
from tests.metrics_table import documented

ROOT = Path(__file__).parents[2]
PROMETHEUS, KUBERNETES = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")
CUSTOM = {"ServiceMonitor"}
"""Kinds of the Prometheus operator, whose schema is not among Kubernetes' own."""
promtool = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(promtool is None, reason="no promtool (Debian, Ubuntu: apt-get install prometheus)")


def run_promtool(*arguments: str | Path) -> str:
    assert promtool
    done = subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def series_of(expression: str) -> set[str]:
    """Names of metrics in a PromQL expression."""
    return set(re.findall(r"\b(?:infalign|vllm)[_:][a-z0-9_:]+", expression))


def known_series() -> set[str]:
    """Every series name that the metrics reference allows for."""
    found = set(re.findall(r"`(vllm:\w+)`", (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")))
    for name, metric in documented().items():
        found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if metric.type == "histogram" else {name}
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


@needs_promtool
def test_prometheus_accepts_rules_and_config() -> None:
    assert "SUCCESS" in run_promtool("check", "rules", PROMETHEUS / "rules.yaml")
    assert "SUCCESS" in run_promtool("check", "config", PROMETHEUS / "prometheus.yaml")


def test_alertmanager_accepts_its_config() -> None:
    if not (amtool := shutil.which("amtool")):
        pytest.skip("no amtool (Debian, Ubuntu: apt-get install prometheus-alertmanager)")
    config = str(PROMETHEUS / "alertmanager.yaml")
    done = subprocess.run([amtool, "check-config", config], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in run_promtool("test", "rules", PROMETHEUS / "rules_test.yaml")


def test_every_alert_is_tested_named_and_explained() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", ())]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    quiet = {case["alertname"] for case in tests[-1]["alert_rule_test"] if not case["exp_alerts"]}
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts == fired == quiet
    guide = (ROOT / "docs" / "guides" / "operations.md").read_text(encoding="utf-8")
    assert alerts == set(re.findall(r"^\| `(InfAlign\w+)`", guide, re.MULTILINE))


def test_rules_name_only_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert series_of(rule["expr"]) <= known_series() | recorded, rule


def panels() -> list[dict[str, Any]]:
    board = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = board["panels"]
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


@needs_promtool
def test_prometheus_parses_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    concrete = [text.replace("$__rate_interval", "5m").replace("$job", "infalign") for text in expressions()]
    assert not any("$" in text for text in concrete)
    recorded = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(concrete)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert f"{len(concrete)} rules found" in run_promtool("check", "rules", tmp_path / "rules.yaml")


def test_the_dashboard_names_only_metrics_that_exist() -> None:
    named = {name for text in expressions() for name in series_of(text)}
    assert named
    assert named <= known_series(), named - known_series()


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    assert board["uid"]
    assert board["title"]
    assert {variable["name"]: variable["type"] for variable in board["templating"]["list"]} == {
        "datasource": "datasource",
        "job": "query",
    }
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        assert panel["type"] in {"row", "stat", "timeseries", "heatmap"}
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in combinations((panel["gridPos"] for panel in panels()), 2):
        apart = [
            first[start] + first[size] <= second[start]
            for first, second in ((one, other), (other, one))
            for start, size in (("x", "w"), ("y", "h"))
        ]
        assert any(apart), (one, other)


def manifest(kind: str) -> dict[str, Any]:
    found = [one for one in map(yaml.safe_load, map(Path.read_text, KUBERNETES.glob("*.yaml"))) if one["kind"] == kind]
    assert len(found) == 1
    return dict(found[0])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", sorted(KUBERNETES.glob("*.yaml")), ids=lambda file: file.stem)
def test_kubernetes_accepts_every_manifest(file: Path, version: str) -> None:
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    if found["kind"] not in CUSTOM:
        kubernetes_validate.validate(found, version, strict=True)


def test_a_manifest_with_a_wrong_key_would_be_refused() -> None:
    wrong = manifest("Service")
    wrong["spec"]["selectors"] = wrong["spec"].pop("selector")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_manifests_fit_together() -> None:
    deployment, service, hpa = manifest("Deployment"), manifest("Service"), manifest("HorizontalPodAutoscaler")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in {found["name"] for found in container["ports"]}
    scraped = manifest("ServiceMonitor")["spec"]
    assert scraped["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [endpoint["port"] for endpoint in scraped["endpoints"]] == [port["name"]]
    assert hpa["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if len(volume) > 1 and "persistentVolumeClaim" in volume
    }
    assert claims == {manifest("PersistentVolumeClaim")["metadata"]["name"]}
    settings = manifest("ConfigMap")
    assert [source["configMapRef"]["name"] for source in container["envFrom"]] == [settings["metadata"]["name"]]
    keys = next(mount for mount in container["volumeMounts"] if mount["name"] == "keys")
    assert settings["data"]["INFALIGN_KEYS"].startswith(keys["mountPath"] + "/")
    assert settings["data"]["INFALIGN_PORT"] == str(container["ports"][0]["containerPort"])


def test_the_pod_is_probed_where_the_server_answers_and_outlives_its_drain() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 900
    assert pod["terminationGracePeriodSeconds"] >= 5 + 30 + 30
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    assert pod["securityContext"]["runAsNonRoot"]


def test_every_setting_of_the_manifests_is_an_option() -> None:
    options = {option.envvar for option in serve.params if getattr(option, "envvar", None)}
    assert set(manifest("ConfigMap")["data"]) <= options


def test_the_autoscaler_and_the_guide_name_a_metric_that_exists() -> None:
    (metric,) = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert documented()[metric["pods"]["metric"]["name"]].type == "gauge"
