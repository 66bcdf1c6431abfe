"""The pods: how they start, are watched and end, what they may do, and which weights they serve."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rendered_chart import CPU, EVERYTHING, GPUS, KSERVE, ONE_GPU, ROOT, VALUES_FILES, Pod, render

import checkpoint as checkpoint_tool
from tiny_sd_client.command.arguments import parse_arguments
from tiny_sd_engine.settings import Settings as EngineSettings
from tiny_sd_gateway.settings import Settings as GatewaySettings

POSTGRESQL = "postgresql://u:p@db/gateway"
TIMEOUTS = ("requestTimeoutSeconds=1", "requestTimeoutSeconds=300", "requestTimeoutSeconds=3600")
ALLOWED_VOLUMES = {"emptyDir", "persistentVolumeClaim"}


def all_pods() -> list[tuple[str, Pod]]:
    renderings = [*((name,) for name in VALUES_FILES), (GPUS, "checkpoint.storage=pod")]
    return [
        (f"{' '.join(rendering)} {pod.labels['app.kubernetes.io/component']}", pod)
        for rendering in renderings
        for pod in render(*rendering).pods()
    ]


@pytest.mark.parametrize("pod", [pytest.param(pod, id=name) for name, pod in all_pods()])
def test_a_pod_may_do_no_more_than_it_must(pod: Pod) -> None:
    """What the Pod Security Standard ``restricted`` asks for, and more."""
    of_pod = pod.spec["securityContext"]
    assert of_pod["runAsNonRoot"] and of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.spec["automountServiceAccountToken"] is False
    assert pod.spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
    for container in pod.containers:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
    for volume in pod.spec["volumes"]:
        assert set(volume) - {"name"} <= ALLOWED_VOLUMES


@pytest.mark.parametrize("pod", [pytest.param(pod, id=name) for name, pod in all_pods()])
def test_what_a_pod_mounts_is_there(pod: Pod) -> None:
    volumes = {volume["name"] for volume in pod.spec["volumes"]}
    mounted = {mount["name"] for container in pod.containers for mount in container["volumeMounts"]}
    assert mounted == volumes


def test_no_service_account_has_a_token_and_every_pod_has_an_account() -> None:
    for rendering in ((GPUS,), (KSERVE,), (ONE_GPU,)):
        rendered = render(*rendering)
        accounts = {it["metadata"]["name"]: it for it in rendered.of("ServiceAccount")}
        assert all(it["automountServiceAccountToken"] is False for it in accounts.values())
        assert {pod.spec["serviceAccountName"] for pod in rendered.pods()} == set(accounts)


@pytest.mark.parametrize("pod", [pytest.param(pod, id=name) for name, pod in all_pods()])
def test_images_are_of_one_version(pod: Pod) -> None:
    for container in pod.containers:
        assert container["image"] in ("tiny-sd-triton:0.1.0", "tiny-sd-gateway:0.1.0")


def test_images_can_be_pinned_by_their_content() -> None:
    pinned = f"0.1.0@sha256:{'0' * 64}"
    pod = render("values.yaml", f"triton.image.tag={pinned}").pod("triton")
    assert pod.main["image"] == f"tiny-sd-triton:{pinned}"


def _gpus(pod: Pod) -> dict[str, Any]:
    asked = [found for container in pod.containers for found in container["resources"]["limits"].items()]
    return {name: number for name, number in asked if name.startswith("nvidia.com/")}


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ((ONE_GPU,), {"nvidia.com/gpu": 1}),
        ((GPUS,), {"nvidia.com/gpu": 1}),
        ((KSERVE,), {"nvidia.com/gpu": 1}),
        ((CPU,), {}),
        ((ONE_GPU, "triton.gpu.count=4"), {"nvidia.com/gpu": 4}),
        ((ONE_GPU, "triton.gpu.resource=nvidia.com/mig-1g.10gb"), {"nvidia.com/mig-1g.10gb": 1}),
        ((ONE_GPU, "triton.gpu.resource=nvidia.com/gpu.shared"), {"nvidia.com/gpu.shared": 1}),
    ],
)
def test_only_triton_gets_a_gpu_and_the_one_that_was_asked_for(
    settings: tuple[str, ...], asked: dict[str, int]
) -> None:
    for pod in render(*settings).pods():
        assert _gpus(pod) == (asked if pod.labels["app.kubernetes.io/component"] == "triton" else {})


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_nothing_else_sees_a_gpu_although_tritons_image_asks_for_all(values_file: str) -> None:
    for pod in render(values_file).pods():
        for container in pod.containers:
            has_gpu = any(name.startswith("nvidia.com/") for name in container["resources"]["limits"])
            if container["image"].startswith("tiny-sd-triton") and not has_gpu:
                assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]


def test_the_job_that_fetches_goes_where_triton_goes_and_needs_no_gpu_for_it() -> None:
    placed = render(GPUS, "triton.nodeSelector.pool=gpus")
    job, triton = placed.pod("checkpoint"), placed.pod("triton")
    assert job.spec["nodeSelector"] == triton.spec["nodeSelector"] == {"pool": "gpus"}
    assert job.spec["tolerations"] == triton.spec["tolerations"]
    assert "nodeSelector" not in placed.pod("gateway").spec


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_probes_ask_triton_for_pictures_with_commands_that_it_knows(values_file: str) -> None:
    server = render(values_file).pod("triton").main
    ready = {"path": "/v2/models/tiny_sd/ready", "port": "http"}
    assert server["startupProbe"]["httpGet"] == server["readinessProbe"]["httpGet"] == ready
    program, *arguments = server["livenessProbe"]["exec"]["command"]
    check = parse_arguments(arguments)
    assert (program, check.command, check.url) == ("tiny-sd", "check", "grpc://localhost:8001")
    assert check.whole is (values_file != CPU), "on a CPU a whole picture takes too long"
    assert server["livenessProbe"]["timeoutSeconds"] > check.timeout
    assert server["livenessProbe"]["terminationGracePeriodSeconds"] < 60, "there is nothing to drain"


def test_a_pod_gets_the_time_to_start_that_was_given_to_it() -> None:
    probe = render("values.yaml", "triton.startupSeconds=601").pod("triton").main["startupProbe"]
    assert 601 <= probe["failureThreshold"] * probe["periodSeconds"] < 610


@pytest.mark.parametrize("timeout", TIMEOUTS)
@pytest.mark.parametrize("values_file", [GPUS, KSERVE])
def test_triton_ends_only_when_it_was_left_and_is_done(values_file: str, timeout: str) -> None:
    pod = render(values_file, timeout).pod("triton")
    hook = pod.main["lifecycle"]["preStop"]["exec"]["command"]
    found = re.fullmatch(r"sleep (\d+); exec tiny-sd (drain .+)", hook[2])
    assert hook[:2] == ["sh", "-c"] and found
    leave, drain = int(found[1]), parse_arguments(found[2].split())
    age_s = int(re.search(r"--grpc-max-connection-age=(\d+)", pod.main["args"][-1])[1]) / 1000
    resolve_s, dns_s = 30, 30
    assert leave >= age_s * 1.1 + resolve_s + dns_s
    assert drain.command == "drain" and drain.url == "grpc://localhost:8001"
    assert drain.timeout > int(timeout.partition("=")[2])
    exit_s = int(re.search(r"--exit-timeout-secs=(\d+)", _start_script().read_text())[1])
    assert pod.spec["terminationGracePeriodSeconds"] > leave + drain.timeout + exit_s


@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_the_gateway_ends_only_when_it_was_left_and_is_done(timeout: str) -> None:
    pod = render(GPUS, timeout).pod("gateway")
    leave = pod.main["lifecycle"]["preStop"]["sleep"]["seconds"]
    settings = _gateway_settings(pod)
    assert leave >= 5
    assert settings.drain_s > settings.timeout_s == int(timeout.partition("=")[2])
    last_answers_s = 5
    assert pod.spec["terminationGracePeriodSeconds"] > leave + settings.drain_s + last_answers_s


@pytest.mark.parametrize("name", ["tiny-sd-triton", "tiny-sd-gateway"])
def test_an_update_of_many_takes_no_pod_away_before_a_new_one_is_ready(name: str) -> None:
    deployment = render(GPUS).the("Deployment", name)["spec"]
    assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert deployment["minReadySeconds"] > 0
    probe = deployment["template"]["spec"]["containers"][0]["startupProbe"]
    assert deployment["progressDeadlineSeconds"] >= probe["periodSeconds"] * probe["failureThreshold"]


def test_kserve_updates_the_same_way() -> None:
    strategy = render(KSERVE).the("InferenceService")["spec"]["predictor"]["deploymentStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


@pytest.mark.parametrize("values_file", [ONE_GPU, CPU])
def test_one_gpu_and_one_sqlite_file_are_handed_over(values_file: str) -> None:
    rendered = render(values_file)
    triton = rendered.the("Deployment", "tiny-sd-triton")["spec"]["strategy"]
    assert triton["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert rendered.the("Deployment", "tiny-sd-gateway")["spec"]["strategy"] == {"type": "Recreate"}


def test_sqlite_is_on_a_claim_that_outlives_the_release_and_the_test_runs_beside_it() -> None:
    rendered = render(ONE_GPU)
    claim = rendered.the("PersistentVolumeClaim", "tiny-sd-gateway")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    url = _gateway_settings(rendered.pod("gateway")).database_url
    for pod in (rendered.pod("gateway"), rendered.pod("test")):
        (data,) = (mount["mountPath"] for mount in pod.main["volumeMounts"] if mount["name"] == "data")
        assert url.startswith(f"sqlite:///{data}/")
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "tiny-sd-gateway"}} in pod.spec["volumes"]
    (near,) = rendered.pod("test").spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rendered.pod("gateway").is_selected_by(near["labelSelector"]["matchLabels"])


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_the_gateway_starts_with_the_settings_it_gets(values_file: str) -> None:
    pod = render(values_file, "publicUrl=https://pictures.example.com").pod("gateway")
    settings = _gateway_settings(pod)
    assert settings.dev_key_credits == 0, "a key would be in the log"
    assert settings.public_url == "https://pictures.example.com"
    assert settings.sizes == (512, 768, 1024)
    assert pod.main["args"] == ["run", "--host", "0.0.0.0", "--port", str(pod.main["ports"][0]["containerPort"])]


@pytest.mark.parametrize("values_file", VALUES_FILES)
def test_triton_starts_with_the_settings_it_gets(values_file: str) -> None:
    rendered = render(values_file, "sizes={512,640}", "triton.env.TINY_SD_PRECISION=bf16")
    settings = EngineSettings.from_environment(rendered.pod("triton").environment)
    assert settings.sizes == _gateway_settings(rendered.pod("gateway")).sizes == (512, 640)
    assert settings.precision == "bf16"
    assert settings.max_in_flight == (4 if values_file == CPU else 32)


def test_a_setting_of_ones_own_goes_before_the_charts() -> None:
    pod = render(GPUS, "gateway.env.TINY_SD_GATEWAY_LOG_FORMAT=console").pod("gateway")
    assert _gateway_settings(pod).log_format == "console"
    names = [variable["name"] for variable in pod.main["env"]]
    assert len(names) == len(set(names))


def test_triton_is_started_by_the_images_script_on_an_empty_dev_shm(tmp_path: Path) -> None:
    pod = render().pod("triton")
    command = pod.main["args"]
    assert command[:2] == ["sh", "-euc"]
    found = re.fullmatch(r"rm -rf /dev/shm/\*; exec (/opt/tiny-sd/\S+) --grpc-max-connection-age=10000", command[2])
    assert found and ROOT / Path(found[1]).relative_to("/opt/tiny-sd") == _start_script()
    memory = {"medium": "Memory", "sizeLimit": "2Gi"}
    assert {"name": "shm", "emptyDir": memory} in pod.spec["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in pod.main["volumeMounts"]
    # With a stand-in for the script: its arguments arrive.
    (tmp_path / "start").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "start").chmod(0o755)
    stood_in = command[2].replace("/dev/shm", str(tmp_path / "shm")).replace(found[1], str(tmp_path / "start"))
    done = subprocess.run([*command[:2], stood_in], check=True, capture_output=True, text=True)
    assert done.stdout == "--grpc-max-connection-age=10000\n"


def test_triton_waits_for_the_checkpoint_that_the_job_makes_and_serves_it_read_only() -> None:
    rendered = render(GPUS)
    made = rendered.pod("checkpoint").environment["OUT"]
    triton = rendered.pod("triton")
    assert EngineSettings.from_environment(triton.environment).checkpoint == Path(made)
    (waiting,) = triton.spec["initContainers"]
    assert f'[ -e "{made}" ]' in waiting["args"][0]
    for container in triton.containers:
        assert {"name": "checkpoints", "mountPath": "/checkpoints", "readOnly": True} in container["volumeMounts"]
    claim = {"name": "checkpoints", "persistentVolumeClaim": {"claimName": "tiny-sd-checkpoint"}}
    assert claim in triton.spec["volumes"] and claim in rendered.pod("checkpoint").spec["volumes"]
    assert rendered.the("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("rendering", "volume"),
    [
        ((GPUS, "checkpoint.storage=pod"), {"emptyDir": {}}),
        ((ONE_GPU,), {"persistentVolumeClaim": {"claimName": "tiny-sd-checkpoint"}}),
        ((CPU,), {"persistentVolumeClaim": {"claimName": "tiny-sd-checkpoint"}}),
    ],
)
def test_a_pod_may_fetch_for_itself(rendering: tuple[str, ...], volume: dict[str, Any]) -> None:
    rendered = render(*rendering)
    assert [pod.labels["app.kubernetes.io/component"] for pod in rendered.pods()] == ["gateway", "triton", "test"]
    triton = rendered.pod("triton")
    (fetching,) = triton.spec["initContainers"]
    made = {variable["name"]: variable["value"] for variable in fetching["env"]}["OUT"]
    assert triton.environment["TINY_SD_CHECKPOINT"] == made
    assert {"name": "checkpoints", **volume} in triton.spec["volumes"]
    for claim in rendered.of("PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_a_claim_of_ones_own_is_used_as_it_is() -> None:
    settings = ("checkpoint.storage=existing", "checkpoint.existingClaim=mine", "checkpoint.folder=tiny")
    rendered = render(ONE_GPU, *settings)
    triton = rendered.pod("triton")
    assert "initContainers" not in triton.spec and "Job" not in {it["kind"] for it in rendered.objects if _is_kept(it)}
    assert triton.environment["TINY_SD_CHECKPOINT"] == "/checkpoints/tiny"
    assert {"name": "checkpoints", "persistentVolumeClaim": {"claimName": "mine"}} in triton.spec["volumes"]


FETCH = ["fetch", "segmind/tiny-sd", "--revision", "cad0bd7495fa6c4bcca01b19a723dc91627fe84f", "--out", "{out}"]


@pytest.mark.parametrize(
    ("values_file", "is_there", "done"),
    [
        (GPUS, False, FETCH),
        (GPUS, True, ["verify", "{out}"]),
        (ONE_GPU, False, FETCH),
        (ONE_GPU, True, None),  # at every start of the pod
    ],
)
def test_what_is_not_there_is_fetched(tmp_path: Path, values_file: str, is_there: bool, done: list[str] | None) -> None:
    (container,) = (it for pod in render(values_file).pods() for it in pod.containers if it["name"] == "fetch")
    out = tmp_path / "tiny-sd"
    if is_there:
        out.mkdir()
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    ran = subprocess.run(
        [*container["command"], *container["args"]],
        env={**environment, "OUT": str(out), "PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    if done is None:
        assert ran.stdout == ""
        return
    script, *arguments = ran.stdout.splitlines()
    assert ROOT / Path(script).relative_to("/opt/tiny-sd") == ROOT / "tools" / "checkpoint.py"
    assert arguments == [word.format(out=out) for word in done]
    checkpoint_tool._parser().parse_args(arguments)


def test_fetching_is_allowed_the_network_and_keeps_what_it_has_on_scratch() -> None:
    pod = render(GPUS, "checkpoint.tokenSecret=hub").pod("checkpoint")
    assert pod.environment["HF_HUB_OFFLINE"] == "0", "the image says 1"
    assert pod.environment["HF_HOME"].startswith("/tmp/")
    assert pod.spec["restartPolicy"] == "OnFailure", "a new pod would begin anew"
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}} in pod.main["env"]


@pytest.mark.parametrize("values_file", [GPUS, ONE_GPU])
def test_who_fetches_can_be_told_of_a_mirror_and_a_proxy(values_file: str) -> None:
    given = {
        "HF_ENDPOINT": "https://hub.example.com",
        "HTTPS_PROXY": "http://proxy.example.com:443",
        "HF_HOME": "/tmp/mine",
    }
    rendered = render(values_file, *(f"checkpoint.env.{name}={value}" for name, value in given.items()))
    (container,) = (it for pod in rendered.pods() for it in pod.containers if it["name"] == "fetch")
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert len(environment) == len(container["env"]), "one's own goes before the chart's"
    assert given.items() <= environment.items()


def test_a_job_is_another_one_exactly_when_something_in_it_changes() -> None:
    """Kubernetes refuses to change a Job, and an upgrade must not fail because of that."""

    def job(*settings: str) -> tuple[str, Any]:
        pod = render(GPUS, *settings).pod("checkpoint")
        return pod.owner["metadata"]["name"], pod.owner["spec"]["template"]

    changes = ["", "triton.image.tag=0.2.0", "triton.nodeSelector.pool=a", "triton.tolerations[0].key=a",
               "checkpoint.resources.limits.memory=9Gi", "checkpoint.tokenSecret=hub", "imagePullSecrets[0].name=a",
               "triton.affinity.nodeAffinity.a=b", f"checkpoint.revision={'a' * 40}",
               "checkpoint.env.HF_ENDPOINT=a"]  # fmt: skip
    made = [job(*([change] if change else [])) for change in changes]
    assert len({name for name, _ in made}) == len(changes)
    assert job("gateway.replicas=4", "triton.maxInFlight=40") == made[0]


def test_secrets_are_named_and_never_written_down() -> None:
    rendered = render(GPUS, *EVERYTHING, "checkpoint.tokenSecret=hub", "triton.adminKeySecret=operators")
    assert not rendered.of("Secret")
    key = {"secretKeyRef": {"name": "operators", "key": "TINY_SD_ADMIN_KEY"}}
    assert {"name": "TINY_SD_ADMIN_KEY", "valueFrom": key} in rendered.pod("triton").main["env"]
    url = {"secretKeyRef": {"name": "tiny-sd-database", "key": "url"}}
    for component in ("gateway", "test"):
        assert {"name": "TINY_SD_GATEWAY_DATABASE_URL", "valueFrom": url} in rendered.pod(component).main["env"]
    for settings in rendered.of("ConfigMap"):
        assert not any(word in json.dumps(settings) for word in ("postgresql://", "HF_TOKEN", "password"))


def _is_kept(found: dict[str, Any]) -> bool:
    """Whether it is part of the release, and no test."""
    return "helm.sh/hook" not in found["metadata"].get("annotations", {})


def _start_script() -> Path:
    return ROOT / "deploy" / "docker" / "start-triton.sh"


def _gateway_settings(pod: Pod) -> GatewaySettings:
    """As the gateway reads them; the database's URL comes from a Secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_SD_GATEWAY_DATABASE_URL", POSTGRESQL)
        for name, value in pod.environment.items():
            patch.setenv(name, value)
        return GatewaySettings.from_environment()
