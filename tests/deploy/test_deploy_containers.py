"""Dockerfiles and docker-compose.yml, by the tools that read them. Nothing is pulled or built."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from compose_project import DOCKERFILES, EITHER, PROFILES, ROOT, project, reached, run, seconds, services, tool
from docker.utils.build import exclude_paths

from local_server import LocalServer
from tiny_sd_engine.settings import Settings as EngineSettings
from tiny_sd_gateway.settings import PREFIX
from tiny_sd_gateway.settings import Settings as GatewaySettings

DOCKER = ROOT / "deploy" / "docker"
SCRIPTS = sorted((ROOT / "deploy").glob("*/*.sh"))
COMPOSE = ROOT / "deploy" / "compose"
OURS = {"checkpoint", "triton", "triton-cpu", "gateway", "load"}
ONE_SHOT = {"checkpoint", "load"}
WITHOUT_SHELL = {"otel-collector", "jaeger"}

# --- What runs where ------------------------------------------------------------------------------

USUAL = {"checkpoint", "gateway", "postgres", "prometheus", "grafana"}


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        (("gpu",), USUAL | {"triton"}),
        (("cpu",), USUAL | {"triton-cpu"}),
        (("gpu", "tracing"), USUAL | {"triton", "otel-collector", "jaeger"}),
        (("cpu", "load"), USUAL | {"triton-cpu", "load"}),
        (("load",), {"load"}),
        ((), set()),
    ],
)
def test_profiles_choose_the_services(profiles: tuple[str, ...], expected: set[str]) -> None:
    assert set(project(*profiles)["services"]) == expected


def test_a_gpu_is_reserved_in_the_gpu_profile_alone() -> None:
    reserved = {
        name: devices
        for name, service in services().items()
        if (devices := service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices"))
    }
    assert list(reserved) == ["triton"]
    assert reserved["triton"] == [{"capabilities": ["gpu"], "driver": "nvidia", "count": 1}]
    assert services()["triton"]["profiles"] == ["gpu"]


def test_with_and_without_a_gpu_triton_is_the_same_otherwise() -> None:
    both = services()
    for each in EITHER:
        assert len(reached("triton").keys() & services(each).keys()) == 1, "the others find one triton"
    gpu, cpu = (dict(both[name]) for name in ("triton", "triton-cpu"))
    for own in ("profiles", "deploy", "networks"):
        gpu.pop(own, None)
        cpu.pop(own, None)
    assert gpu == cpu


# --- Images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    answer = run(tool("hadolint"), "--failure-threshold", "style", dockerfile)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    answer = run(tool("shellcheck"), script)
    assert answer.returncode == 0, answer.stdout


def test_every_image_is_pinned_to_a_version() -> None:
    images = {service["image"] for service in services().values()}
    for dockerfile in DOCKERFILES:
        stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", dockerfile.read_text(), re.M)
        images |= {image for image, _ in stages} - {name for _, name in stages}
    assert len(images) > len(DOCKERFILES)
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-[\w.]+)*", image), image


def test_images_of_ours_have_the_version_of_the_packages() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    built = {service["image"] for service in services().values() if "build" in service}
    assert built == {f"tiny-sd-{name}:{version}" for name in ("triton", "gateway", "load")}
    for dockerfile in DOCKERFILES:
        assert f'image.version="{version}"' in dockerfile.read_text()


def test_every_dockerfile_is_built_by_compose_and_ends_as_a_user_without_privileges() -> None:
    built = {Path(service["build"]["dockerfile"]).name for service in services().values() if "build" in service}
    assert built == {path.name for path in DOCKERFILES}
    for dockerfile in DOCKERFILES:
        users = re.findall(r"^USER (\S+)", dockerfile.read_text(), re.M)
        assert users[-1] == "1000:1000", "a number, or Kubernetes cannot tell that it is not root"


def constraints() -> dict[str, str]:
    lines = (DOCKER / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "each pins one version"
    return {normal(name): version for name, version in pins}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: str) -> dict[str, str]:
    found = re.findall(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)", requirements)
    return {normal(name): version for name, version in found}


def test_images_install_the_versions_that_the_packages_pin() -> None:
    pinned = constraints()
    for file in ("pyproject.toml", "client/pyproject.toml", "gateway/pyproject.toml"):
        wanted = pins("\n".join(tomllib.loads((ROOT / file).read_text())["project"]["dependencies"]))
        wanted.pop("tiny-sd-client", None)
        assert wanted, file
        assert wanted.items() <= pinned.items(), file
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    elsewhere = pins("\n".join(line for extra in extras.values() for line in extra))
    for dockerfile in DOCKERFILES:
        named = pins(dockerfile.read_text())
        assert named.items() <= pinned.items(), dockerfile.name
        assert {name: elsewhere.get(name, version) for name, version in named.items()} == named, dockerfile.name


def sources(dockerfile: Path) -> list[tuple[list[str], str]]:
    """What is copied from the build context, and where to."""
    copies = [line.split()[1:] for line in dockerfile.read_text().splitlines() if line.startswith("COPY ")]
    return [(parts[:-1], parts[-1]) for parts in copies if not parts[0].startswith("--from")]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What Docker gets to build from, of this repository and of what else may lie about in it; without the contents."""
    tree = tmp_path_factory.mktemp("context")
    ours = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in (*ours, *KEPT_OUT):
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    return set(exclude_paths(str(tree), patterns))


