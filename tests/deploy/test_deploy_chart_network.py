"""Who reaches whom: Services, the ways in, NetworkPolicies; and what may be disrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from rendered_chart import CPU, EVERYTHING, GPUS, KSERVE, VALUES_FILES, Object, Rendered, render

COMPONENT = "app.kubernetes.io/component"


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_every_service_leads_to_ports_of_pods_that_serve(values_file: str) -> None:
    rendered = render(values_file)
    for service in rendered.of("Service"):
        (pod,) = (pod for pod in rendered.pods() if pod.is_selected_by(service["spec"]["selector"]))
        ports = {port["name"]: port["containerPort"] for port in pod.main["ports"]}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in ports
            # The addresses of a headless Service are pods, which know only their own ports.
            if service["spec"].get("clusterIP") == "None":
                assert port["port"] == ports[port["targetPort"]]


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_the_gateway_is_told_the_addresses_of_all_triton_pods(values_file: str) -> None:
    rendered = render(values_file)
    url = urlsplit(rendered.pod("gateway").environment["TINY_SD_GATEWAY_TRITON_URL"])
    service = rendered.the("Service", url.hostname)
    assert service["spec"]["clusterIP"] == "None"
    assert (url.scheme, url.port) == ("grpc", service["spec"]["ports"][0]["port"])
    assert rendered.pod("triton").is_selected_by(service["spec"]["selector"])


def test_the_ways_in_wait_longer_than_the_gateway() -> None:
    rendered = render("values.yaml", *EVERYTHING, "requestTimeoutSeconds=400", "ingress.tlsSecret=certificate")
    gateway = rendered.the("Service", "tiny-sd-gateway")
    ingress = rendered.the("Ingress")
    waits = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    assert int(waits) > 400
    assert ingress["spec"]["tls"] == [{"hosts": ["pictures.example.com"], "secretName": "certificate"}]
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "pictures.example.com"
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": gateway["metadata"]["name"], "port": {"name": gateway["spec"]["ports"][0]["name"]}}

    route = rendered.the("HTTPRoute")["spec"]
    assert (route["parentRefs"], route["hostnames"]) == ([{"name": "public"}], ["pictures.example.com"])
    (rule,) = route["rules"]
    assert {int(timeout.removesuffix("s")) for timeout in rule["timeouts"].values()} == {int(waits)}
    assert rule["backendRefs"] == [{"name": gateway["metadata"]["name"], "port": gateway["spec"]["ports"][0]["port"]}]


def test_an_ingress_of_another_kind_gets_its_annotations_and_one_without_tls_none() -> None:
    settings = ("ingress.enabled=true", "publicUrl=http://a.example.com:8080", "ingress.annotations.a/b=c")
    ingress = render("values.yaml", *settings).the("Ingress")
    assert ingress["metadata"]["annotations"]["a/b"] == "c"
    assert "tls" not in ingress["spec"]
    assert ingress["spec"]["rules"][0]["host"] == "a.example.com"


def test_kserve_opens_no_way_to_triton_from_outside() -> None:
    """Triton knows no keys."""
    made = render(KSERVE).the("InferenceService")
    assert made["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    assert made["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    assert [it["name"] for it in made["spec"]["predictor"]["containers"]] == ["kserve-container"]
    assert {it["metadata"]["name"] for it in render(KSERVE).of("Deployment")} == {"tiny-sd-gateway"}


Edge = tuple[str, str, int]
"""From, to, port: components, or who else is named."""
ALWAYS = {("gateway", "triton", 8001), ("test", "gateway", 8080)}
POLICIES: list[tuple[tuple[str, ...], set[Edge], set[Edge]]] = [
    # What is rendered; who is let in; who is let out, but for DNS.
    (
        (GPUS,),
        {("gateway", "triton", 8001), ("monitoring", "triton", 8002), ("anybody", "gateway", 8080)},
        {*ALWAYS, ("gateway", "anybody", 5432), ("test", "anybody", 5432), ("checkpoint", "anybody", 443)},
    ),
    (
        (CPU,),
        {("gateway", "triton", 8001), ("monitoring", "triton", 8002), ("anybody", "gateway", 8080)},
        {*ALWAYS, ("triton", "anybody", 443)},
    ),
    (
        (
            GPUS,
            "networkPolicy.callers[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=ingress",
            "networkPolicy.tritonCallers[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=batch",
            "networkPolicy.database[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=postgres",
            "networkPolicy.databasePort=6432",
            "tracing.endpoint=http://otel:4318/",
            "checkpoint.storage=pod",
        ),
        {
            ("gateway", "triton", 8001),
            ("batch", "triton", 8000),
            ("batch", "triton", 8001),
            ("monitoring", "triton", 8002),
            ("ingress", "gateway", 8080),
            ("monitoring", "gateway", 8080),
            ("test", "gateway", 8080),
        },
        {
            *ALWAYS,
            ("gateway", "postgres", 6432),
            ("test", "postgres", 6432),
            ("triton", "anybody", 443),
            ("triton", "anybody", 4318),
            ("gateway", "anybody", 4318),
        },
    ),
]


@pytest.mark.parametrize(("rendering", "let_in", "let_out"), POLICIES)
def test_nobody_talks_to_anybody_but_those_who_must(
    rendering: tuple[str, ...], let_in: set[Edge], let_out: set[Edge]
) -> None:
    rendered = render(*rendering)
    assert set(_edges(rendered, "ingress")) == let_in
    dns = {(pod.labels[COMPONENT], "dns", 53) for pod in rendered.pods()}
    assert set(_edges(rendered, "egress")) == let_out | dns


@pytest.mark.parametrize("rendering", [*((name,) for name in VALUES_FILES), (GPUS, "checkpoint.storage=pod")])
def test_every_policy_selects_pods_and_all_pods_are_closed_by_default(rendering: tuple[str, ...]) -> None:
    rendered = render(*rendering)
    for policy in rendered.of("NetworkPolicy"):
        selected = [pod for pod in rendered.pods() if pod.is_selected_by(policy["spec"]["podSelector"]["matchLabels"])]
        assert selected, policy["metadata"]["name"]
    deny = rendered.the("NetworkPolicy", "tiny-sd-deny")["spec"]
    assert set(deny) == {"podSelector", "policyTypes"} and deny["policyTypes"] == ["Ingress", "Egress"]
    assert all(pod.is_selected_by(deny["podSelector"]["matchLabels"]) for pod in rendered.pods())


def test_policies_can_be_left_out() -> None:
    assert not render(GPUS, "networkPolicy.enabled=false").of("NetworkPolicy")


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://otel:4318", 4318), ("https://otel.example.com", 443), ("http://otel.example.com/otlp", 80)],
)
def test_traces_may_leave_by_the_collectors_port(endpoint: str, port: int) -> None:
    assert ("triton", "anybody", port) in set(_edges(render("values.yaml", f"tracing.endpoint={endpoint}"), "egress"))


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_a_node_can_be_drained_and_takes_one_pod_of_each_kind_along(values_file: str) -> None:
    rendered = render(values_file)
    covered = set()
    for budget in rendered.of("PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1
        (pod,) = (it for it in rendered.pods() if it.is_selected_by(budget["spec"]["selector"]["matchLabels"]))
        covered.add(pod.labels[COMPONENT])
    assert covered == {"triton", "gateway"}


def _edges(rendered: Rendered, direction: str) -> Iterator[Edge]:
    for policy in rendered.of("NetworkPolicy"):
        selected = [pod for pod in rendered.pods() if pod.is_selected_by(policy["spec"]["podSelector"]["matchLabels"])]
        for rule in policy["spec"].get(direction, []):
            for pod in selected:
                own = pod.labels[COMPONENT]
                for peer in _peers(rendered, rule.get("from" if direction == "ingress" else "to")):
                    come, go = (peer, own) if direction == "ingress" else (own, peer)
                    for port in rule["ports"]:
                        number = port["port"]
                        yield come, go, _number(rendered, go, number) if isinstance(number, str) else number


def _peers(rendered: Rendered, peers: list[Object] | None) -> Iterator[str]:
    if peers is None:
        yield "anybody"
    for peer in peers or []:
        if "ipBlock" in peer:
            assert peer["ipBlock"] == {"cidr": "169.254.20.10/32"}, "the DNS cache on the node"
            yield "dns"
        elif "namespaceSelector" in peer:
            name = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            yield (
                "dns"
                if name == "kube-system" and peer["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
                else name
            )
        else:
            (pod,) = (it for it in rendered.pods() if it.is_selected_by(peer["podSelector"]["matchLabels"]))
            yield pod.labels[COMPONENT]


def _number(rendered: Rendered, component: str, name: str) -> int:
    ports: list[dict[str, Any]] = rendered.pod(component).main["ports"]
    (number,) = (port["containerPort"] for port in ports if port["name"] == name)
    return int(number)
