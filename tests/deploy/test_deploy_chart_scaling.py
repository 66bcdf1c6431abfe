"""How Triton is scaled, and what Prometheus and Grafana are given."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from rendered_chart import CHART, GPUS, KSERVE, ROOT, render

COMPONENT = "app.kubernetes.io/component"
WATCHED = ("monitoring.podMonitors=true", "monitoring.rules=true", "monitoring.dashboard=true")
KEDA = ("autoscaling.kind=keda", "autoscaling.prometheusUrl=http://prometheus.monitoring:9090")
IN_FLIGHT = "tiny_sd_jobs_in_flight"


def test_the_autoscaler_aims_at_what_is_in_flight_in_each_pod() -> None:
    rendered = render(GPUS)
    scaler = rendered.the("HorizontalPodAutoscaler")["spec"]
    target = rendered.the(scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"])
    assert target["spec"]["template"]["metadata"]["labels"][COMPONENT] == "triton"
    assert "replicas" not in target["spec"], "an upgrade would set it back"
    (metric,) = scaler["metrics"]
    assert metric["pods"] == {
        "metric": {"name": IN_FLIGHT},
        "target": {"type": "AverageValue", "averageValue": "16"},
    }
    assert int(rendered.pod("triton").environment["TINY_SD_MAX_IN_FLIGHT"]) > 16
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300


def test_a_pod_with_several_gpus_is_full_when_all_of_them_are() -> None:
    settings = ("triton.gpu.count=2", "triton.maxInFlight=64", "autoscaling.jobsInFlight=40")
    (metric,) = render(GPUS, *settings).the("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["target"]["averageValue"] == "40"


@pytest.mark.parametrize("values_file", [GPUS, KSERVE])
def test_a_long_queue_asks_for_every_pod_and_leaves_room_for_those_who_wait(values_file: str) -> None:
    rendered = render(values_file)
    scaling = yaml.safe_load((CHART / values_file).read_text())["autoscaling"]
    gateways = rendered.the("Deployment", "tiny-sd-gateway")["spec"]["replicas"]
    queued = gateways * int(rendered.pod("gateway").environment["TINY_SD_GATEWAY_WORKERS"])
    room = scaling["maxReplicas"] * int(rendered.pod("triton").environment["TINY_SD_MAX_IN_FLIGHT"])
    assert scaling["maxReplicas"] * scaling["jobsInFlight"] < queued <= 0.75 * room


def test_the_metric_is_one_that_triton_has_and_the_adapter_serves() -> None:
    metrics = (ROOT / "model_repository" / "unet" / "1" / "metrics.py").read_text()
    assert f'metric("{IN_FLIGHT.removeprefix("tiny_sd_")}"' in metrics
    adapter = yaml.safe_load((ROOT / "deploy" / "helm" / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{IN_FLIGHT}{{")
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


def test_keda_scales_the_same_deployment_by_the_same_figure() -> None:
    rendered = render(GPUS, *KEDA)
    scaled = rendered.the("ScaledObject")["spec"]
    assert not rendered.of("HorizontalPodAutoscaler"), "KEDA makes its own"
    assert scaled["scaleTargetRef"]["name"] == "tiny-sd-triton"
    assert "replicas" not in rendered.the("Deployment", "tiny-sd-triton")["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 8)
    (trigger,) = scaled["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes nothing else"
    assert trigger["metadata"]["threshold"] == "16"
    assert trigger["metadata"]["query"] == (
        f'sum(avg_over_time({IN_FLIGHT}{{namespace="pictures",pod=~"tiny-sd-triton-.*"}}[1m]))'
    )


def test_kserve_scales_its_own_deployment_by_the_same_figure() -> None:
    predictor = render(KSERVE).the("InferenceService")["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 4)
    (metric,) = predictor["autoScaling"]["metrics"]
    assert metric["external"]["target"] == {"type": "Value", "value": "16"}
    # KServe calls the Deployment after the InferenceService.
    assert 'pod=~"tiny-sd-predictor-.*"' in metric["external"]["metric"]["query"]
    assert not render(KSERVE).of("ScaledObject")
    fixed = render(KSERVE, "autoscaling.kind=none", "triton.replicas=3").the("InferenceService")["spec"]["predictor"]
    assert (fixed["minReplicas"], fixed["maxReplicas"], fixed.get("autoScaling")) == (3, 3, None)


@pytest.mark.parametrize("release", ["tiny-sd", "prod", "a-release-that-is-called-by-quite-a-long-name"])
@pytest.mark.parametrize("values_file", [GPUS, KSERVE])
def test_prometheus_finds_the_metrics_of_all_that_serves_under_jobs_that_the_alerts_know(
    values_file: str, release: str
) -> None:
    rendered = render(values_file, *WATCHED, release=release)
    jobs = set(re.findall(r'job=~"([^"]+)"', (CHART / "files" / "alerts.yaml").read_text()))
    found = set()
    for monitor in rendered.of("PodMonitor"):
        (pod,) = (it for it in rendered.pods() if it.is_selected_by(monitor["spec"]["selector"]["matchLabels"]))
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        (port,) = (it["containerPort"] for it in pod.main["ports"] if it["name"] == endpoint["port"])
        # The Prometheus operator calls a job after the namespace and the PodMonitor.
        (job,) = (job for job in jobs if re.fullmatch(job, f"pictures/{monitor['metadata']['name']}"))
        found.add((job.rpartition("-")[2], pod.labels[COMPONENT], port))
    assert found == {("triton", "triton", 8002), ("gateway", "gateway", 8080)}


def test_prometheus_is_shown_its_label() -> None:
    rendered = render("values.yaml", *WATCHED, "monitoring.labels.release=kube-prometheus-stack")
    for found in (*rendered.of("PodMonitor"), *rendered.of("PrometheusRule")):
        assert found["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_alerts_and_the_dashboard_are_those_in_the_files() -> None:
    rendered = render("values.yaml", *WATCHED)
    alerts = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert rendered.the("PrometheusRule")["spec"] == {"groups": alerts["groups"]}
    dashboard = rendered.the("ConfigMap")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["tiny-sd.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_nothing_needs_an_operator_unless_asked_for() -> None:
    groups = {found["apiVersion"].partition("/")[0] for found in render("values.yaml").objects}
    assert groups <= {"v1", "apps", "batch", "policy", "networking.k8s.io", "autoscaling"}