KEPT_OUT = (
    ".git/config",
    ".venv/bin/python",
    ".cache/checkpoints/test/unet/diffusion_pytorch_model.safetensors",
    ".env",
    "checkpoints/demo/unet/diffusion_pytorch_model.safetensors",
    "checkpoints/tiny-sd/unet/diffusion_pytorch_model.safetensors",
    "client/tiny_sd_client.egg-info/PKG-INFO",
    "client/build/lib/tiny_sd_client/__init__.py",
    "deploy/compose/secrets/postgres_password",
    "engine/tiny_sd_engine/__pycache__/denoiser.cpython-312.pyc",
    "output/picture.png",
)


@pytest.mark.parametrize("path", KEPT_OUT)
def test_images_can_hold_no_weights_secrets_or_leftovers(context: set[str], path: str) -> None:
    assert path not in context


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_the_build_context_holds_what_is_copied(context: set[str], dockerfile: Path) -> None:
    for files, _ in sources(dockerfile):
        assert set(files) <= context


def test_the_triton_image_holds_all_that_the_checkpoint_tool_needs(checkpoint: Path, tmp_path: Path) -> None:
    for files, target in sources(DOCKER / "triton.Dockerfile"):
        for name in files:
            to = tmp_path / target / Path(name).name if target.endswith("/") else tmp_path / target
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, to, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / name, to)
    text = (DOCKER / "triton.Dockerfile").read_text()
    assert "WORKDIR /opt/tiny-sd\n" in text, "what tmp_path stands for"
    answer = run(sys.executable, "tools/checkpoint.py", "verify", checkpoint, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "can be served" in answer.stdout


# --- What containers may do, and how they live ----------------------------------------------------


def test_only_the_gateway_reaches_the_database() -> None:
    on_it = {name for name, service in services().items() if "database" in service["networks"]}
    assert on_it == {"gateway", "postgres"}
    assert list(services()["postgres"]["networks"]) == ["database"]
    assert "ports" not in services()["postgres"]
    assert project(*PROFILES)["networks"]["database"]["internal"] is True


def test_ports_are_for_this_machine_unless_the_operator_says_otherwise() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert {port["target"] for port in published} == {8000, 8001, 8080, 3000, 9090, 16686, 8089}
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_containers_gain_no_privileges() -> None:
    for name, service in services().items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged"), name
        assert (service.get("cap_drop") == ["ALL"]) == (name in OURS), name


def test_passwords_come_from_files_alone() -> None:
    for name, service in services().items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|DATABASE_URL|SECRET", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                secret = Path(value).name
                assert value == f"/run/secrets/{secret}"
                assert secret in [each["source"] for each in service["secrets"]], name
    folder = {Path(each["file"]).parent for each in project(*PROFILES)["secrets"].values()}
    assert folder == {COMPOSE / "secrets"}
    assert run("git", "check-ignore", "deploy/compose/secrets/postgres_password", cwd=ROOT).returncode == 0


def test_secrets_are_made_once(tmp_path: Path) -> None:
    script = shutil.copy(COMPOSE / "make-secrets.sh", tmp_path)
    for _ in range(2):
        assert run("sh", script).returncode == 0
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == {Path(each["file"]).name for each in project(*PROFILES)["secrets"].values()}
    assert made["database_url"] == f"postgresql://gateway:{made['postgres_password']}@postgres/gateway"
    GatewaySettings(database_url=made["database_url"])
    assert re.fullmatch("[0-9a-f]{48}", made["grafana_admin_password"])
    assert made["grafana_admin_password"] != made["postgres_password"]
    before = dict(made)
    assert run("sh", script).stdout == "", "nothing is made again"
    assert before == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}


