"""tools/serve.py and tools/local_server without a Triton: arguments, log, ports, Python and checkpoint."""

from __future__ import annotations

import socket
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import serve
from local_server import (
    BrokenCheckpoint,
    BusyPort,
    LocalServer,
    ModelProgress,
    NoCheckpoint,
    NoSharedPython,
    NoStub,
    NoTriton,
    Ports,
    ServeError,
    checkpoint,
    free_ports,
    install,
)
from local_server.log import LoadingModels, LogFile, failures, last_errors
from local_server.ports import check_ports
from tiny_sd_engine.errors import CheckpointError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

FAILED_START = r"""
E1122 15:47:35.622328 3191 server.cc:241] "CudaDriverHelper has not been initialized."
I1122 15:47:35.624204 3191 model_lifecycle.cc:472] "loading: unet:1"
I1122 15:47:35.624240 3191 model_lifecycle.cc:472] "loading: tokenizer:1"
I1122 15:47:37.834393 3191 model_lifecycle.cc:839] "successfully loaded 'tokenizer'"
I1122 15:47:37.988740 3191 pb_stub.cc:366] "Failed to initialize Python stub: RuntimeError: no weights\nsee docs\n"
E1122 15:47:38.168033 3191 model_lifecycle.cc:642] "failed to load 'unet' version 1: Internal: RuntimeError: no weights\nsee docs\n\nAt:\n  /models/unet/1/model.py(5): initialize\n  /models/other.py(1): call\n"
I1122 15:47:38.168049 3191 model_lifecycle.cc:777] "failed to load 'unet'"
E1122 15:47:38.783781 3191 model_repository_manager.cc:703] "Invalid argument: ensemble 'tiny_sd' depends on 'unet' which has no loaded version. Model 'unet' loading failed with error: version 1 is at UNAVAILABLE state: Internal: RuntimeError: no weights\nsee docs\n;"
error: creating server: Internal - failed to load all models
""".strip().splitlines()  # noqa: E501


HOST = "127.83.0.1"
"""An address of this machine that nobody uses, where what is free stays so: other tests take ports all the time."""


