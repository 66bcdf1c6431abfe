"""The chart as a whole: helm takes it, Kubernetes would take what comes out, and wrong values are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml
from rendered_chart import (
    CHART,
    CPU,
    EVERYTHING,
    GPUS,
    KSERVE,
    ONE_GPU,
    VALUES_FILES,
    lint,
    manifest,
    notes,
    refusal,
    render,
)

OLDEST_KUBERNETES = "1.30"
CUSTOM = {"HTTPRoute", "InferenceService", "PodMonitor", "PrometheusRule", "ScaledObject"}
"""Custom resources, of which Kubernetes itself has no schema. Nothing here validates their fields."""
KEDA = ("autoscaling.kind=keda", "autoscaling.prometheusUrl=http://prometheus-operated.monitoring:9090")
RENDERINGS = [
    *((name,) for name in VALUES_FILES),
    ("values.yaml", *EVERYTHING, *KEDA, "gateway.database.secret=db", "gateway.replicas=2"),
    ("values.yaml", "checkpoint.storage=pod", "networkPolicy.tritonCallers[0].podSelector.matchLabels.app=mine"),
    ("values.yaml", "checkpoint.storage=existing", "checkpoint.existingClaim=mine", "checkpoint.folder=tiny"),
    (GPUS, *EVERYTHING, "checkpoint.tokenSecret=hub", "triton.gpu.resource=nvidia.com/mig-1g.10gb"),
    (
        "values.yaml",
        "networkPolicy.enabled=false",
        "imagePullSecrets[0].name=registry",
        "triton.runtimeClassName=nvidia",
    ),
    (KSERVE, "autoscaling.kind=none", "checkpoint.storage=pod"),
]


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_helm_lints_every_values_file(values_file: str) -> None:
    assert "1 chart(s) linted, 0 chart(s) failed" in lint(values_file)


def test_there_is_a_values_file_for_each_size() -> None:
    assert {"values.yaml", ONE_GPU, GPUS, CPU, KSERVE} == set(VALUES_FILES)


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
@pytest.mark.parametrize("rendering", RENDERINGS, ids=lambda it: " ".join(it)[:60])
def test_every_object_of_kubernetes_own_kinds_is_valid(rendering: tuple[str, ...], version: str) -> None:
    for found in render(*rendering).objects:
        if found["kind"] not in CUSTOM:
            _validate(json.dumps(found), version)


def test_the_chart_says_which_kubernetes_it_needs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST_KUBERNETES}.0-0"


def test_the_validation_sees_a_misspelt_field_deep_in_a_pod() -> None:
    misspelt = copy.deepcopy(render().the("Deployment", "tiny-sd-triton"))
    misspelt["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["period"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, OLDEST_KUBERNETES, strict=True)


def test_the_pod_within_the_inference_service_is_valid() -> None:
    pod = render(KSERVE).pod("triton")
    assert pod.owner["kind"] == "InferenceService"
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": pod.labels}, "spec": pod.spec}
    kubernetes_validate.validate(made, OLDEST_KUBERNETES, strict=True)


@pytest.mark.parametrize("rendering", RENDERINGS, ids=lambda it: " ".join(it)[:60])
def test_no_two_objects_have_one_name(rendering: tuple[str, ...]) -> None:
    names = [(found["kind"], found["metadata"]["name"]) for found in render(*rendering).objects]
    assert len(names) == len(set(names))


def test_names_keep_within_the_limit_whatever_the_release_is_called() -> None:
    long = render(GPUS, release="a-release-that-is-called-by-quite-a-long-name-indeed")
    assert all(len(found["metadata"]["name"]) <= 63 for found in long.objects)
    short = {found["metadata"]["name"] for found in render(GPUS, release="prod").of("Deployment")}
    assert short == {"prod-tiny-sd-triton", "prod-tiny-sd-gateway"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("triton.replica=2", "/triton': additional properties 'replica' not allowed"),
        ("triton.replicas=two", "/triton/replicas': got string, want integer"),
        ("triton.gpu.resource=amd.com/gpu", "/triton/gpu/resource': 'amd.com/gpu' does not match"),
        ("triton.gpu.count=-1", "/triton/gpu/count': minimum: got -1, want 0"),
        ("triton.env.TINY_SD_MAX_ROWS=24", "/triton/env/TINY_SD_MAX_ROWS': got number, want string"),
        ("triton.sharedMemory=2G", "/triton/sharedMemory': '2G' does not match"),
        ("triton.image.tag=latest", "triton.image.tag: latest is another image tomorrow"),
        ("gateway.image.tag=latest", "gateway.image.tag: latest is another image tomorrow"),
        ("checkpoint.revision=main", "/checkpoint/revision': 'main' does not match"),
        ("checkpoint.storage=nfs", "value must be one of 'shared', 'single', 'pod', 'existing'"),
        ("autoscaling.kind=vpa", "value must be one of 'none', 'hpa', 'keda'"),
        ("requestTimeoutSeconds=0", "/requestTimeoutSeconds': minimum: got 0, want 1"),
        ("sizes={768,1024}", "/sizes': no items match contains schema"),
        ("publicUrl=pictures.example.com", "/publicUrl': 'pictures.example.com' does not match"),
        ("gateway.replicas=2", "several gateways need PostgreSQL; set gateway.database.secret"),
        ("triton.replicas=2,checkpoint.storage=single", "cannot have the volume; allowed: shared, pod, existing"),
        ("checkpoint.storage=single", "set triton.maxSurge to 0 and maxUnavailable to 1"),
        ("checkpoint.storage=existing", "name checkpoint.existingClaim"),
        ("checkpoint.existingClaim=mine", "are for checkpoint.storage existing"),
        ("triton.maxSurge=0", "no pod could ever be replaced"),
        ("triton.gpu.resource=nvidia.com/gpu.shared,triton.gpu.count=2", "give no more of it; allowed: 1"),
        ("ingress.enabled=true", "publicUrl: say what callers reach the gateway by"),
        ("httpRoute.enabled=true,publicUrl=https://a.example.com", "httpRoute.parentRefs: name the Gateway"),
        ("autoscaling.kind=keda", "autoscaling.prometheusUrl: KEDA asks Prometheus itself"),
        ("autoscaling.kind=hpa,autoscaling.minReplicas=5", "autoscaling.minReplicas is above maxReplicas"),
        ("autoscaling.kind=hpa,triton.maxInFlight=8,autoscaling.jobsInFlight=8", "jobsInFlight: must be below 8"),
        ("autoscaling.kind=hpa,triton.maxInFlight=64,autoscaling.jobsInFlight=32", "the U-Net of each GPU holds 32"),
        (
            "autoscaling.kind=hpa,triton.gpu.count=0,triton.maxInFlight=64,autoscaling.jobsInFlight=40",
            "jobsInFlight: must be below 32",
        ),
        ("checkpoint.env.HF_TOKEN=hf_1", "put it into a Secret, and name that in checkpoint.tokenSecret"),
        ("triton.env.TINY_SD_ADMIN_KEY=secret", "put it into a Secret, and name that in triton.adminKeySecret"),
        ("autoscaling.kind=hpa,kserve.enabled=true", "KServe scales its own Deployments"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_name(settings: str, said: str) -> None:
    assert said in refusal("values.yaml", settings)


def test_the_schema_knows_exactly_the_values_that_there_are() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    assert not schema["additionalProperties"]
    for name, section in values.items():
        if isinstance(section, dict):
            _assert_closed(schema["properties"][name], section)


OTHER = {
    "imagePullSecrets": "imagePullSecrets[0].name=registry",
    "sizes": "sizes={512}",
    "publicUrl": "publicUrl=https://other.example.com",
    "checkpoint.repository": "checkpoint.repository=segmind/small-sd",
    "checkpoint.revision": f"checkpoint.revision={'a' * 40}",
    "checkpoint.storage": "checkpoint.storage=pod",
    "checkpoint.size": "checkpoint.size=6Gi",
    "checkpoint.resources": "checkpoint.resources.limits.memory=9Gi",
    "triton.image.pullPolicy": "triton.image.pullPolicy=Always",
    "triton.gpu.resource": "triton.gpu.resource=nvidia.com/gpu.shared",
    "triton.resources": "triton.resources.limits.memory=20Gi",
    "triton.sharedMemory": "triton.sharedMemory=3Gi",
    "triton.tolerations": "triton.tolerations[0].key=other",
    "gateway.image.pullPolicy": "gateway.image.pullPolicy=Always",
    "gateway.resources": "gateway.resources.limits.memory=2Gi",
    "gateway.database.size": "gateway.database.size=6Gi",
    "gateway.tolerations": "gateway.tolerations[0].key=other",
    "httpRoute.parentRefs": "httpRoute.parentRefs[0].name=other",
    "autoscaling.kind": "autoscaling.kind=none",
    "autoscaling.prometheusUrl": "autoscaling.prometheusUrl=http://other:9090",
    "networkPolicy.callers": "networkPolicy.callers[0].ipBlock.cidr=10.1.0.0/16",
    "networkPolicy.tritonCallers": "networkPolicy.tritonCallers[0].ipBlock.cidr=10.1.0.0/16",
    "networkPolicy.prometheus": "networkPolicy.prometheus[0].ipBlock.cidr=10.1.0.0/16",
    "networkPolicy.database": "networkPolicy.database[0].ipBlock.cidr=10.1.0.0/16",
    "tracing.endpoint": "tracing.endpoint=http://other:4318",
}
"""How to change a value that is neither a number, nor true or false, nor any name, nor a dictionary."""
CIRCUMSTANCES: dict[str, tuple[str, ...]] = {
    "checkpoint.existingClaim": ("checkpoint.storage=existing", "checkpoint.existingClaim=a", "checkpoint.folder=b"),
    "checkpoint.folder": ("checkpoint.storage=existing", "checkpoint.existingClaim=a", "checkpoint.folder=b"),
    "triton.replicas": ("autoscaling.kind=none",),
    "gateway.database.storageClass": ("gateway.database.secret=",),
    "gateway.database.size": ("gateway.database.secret=",),
}
"""What else must be set for a value to have an effect, beside the usual circumstances."""
USUAL = (*EVERYTHING, *KEDA, "gateway.database.secret=db")


def _values(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        # A dictionary that is empty, or whose names are Kubernetes' own, is one value.
        if isinstance(value, dict) and value and name != "resources":
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


VALUES = dict(_values(yaml.safe_load((CHART / "values.yaml").read_text())))


@pytest.mark.parametrize("name", VALUES)
def test_every_value_has_an_effect(name: str) -> None:
    circumstances = (*USUAL, *CIRCUMSTANCES.get(name, ()))
    changed = manifest("values.yaml", *circumstances, _other(name, VALUES[name]))
    assert changed != manifest("values.yaml", *circumstances)


def test_the_notes_say_how_to_get_a_key_and_where_the_page_is() -> None:
    said = notes(CPU)
    assert "exec deploy/tiny-sd-gateway -- tiny-sd-gateway keys create" in said
    assert "port-forward service/tiny-sd-gateway 8080:80" in said
    assert "https://pictures.example.com" in notes("values.yaml", *EVERYTHING)


@cache
def _validate(found: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(found), version, strict=True)


def _assert_closed(schema: dict[str, Any], section: dict[str, Any]) -> None:
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(section)
    for name, value in section.items():
        if "properties" in schema["properties"][name]:
            _assert_closed(schema["properties"][name], value)


def _other(name: str, value: object) -> str:
    """A setting by which the value is another one than in the usual circumstances."""
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return f"{name}={str(not value and f'{name}=true' not in USUAL).lower()}"
    if isinstance(value, int):
        return f"{name}={value + 1}"
    return f"{name}.OTHER=value" if isinstance(value, dict) else f"{name}=other"