def test_secrets_can_be_read_by_containers_and_by_nobody_else(tmp_path: Path) -> None:
    run("sh", shutil.copy(COMPOSE / "make-secrets.sh", tmp_path))
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    for file in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o444, "users in containers have other numbers than the owner here"


def test_services_come_back_and_one_shot_services_do_not() -> None:
    for name, service in services().items():
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        assert service["init"] is True, name


def test_every_service_that_can_be_asked_has_a_health_check() -> None:
    for name, service in services().items():
        check = service.get("healthcheck", {})
        dockerfile = ROOT / service["build"]["dockerfile"] if "build" in service else None
        of_the_image = dockerfile and re.search(r"^HEALTHCHECK ", dockerfile.read_text(), re.M)
        asked = bool(check.get("test") or of_the_image) and not check.get("disable")
        assert asked == (name not in WITHOUT_SHELL | ONE_SHOT), name


def environment(name: str) -> dict[str, str]:
    values: dict[str, str | None] = services()[name]["environment"]
    return {variable: value for variable, value in values.items() if value is not None}


def test_stopping_takes_longer_than_the_slowest_request() -> None:
    gateway = GatewaySettings(
        database_url="postgresql://gateway@postgres/gateway",
        **{name: float(environment("gateway")[f"{PREFIX}{name.upper()}"]) for name in ("timeout_s", "drain_s")},
    )
    last_answers_s = 5
    assert gateway.drain_s > gateway.timeout_s
    assert seconds(services()["gateway"]["stop_grace_period"]) > gateway.drain_s + last_answers_s
    for name in reached("triton"):
        triton = services()[name]
        (hook,) = triton["pre_stop"]
        (timeout,) = re.findall(
            r"^tiny-sd drain --url grpc://localhost:8001 --timeout (\d+) \|\| true$", hook["command"][-1]
        )
        assert float(timeout) > gateway.drain_s, "what comes through the gateway is finished"
        assert seconds(triton["stop_grace_period"]) > float(timeout), "and what a hook does not wait for"
        assert name in services()["gateway"]["depends_on"], "the gateway stops before Triton does"


def test_triton_waits_for_the_checkpoint_and_cannot_change_it() -> None:
    for name, triton in reached("triton").items():
        assert triton["depends_on"]["checkpoint"]["condition"] == "service_completed_successfully", name
        (volume,) = triton["volumes"]
        assert (volume["source"], volume["target"], volume["read_only"]) == ("checkpoints", "/checkpoints", True)
        assert Path(triton["environment"]["TINY_SD_CHECKPOINT"]).parent == Path(volume["target"])
        assert triton["environment"]["TINY_SD_CHECKPOINT"] in str(services()["checkpoint"]["command"])
        assert int(triton["shm_size"]) >= 2**30


