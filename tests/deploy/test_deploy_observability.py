"""Alerts, dashboard and the configuration around them, by promtool and by what they refer to."""

from __future__ import annotations

import json
import re
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_project import ROOT, mounts, project, reached, run, services, tool
from watching import DASHBOARD, RULES, alerts, metrics, panels, questions

UNIT_TESTS = Path(__file__).with_name("alerts_test.yaml")
OPERATIONS = ROOT / "docs" / "operations.md"
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"


def anchors(text: str) -> set[str]:
    """Of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


# --- Prometheus and its rules ---------------------------------------------------------------------


def test_promtool_accepts_the_configuration_as_compose_mounts_it(tmp_path: Path) -> None:
    for target, source in mounts(services()["prometheus"]).items():
        to = tmp_path / target.lstrip("/")
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, to)
    command = " ".join(services()["prometheus"]["command"])
    config = re.search(r"--config\.file=(\S+)", command)
    assert config
    answer = run(tool("promtool"), "check", "config", tmp_path / config[1].lstrip("/"))
    assert answer.returncode == 0, answer.stderr
    assert "1 rule files found" in answer.stdout
    assert f"{len(alerts())} rules found" in answer.stdout


def test_prometheus_asks_services_that_there_are() -> None:
    (config,) = [path for path in mounts(services()["prometheus"]).values() if path.name == "prometheus.yml"]
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"]
        for job in yaml.safe_load(config.read_text())["scrape_configs"]
    }
    assert jobs["tiny-sd-triton"] == ["triton:8002"]
    assert jobs["tiny-sd-gateway"] == ["gateway:8080"]
    for name in ("triton", "gateway"):
        assert reached(name), name


def test_rules_do_in_every_case_what_their_unit_tests_say() -> None:
    answer = run(tool("promtool"), "test", "rules", UNIT_TESTS)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_every_alert_is_seen_to_fire_and_seen_not_to() -> None:
    cases = [case for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires} >= alerts().keys()


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["for"], "a moment is no reason to wake anybody"
    assert alert["annotations"]["summary"]
    file, anchor = alert["annotations"]["runbook"].split("#")
    assert ROOT / file == OPERATIONS
    assert anchor in anchors(OPERATIONS.read_text())
    section = re.search(rf"^### {name}\n(.*?)(?=^#|\Z)", OPERATIONS.read_text(), re.M | re.S)
    assert section, "it has a section of its own"
    for part in ("**Means:**", "**Look at:**", "**Do:**"):
        assert part in section[1], part


def test_the_runbook_is_about_alerts_that_there_are() -> None:
    assert set(re.findall(r"^### (TinySD\w+)$", OPERATIONS.read_text(), re.M)) == alerts().keys()


def test_links_of_the_operations_page_lead_somewhere() -> None:
    text = OPERATIONS.read_text()
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        page = (OPERATIONS.parent / file).resolve() if file else OPERATIONS
        assert page.exists(), target
        assert not anchor or anchor in anchors(page.read_text()), target


def test_alerts_hold_for_compose_and_for_the_prometheus_operator_alike() -> None:
    named = [pattern for alert in alerts().values() for pattern in re.findall(r'job=~"([^"]+)"', alert["expr"])]
    for component in ("triton", "gateway"):
        (pattern,) = {pattern for pattern in named if component in pattern}
        for job in (f"tiny-sd-{component}", f"prod/tiny-sd-{component}", f"prod/my-tiny-sd-{component}"):
            assert re.fullmatch(pattern, job), job
    assert all("{{" not in alert["expr"] for alert in alerts().values()), "Helm takes the file as it is"


# --- Grafana --------------------------------------------------------------------------------------


def test_promtool_can_read_every_question_of_the_dashboard(tmp_path: Path) -> None:
    rules = [{"record": f"question:{number}", "expr": expr} for number, (_, expr) in enumerate(questions())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    answer = run(tool("promtool"), "check", "rules", "--lint=none", file)
    assert answer.returncode == 0, answer.stderr


def test_the_names_of_metrics_are_found_in_expressions() -> None:
    assert metrics(
        'sum by (a, b) (rate(x_total{c=~"d|e",f!="g"}[5m])) / on () group_left () y{h="i"} > 1e6 or vector(0)'
    ) == {
        "x_total",
        "y",
    }


@pytest.mark.parametrize(
    "wanted",
    [
        "tiny_sd_gateway_requests_total",
        "tiny_sd_gateway_generation_seconds_bucket",
        "tiny_sd_gateway_queue_length",
        "tiny_sd_jobs_in_flight",
        "tiny_sd_unet_call_rows_bucket",
        "tiny_sd_unet_steps_total",
        "tiny_sd_texts_encoded_total",
        "tiny_sd_jobs_refused_total",
        "tiny_sd_jobs_cancelled_total",
        "nv_gpu_utilization",
        "nv_gpu_memory_used_bytes",
        "tiny_sd_gateway_credits_charged_total",
    ],
)
def test_the_dashboard_shows(wanted: str) -> None:
    assert wanted in {metric for _, expr in questions() for metric in metrics(expr)}


def test_the_dashboard_shows_the_quantiles_that_people_ask_for() -> None:
    (panel,) = [panel for panel in panels() if panel["title"] == "Generation"]
    assert [target["legendFormat"] for target in panel["targets"]] == ["p50", "p95", "p99"]
    for target, quantile in zip(panel["targets"], (0.5, 0.95, 0.99), strict=True):
        assert target["expr"].startswith(f"histogram_quantile({quantile},")


def test_panels_stand_beside_each_other_and_have_units() -> None:
    all_panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in all_panels}) == len(all_panels)
    boxes = {panel["id"]: panel["gridPos"] for panel in all_panels}
    for one, other in combinations(boxes.values(), 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(box["x"] + box["w"] <= 24 for box in boxes.values())
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels())
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels()), "another Grafana has another name"


def test_grafana_is_provisioned_with_what_compose_mounts() -> None:
    seen = mounts(services()["grafana"])
    assert seen["/etc/grafana/provisioning"] == PROVISIONING
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "tiny-sd.yaml").read_text())["providers"]
    (dashboard,) = [target for target, source in seen.items() if source == DASHBOARD]
    assert Path(dashboard).parent == Path(provider["options"]["path"])
    assert services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert source["isDefault"]


def test_every_file_that_is_mounted_is_there() -> None:
    mounted = [path for service in services().values() if "volumes" in service for path in mounts(service).values()]
    assert {RULES, DASHBOARD} <= set(mounted)
    for path in mounted:
        assert path.exists(), path


# --- Traces ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collector() -> dict[str, Any]:
    (path,) = mounts(services()["otel-collector"]).values()
    return dict(yaml.safe_load(path.read_text()))


def test_the_collector_uses_what_it_defines_and_defines_what_it_uses(collector: dict[str, Any]) -> None:
    (pipeline,) = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) == collector[kind].keys()


def test_the_collector_passes_traces_on_to_the_viewer(collector: dict[str, Any]) -> None:
    (exporter,) = collector["exporters"].values()
    assert exporter["endpoint"].partition(":")[0] in project("tracing")["services"]


def test_the_documented_endpoint_is_the_collectors(collector: dict[str, Any]) -> None:
    port = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert f"OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:{port} " in OPERATIONS.read_text()
    for name in ("triton", "triton-cpu", "gateway"):
        assert services()[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "", "no traces unless asked for"