@pytest.fixture
def listening() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for the engine: `made` lists the checkpoints it wrote, `problem` is what it finds wrong with any."""
    state = SimpleNamespace(made=[], problem=None, during=lambda: None)

    def inspect(path: Path) -> None:
        if state.problem:
            raise CheckpointError(path / "unet", state.problem)

    def write_random(architecture: str, out: Path) -> None:
        out.mkdir()
        (out / "model_index.json").write_text(architecture)
        state.made.append(out)
        state.during()

    monkeypatch.setitem(sys.modules, "tiny_sd_engine.checkpoint", SimpleNamespace(inspect=inspect))
    monkeypatch.setitem(sys.modules, "tiny_sd_engine.architectures", SimpleNamespace(write_random=write_random))
    return state


@pytest.fixture
def default_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "checkpoints" / "demo"
    path.mkdir(parents=True)
    monkeypatch.setattr(checkpoint, "DEFAULT", path)
    return path


# --- arguments and command line


def test_everything_after_the_dashes_goes_to_triton_unchanged() -> None:
    options = serve.parse_arguments(["--http-port", "9000", "--", "--log-verbose=1", "--", "--id", "x"])
    assert options.http_port == 9000
    assert options.extra_args == ["--log-verbose=1", "--", "--id", "x"]


def test_a_config_name_selects_the_custom_configs_of_the_models() -> None:
    options = serve.parse_arguments(["--config", "h100", "--", "--id=x"])
    assert options.extra_args == ["--model-config-name=h100", "--id=x"]


def test_defaults_are_tritons_ports_on_this_machine_only() -> None:
    options = serve.parse_arguments([])
    assert (options.host, options.http_port, options.grpc_port, options.metrics_port) == ("127.0.0.1", 8000, 8001, 8002)
    assert options.model_repository == serve.MODEL_REPOSITORY


@pytest.mark.parametrize("argv", [["--http-port", "many"], ["stray"], ["--no-such-option"]])
def test_arguments_that_mean_nothing_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        serve.parse_arguments(argv)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_command_line_names_repository_ports_and_timeout(tmp_path: Path) -> None:
    server = LocalServer(
        repository=tmp_path,
        ports=Ports(1, 2, 3),
        host="0.0.0.0",
        exit_timeout_s=7,
        extra_args=["--id=x"],
    )
    command = server.command(Path("/bin/tritonserver"), ["--backend-directory=/b"])
    assert command[0] == "/bin/tritonserver"
    assert {
        f"--model-repository={tmp_path}",
        "--backend-directory=/b",
        "--http-address=0.0.0.0",
        "--grpc-address=0.0.0.0",
        "--metrics-address=0.0.0.0",
        "--http-port=1",
        "--grpc-port=2",
        "--metrics-port=3",
        "--exit-timeout-secs=7",
    } <= set(command)
    assert command[-1] == "--id=x"  # last, so that it wins over ours


@pytest.mark.parametrize("gpu", [True, False])
def test_gpu_metrics_are_off_without_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local_server.server.has_gpu", lambda: gpu)
    command = LocalServer().command(Path("/bin/tritonserver"))
    assert ("--allow-gpu-metrics=false" in command) is not gpu


def test_two_servers_never_share_a_shared_memory_prefix() -> None:
    prefixes = {arg for _ in range(2) for arg in LocalServer().command(Path("t")) if "shm-region-prefix-name" in arg}
    assert len(prefixes) == 2


def test_a_server_on_every_address_is_reached_on_this_machine() -> None:
    server = LocalServer(ports=Ports(1, 2, 3), host="0.0.0.0")
    assert (server.http_url, server.grpc_url, server.metrics_url) == ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")


def test_a_server_that_was_not_started_has_no_processes_and_stops_quietly() -> None:
    server = LocalServer()
    assert server.process_tree() == []
    server.stop()
    with pytest.raises(ServeError, match="not started"):
        _ = server.pid


def test_a_missing_model_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no such model repository"):
        LocalServer(repository=tmp_path / "absent").start()


def test_the_checkpoint_reaches_the_server_only_for_our_models_or_when_named(
    tmp_path: Path, engine: SimpleNamespace, default_checkpoint: Path
) -> None:
    def environment(*argv: str) -> dict[str, str]:
        return serve.make_server(serve.parse_arguments([*argv, "--free-ports"]), Console(quiet=True))._env

    assert environment("--model-repository", str(tmp_path)) == {}
    assert environment("--model-repository", str(tmp_path), "--checkpoint", str(tmp_path)) == {
        "TINY_SD_CHECKPOINT": str(tmp_path)
    }
    assert engine.made == []


# --- ports


def test_free_ports_are_three_that_can_be_listened_on() -> None:
    ports = free_ports(HOST)
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    check_ports(HOST, ports)


def test_a_busy_port_is_named_with_its_option(listening: int) -> None:
    free = free_ports(HOST)
    with pytest.raises(BusyPort, match=rf"grpc port {listening} on 127\.83\.0\.1 is already in use.*--grpc-port"):
        check_ports(HOST, Ports(free.http, listening, free.metrics))


def test_a_port_on_one_address_is_busy_for_all_addresses(listening: int) -> None:
    free = free_ports()
    with pytest.raises(BusyPort, match="in use"):
        check_ports("0.0.0.0", Ports(listening, free.grpc, free.metrics))


def test_the_same_port_twice_is_busy() -> None:
    port = free_ports(HOST).http
    with pytest.raises(BusyPort, match="--grpc-port"):
        check_ports(HOST, Ports(port, port, port))


@pytest.mark.parametrize("number", [-1, 0, 65536])
def test_a_number_that_is_no_port_is_refused(number: int) -> None:
    with pytest.raises(BusyPort, match="--http-port takes 1 to 65535"):
        check_ports("127.0.0.1", Ports(http=number))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(BusyPort, match=r"192\.0\.2\.1.*--host"):
        check_ports("192.0.2.1", free_ports())


# --- log


def test_models_are_followed_from_loading_to_ready_or_failed() -> None:
    models = LoadingModels()
    news = [found for second, line in enumerate(FAILED_START) if (found := models.observe(line, float(second)))]
    assert news == [
        ModelProgress("unet", "loading", 0.0),
        ModelProgress("tokenizer", "loading", 0.0),
        ModelProgress("tokenizer", "ready", 1.0),
        ModelProgress("unet", "failed", 4.0),
    ]
    assert models.names == []


def test_the_failure_names_the_model_its_reason_and_where_but_no_consequences() -> None:
    assert failures(FAILED_START) == [
        "unet: RuntimeError: no weights\n  see docs\n  at /models/unet/1/model.py(5): initialize"
    ]


def test_a_config_that_cannot_be_parsed_is_named_with_line_and_column() -> None:
    log = [
        '[libprotobuf ERROR /tmp/x.cc:337] Error parsing text-format inference.ModelConfig: 4:39: Unknown "TYPE_FOO".',
        "E1122 15:47:41.838811 3319 model_repository_manager.cc:1460] \"Poll failed for model directory 'echo': "
        'failed to read text proto from /m/echo/config.pbtxt"',
    ]
    assert failures(log) == ['echo: failed to read text proto from /m/echo/config.pbtxt:4:39: Unknown "TYPE_FOO".']


def test_an_ensemble_of_unknown_models_is_a_failure_of_its_own() -> None:
    log = [
        'E1122 15:52:12.897451 3576 model_repository_manager.cc:703] "Invalid argument: ensemble front contains models '
        'that are not available or ambiguous: vae"'
    ]
    assert failures(log) == ["front: contains models that are not available or ambiguous: vae"]


def test_without_a_failed_model_the_last_errors_count() -> None:
    log = [
        'E1122 15:47:35.622328 3191 server.cc:241] "CudaDriverHelper has not been initialized."',
        'I1122 15:47:35.624204 3191 model_lifecycle.cc:472] "loading: echo:1"',
        "error: creating server: Internal - Failed to initialize LocalCache: stoull",
    ]
    assert failures(log) == []
    assert last_errors(log) == ["creating server: Internal - Failed to initialize LocalCache: stoull"]


def test_an_option_that_triton_does_not_know_is_its_last_error() -> None:
    assert last_errors(["/x/bin/tritonserver: unrecognized option '--foo=1'", "Usage: tritonserver [options]"]) == [
        "unrecognized option '--foo=1'"
    ]


def test_a_log_is_read_in_whole_lines_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    log = LogFile(path)
    assert log.new_lines() == ["one"]
    assert log.new_lines() == []
    with path.open("ab") as file:
        file.write(b"o\n\xff\n")
    assert log.new_lines() == ["two", "\ufffd"]
    assert list(log.recent) == ["one", "two", "\ufffd"]


# --- which Triton, which Python


def test_a_system_triton_keeps_its_backends_and_gets_our_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "tritonserver"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    triton = install.find_triton(tmp_path / "unused")
    assert triton.binary == binary
    assert triton.flags == ()
    python_path = triton.environment({"PYTHONPATH": "/theirs"})["PYTHONPATH"].split(":")
    assert python_path[:2] == [str(install.ROOT / "client"), str(install.ROOT / "engine")]
    assert python_path[-1] == "/theirs"


@pytest.mark.parametrize(("prefix", "wanted"), [("/venv", True), (sys.base_prefix, False)])
def test_a_system_triton_gets_site_packages_only_from_a_venv(
    prefix: str, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tritonserver").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", prefix)
    assert ("site-packages" in install.find_triton(tmp_path).environment({})["PYTHONPATH"]) is wanted


def test_without_any_triton_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_system_binary", lambda: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoTriton, match="pip install"):
        install.find_triton(tmp_path)


def test_the_backend_is_the_wheels_with_the_stub_of_this_python(tmp_path: Path) -> None:
    server = wheel(tmp_path, "3.8", PYTHON)
    install.assemble_backend(server, tmp_path / "backends")
    backend = tmp_path / "backends" / "python"
    assert sorted(path.name for path in backend.iterdir()) == ["libtriton_python.so", "triton_python_backend_stub"]
    assert (backend / "triton_python_backend_stub").read_text() == PYTHON


def test_a_python_without_a_stub_is_told_which_versions_have_one(tmp_path: Path) -> None:
    server = wheel(tmp_path, "3.10", "3.9")
    with pytest.raises(NoStub, match=rf"Python {PYTHON};.* 3\.9, 3\.10$"):
        install.assemble_backend(server, tmp_path / "backends")


def test_the_stubs_python_home_sees_the_packages_and_their_pth_files(tmp_path: Path) -> None:
    install.assemble_python_home(tmp_path / "home", [tmp_path / "it's a folder", tmp_path / "b"])
    lines = next(tmp_path.glob("home/lib/python*/site-packages/*.pth")).read_text().splitlines()
    assert len(lines) == 2
    assert f'addsitedir("{tmp_path}/it\'s a folder")' in lines[0]
    assert (tmp_path / "home" / "bin" / "python3").samefile(sys.executable)
    assert str(Path(sys.base_prefix)) in (tmp_path / "home" / "pyvenv.cfg").read_text()


@pytest.mark.parametrize("folder", ["lib", "lib/x86_64-linux-gnu", "base/lib"])
def test_the_shared_python_is_found_where_builds_and_distributions_keep_it(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / folder / f"libpython{PYTHON}.so.1.0"
    library.parent.mkdir(parents=True)
    library.touch()
    pretend_python(monkeypatch, tmp_path)
    assert install.shared_python() == library


def test_a_static_python_is_told_how_to_get_a_shared_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_python(monkeypatch, tmp_path)
    with pytest.raises(NoSharedPython, match=rf"{tmp_path}/lib.*apt install libpython{PYTHON}.*--enable-shared"):
        install.shared_python()


def wheel(tmp_path: Path, *stubs: str) -> Path:
    """The part of the nvidia-pytriton wheel that counts, with stubs that hold their Python version."""
    server = tmp_path / "tritonserver"
    (server / "backends" / "python" / "__pycache__").mkdir(parents=True)
    (server / "backends" / "python" / "libtriton_python.so").touch()
    for version in stubs:
        folder = server / "python_backend_stubs" / version
        folder.mkdir(parents=True)
        (folder / "triton_python_backend_stub").write_text(version)
    return server


def pretend_python(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let this Python look as if it had been installed under `root`."""
    known = {"LIBDIR": str(root / "lib"), "MULTIARCH": "x86_64-linux-gnu"}
    monkeypatch.setattr(sysconfig, "get_config_var", known.get)
    monkeypatch.setattr(sys, "base_exec_prefix", str(root / "base"))