@pytest.mark.parametrize("there", [False, True])
def test_the_checkpoint_is_fetched_once_and_verified_afterwards(tmp_path: Path, there: bool) -> None:
    command = services()["checkpoint"]["command"][-1].replace("$$", "$").replace("/checkpoints", str(tmp_path))
    out = tmp_path / "tiny-sd"
    if there:
        out.mkdir()
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    variables = {**environment("checkpoint"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    answer = run(*services()["checkpoint"]["command"][:-1], command, env=variables)
    commit = environment("checkpoint")["REVISION"]
    assert re.fullmatch("[0-9a-f]{40}", commit), "a commit, not a branch that moves"
    fetch = f"fetch segmind/tiny-sd --revision {commit} --out {out}"
    assert answer.stdout == f"tools/checkpoint.py {f'verify {out}' if there else fetch}\n"
    assert environment("checkpoint")["HF_HUB_OFFLINE"] == "0"


def test_settings_are_ones_that_the_programs_know(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in GatewaySettings.model_fields} | {f"{PREFIX}DATABASE_URL_FILE"}
    gateway = {name: value for name, value in environment("gateway").items() if name.startswith("TINY_SD_")}
    assert gateway.keys() <= known
    for name, value in gateway.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", "postgresql://gateway:secret@postgres/gateway")
    settings = GatewaySettings.from_environment()
    assert settings.triton_url == "grpc://triton:8001"
    assert settings.public_url is None
    for name in reached("triton"):
        assert EngineSettings.from_environment(environment(name)).sizes == settings.sizes, "both offer the same"
    assert set(environment("triton")) <= set((ROOT / "docs" / "configuration.md").read_text().split("`")) | {
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    }


def test_the_load_tests_know_their_settings() -> None:
    program = (
        "import types, load_tests.options as options; names = []\n"
        "parser = types.SimpleNamespace(add_argument=lambda *_, env_var, **__: names.append(env_var))\n"
        "options.add_options(parser); print(*names, options.API_KEY)"
    )
    answer = run(sys.executable, "-c", program, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    text = (DOCKER / "load.Dockerfile").read_text()
    given = services()["load"]["environment"].keys() | set(re.findall(r"TINY_SD_LOAD_\w+", text))
    assert given <= set(answer.stdout.split())


# --- The scripts in the images --------------------------------------------------------------------


@pytest.fixture
def bin(tmp_path: Path) -> Path:
    """A folder in front of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def with_path(folder: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder.parent), **more}


def arguments(bin: Path, *more: str, scripts: Path = DOCKER, **variables: str) -> list[str]:
    """What tritonserver is started with."""
    put(bin, "tritonserver", 'printf "%s\\n" "$@"')
    answer = run(scripts / "start-triton.sh", *more, env=with_path(bin, **variables))
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def test_triton_starts_with_the_flags_of_tools_serve(bin: Path) -> None:
    server = LocalServer(env={"TINY_SD_ADMIN_KEY": "known"})
    theirs = {
        flag
        for flag in server.command(Path("tritonserver"))[1:]
        # Places on this machine.
        if not re.match(r"--(http|grpc|metrics)-(port|address)=|--backend-config=python,shm-region-prefix-name=", flag)
    }
    assert set(arguments(bin, TINY_SD_ADMIN_KEY="known")) == theirs


def test_nobody_knows_the_key_of_tritons_apis_for_operators_unless_it_is_given(bin: Path) -> None:
    keys = {flag.rpartition("=")[2] for _ in range(2) for flag in arguments(bin) if "-restricted-" in flag}
    assert len(keys) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


def test_arguments_for_triton_come_last_and_so_win(bin: Path) -> None:
    assert arguments(bin, "--exit-timeout-secs=5", "--log-verbose=1")[-2:] == [
        "--exit-timeout-secs=5",
        "--log-verbose=1",
    ]


@pytest.mark.parametrize("endpoint", ["http://otel-collector:4318", "http://otel-collector:4318/"])
def test_triton_traces_where_opentelemetrys_variable_says(bin: Path, endpoint: str) -> None:
    traced = [
        flag for flag in arguments(bin, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) if flag.startswith("--trace-config=")
    ]
    assert "--trace-config=opentelemetry,url=http://otel-collector:4318/v1/traces" in traced
    assert "--trace-config=mode=opentelemetry" in traced


@pytest.mark.parametrize("variables", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}])
def test_triton_traces_nothing_unless_it_is_told_to(bin: Path, variables: dict[str, str]) -> None:
    assert not [flag for flag in arguments(bin, **variables) if flag.startswith("--trace")]


@pytest.mark.parametrize(
    ("devices", "there"),
    [(("nvidia0",), True), (("dxg",), True), (("nvidia0", "nvidia1", "dxg"), True), (("null", "nvidiactl"), False)],
)
def test_a_gpu_is_seen_by_its_device(tmp_path: Path, devices: tuple[str, ...], there: bool) -> None:
    for name in devices:
        (tmp_path / name).touch()
    assert (run(DOCKER / "has-gpu.sh", tmp_path).returncode == 0) == there


@pytest.mark.parametrize("gpu", [True, False])
def test_with_a_gpu_its_metrics_are_asked_for_and_whole_pictures_drawn(bin: Path, gpu: bool) -> None:
    # Where the scripts of the image lie, with another answer of one of them.
    scripts = bin.parent / "deploy" / "docker"
    shutil.copytree(DOCKER, scripts)
    put(scripts, "has-gpu.sh", f"exit {0 if gpu else 1}")
    assert ("--allow-gpu-metrics=false" in arguments(bin, scripts=scripts)) == (not gpu)
    put(bin, "tiny-sd", 'echo "$@"')
    checked = run(scripts / "check-triton.sh", env=with_path(bin))
    assert checked.returncode == 0
    assert checked.stdout.endswith(" --whole\n") == gpu


class Check:
    """The health check of a container in which a process stands in for Triton."""

    def __init__(self, bin: Path) -> None:
        self._bin = bin
        put(bin, "tritonserver", "exec sleep 600")
        self.triton = subprocess.Popen([DOCKER / "start-triton.sh"], env=with_path(bin))
        # A stopped one has left its state behind.
        state = bin.parent / "tiny-sd" / "pid"
        known = ""
        while known != f"{self.triton.pid}\n":
            assert self.triton.poll() is None
            with suppress(FileNotFoundError):
                known = state.read_text()

    def healthy(self, answers: bool) -> bool:
        put(self._bin, "tiny-sd", f'[ "$1" = check ] && exit {0 if answers else 1}')
        return run(DOCKER / "check-triton.sh", env=with_path(self._bin)).returncode == 0

    def runs(self) -> bool:
        try:
            self.triton.wait(0.3)
        except subprocess.TimeoutExpired:
            return True
        return False


@pytest.fixture
def check(bin: Path) -> Any:
    check = Check(bin)
    yield check
    check.triton.kill()
    check.triton.wait()


def test_the_second_failure_in_a_row_ends_triton(check: Check) -> None:
    assert check.healthy(True)
    assert not check.healthy(False)
    assert check.runs(), "once may be chance"
    assert not check.healthy(False)
    assert check.triton.wait(60) == -9


def test_failures_that_are_not_in_a_row_leave_triton_alone(check: Check) -> None:
    for answers in (True, False, True, False):
        assert check.healthy(answers) == answers
    assert check.runs()


def test_a_triton_that_still_starts_is_not_ended(check: Check) -> None:
    for _ in range(4):
        assert not check.healthy(False)
    assert check.runs()


def test_a_restarted_triton_begins_anew(check: Check, bin: Path) -> None:
    assert check.healthy(True)
    assert not check.healthy(False)
    check.triton.kill()
    check.triton.wait()
    again = Check(bin)
    try:
        assert not again.healthy(False)
        assert not again.healthy(False)
        assert again.runs()
    finally:
        again.triton.kill()
        again.triton.wait()


def test_the_gateway_reads_its_databases_url_from_a_file(bin: Path, tmp_path: Path) -> None:
    url = "postgresql://gateway:secret@postgres/gateway"
    (tmp_path / "url").write_text(url)
    put(bin, "tiny-sd-gateway", 'echo "$TINY_SD_GATEWAY_DATABASE_URL" "$@"')
    given = with_path(bin, TINY_SD_GATEWAY_DATABASE_URL_FILE=str(tmp_path / "url"))
    assert run(DOCKER / "start-gateway.sh", "keys", "list", env=given).stdout == f"{url} keys list\n"


def test_the_gateway_does_not_start_without_the_file_that_is_named(bin: Path, tmp_path: Path) -> None:
    put(bin, "tiny-sd-gateway", "echo started")
    given = with_path(bin, TINY_SD_GATEWAY_DATABASE_URL_FILE=str(tmp_path / "missing"))
    answer = run(DOCKER / "start-gateway.sh", "run", env=given)
    assert answer.returncode != 0
    assert "missing" in answer.stderr
    assert "started" not in answer.stdout


def test_the_gateways_url_may_stand_in_the_environment_as_well(bin: Path) -> None:
    put(bin, "tiny-sd-gateway", 'echo "$TINY_SD_GATEWAY_DATABASE_URL" "$@"')
    given = with_path(bin, TINY_SD_GATEWAY_DATABASE_URL="sqlite:////data/gateway.db")
    assert run(DOCKER / "start-gateway.sh", "run", env=given).stdout == "sqlite:////data/gateway.db run\n"


def test_dependencies_are_listed_for_a_layer_of_their_own(tmp_path: Path) -> None:
    files = ["pyproject.toml", "client/pyproject.toml"]
    answer = run(sys.executable, DOCKER / "requirements.py", *files, cwd=ROOT)
    listed = answer.stdout.splitlines()
    expected = [line for file in files for line in tomllib.loads((ROOT / file).read_text())["project"]["dependencies"]]
    assert listed == expected
    assert "torch==2.13.0" in listed