# --- checkpoint


def test_the_option_wins_over_the_environment_and_that_over_the_default(
    tmp_path: Path, engine: SimpleNamespace, default_checkpoint: Path
) -> None:
    named, variable = tmp_path / "named", tmp_path / "variable"
    named.mkdir()
    variable.mkdir()
    env = {"TINY_SD_CHECKPOINT": str(variable)}
    assert checkpoint.choose_checkpoint(named, env) == named
    assert checkpoint.choose_checkpoint(None, env) == variable
    assert checkpoint.choose_checkpoint(None, {"TINY_SD_CHECKPOINT": ""}) == default_checkpoint


def test_a_missing_checkpoint_is_named(tmp_path: Path, engine: SimpleNamespace) -> None:
    with pytest.raises(NoCheckpoint, match=f"{tmp_path}/absent: no such checkpoint folder.*--checkpoint"):
        checkpoint.choose_checkpoint(tmp_path / "absent", {})


def test_a_broken_checkpoint_says_what_the_engine_found(tmp_path: Path, engine: SimpleNamespace) -> None:
    engine.problem = "missing"
    with pytest.raises(BrokenCheckpoint, match=f"^{tmp_path}/unet: missing$"):
        checkpoint.choose_checkpoint(tmp_path, {})


def test_a_broken_default_checkpoint_is_to_be_restored(engine: SimpleNamespace, default_checkpoint: Path) -> None:
    engine.problem = "missing"
    with pytest.raises(BrokenCheckpoint, match="git checkout -- checkpoints/demo"):
        checkpoint.choose_checkpoint(None, {})


def test_random_weights_are_made_once_and_again_when_deleted(engine: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "test"
    for _ in range(2):
        assert checkpoint.make_random("test", path) == path
    assert len(engine.made) == 1
    (path / "model_index.json").unlink()
    path.rmdir()
    checkpoint.make_random("test", path)
    assert (path / "model_index.json").read_text() == "test"


def test_a_checkpoint_that_could_not_be_finished_leaves_nothing(engine: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "test"

    def interrupt() -> None:
        assert not path.exists()
        raise KeyboardInterrupt

    engine.during = interrupt
    with pytest.raises(KeyboardInterrupt):
        checkpoint.make_random("test", path)
    assert list(path.parent.iterdir()) == []


def test_a_checkpoint_that_somebody_else_finished_first_is_kept(engine: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "test"

    def finish_first() -> None:
        path.mkdir()
        (path / "theirs").touch()

    engine.during = finish_first
    assert checkpoint.make_random("test", path) == path
    assert [path.name for path in path.iterdir()] == ["theirs"]
    assert [path.name for path in path.parent.iterdir()] == ["test"]
