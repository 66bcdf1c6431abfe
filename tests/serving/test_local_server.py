"""tools/serve.py and LocalServer with a real Triton on throw-away models, none of which needs torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from local_server import BusyPort, LocalServer, ModelProgress, NotReady, Ports, ServerDied, free_ports
from local_server.install import ROOT

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 4
input [ {{ name: "X" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "Y" data_type: TYPE_FP32 dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU }} ]
"""

MODEL = """
import os, time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        print("asked", flush=True)
        x = [pb_utils.get_input_tensor_by_name(request, "X").as_numpy() for request in requests]
        time.sleep(float(x[0][0, 0]))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", each)]) for each in x]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository with one good model, `echo`: it sleeps for X seconds and answers X."""
    folder = tmp_path / "models"
    add_model(folder, "echo")
    return folder


@pytest.fixture
def local(repository: Path, tmp_path: Path) -> Iterator[LocalServer]:
    """A server that is not started yet; stopped and checked for leftovers at the end."""
    server = LocalServer(repository=repository, log_path=tmp_path / "triton.log", ready_timeout_s=300)
    yield server
    processes = server.process_tree()
    server.stop()
    assert_nothing_left(processes, server.shared_memory_prefix)


def add_model(repository: Path, name: str, initialize: str = "pass") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name))
    (repository / name / "1" / "model.py").write_text(MODEL.format(initialize=initialize))


def ask_echo(url: str, seconds: float) -> list[float]:
    tensor = {"name": "X", "shape": [1, 1], "datatype": "FP32", "data": [seconds]}
    # A connection that is kept alive would hold up Triton's stop for all of the exit timeout.
    with requests.post(f"http://{url}/v2/models/echo/infer", json={"inputs": [tensor]}, timeout=60) as response:
        response.raise_for_status()
        return response.json()["outputs"][0]["data"]


def assert_nothing_left(processes: list[psutil.Process], shared_memory: str) -> None:
    """None of the processes runs, and no shared memory is left whose name begins so."""
    _, alive = psutil.wait_procs(processes, timeout=60)
    # Where nobody reaps orphans they stay as zombies, which is no fault of ours.
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert list(Path("/dev/shm").glob(f"{shared_memory}*")) == []


class CommandLine:
    """`tools/serve.py` as a process of its own; its output can be waited for line by line."""

    def __init__(self, repository: Path, ports: Ports, *more: str) -> None:
        self.ports = ports
        self.url = f"127.0.0.1:{ports.http}"
        options = [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}", f"--metrics-port={ports.metrics}"]
        self._log = repository.parent / "triton.log"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "tools/serve.py",
                f"--model-repository={repository}",
                f"--log={self._log}",
                *options,
                *more,
            ],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(repository.parent)},  # a killed command cannot tidy up
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, text: str) -> list[str]:
        """The lines of output up to the first that holds `text`."""
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return lines
        pytest.fail(f"no {text!r} in {lines}; stderr: {self.process.stderr.read()}")

    def wait_until_asked(self) -> None:
        """Until a request has got to its model."""
        end = time.monotonic() + 60
        while "asked" not in self._log.read_text():
            assert time.monotonic() < end
            time.sleep(0.05)

    def tree(self) -> list[psutil.Process]:
        """Triton and its stubs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, and what was left of stdout and stderr."""
        stdout, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, stdout, stderr


def test_a_started_server_answers_on_all_three_ports_and_leaves_nothing(local: LocalServer) -> None:
    news: list[ModelProgress] = []
    lines: list[str] = []
    local.start(news.append, lines.append)
    assert [(each.model, each.state) for each in news] == [("echo", "loading"), ("echo", "ready")]
    assert any("successfully loaded 'echo'" in line for line in lines)

    assert requests.get(f"http://{local.http_url}/v2/health/ready", timeout=60).ok
    assert "nv_inference_count" in requests.get(f"http://{local.metrics_url}/metrics", timeout=60).text
    socket.create_connection(local.grpc_url.split(":"), timeout=60).close()
    assert ask_echo(local.http_url, 0.25) == [0.25]

    triton, stub = local.process_tree()
    assert triton.pid == local.pid
    assert stub.ppid() == local.pid


def test_models_import_our_packages_and_those_of_this_python(repository: Path, local: LocalServer) -> None:
    add_model(
        repository, "imports", "import tiny_sd_client, tiny_sd_engine, psutil; print(psutil.__file__, flush=True)"
    )
    local.start()
    assert psutil.__file__ in local.log_path.read_text()


def test_models_see_the_environment_that_was_given_and_no_hub(repository: Path, local: LocalServer) -> None:
    add_model(repository, "names", 'print(os.environ["GIVEN"], "hub", os.environ["HF_HUB_OFFLINE"], flush=True)')
    local._env["GIVEN"] = "gift"
    local.start()
    assert "gift hub 1" in local.log_path.read_text()


def test_every_model_is_loaded_once(repository: Path, local: LocalServer) -> None:
    add_model(repository, "speaks")
    with (repository / "speaks" / "1" / "model.py").open("a") as model:
        model.write('\nprint("this model is imported", flush=True)\n')
    local.start()
    assert local.log_path.read_text().count("this model is imported") == 1


def test_a_server_can_be_started_again_after_a_stop(local: LocalServer) -> None:
    for _ in range(2):
        with local:
            assert ask_echo(local.http_url, 0) == [0]
        assert local.process_tree() == []


def test_a_server_started_in_a_thread_outlives_the_thread(local: LocalServer) -> None:
    thread = threading.Thread(target=local.start)
    thread.start()
    thread.join()
    time.sleep(1)
    assert ask_echo(local.http_url, 0) == [0]


def test_a_model_that_raises_is_named_with_its_reason(repository: Path, local: LocalServer) -> None:
    add_model(repository, "broken", 'raise RuntimeError("no weights here")')
    with pytest.raises(ServerDied) as died:
        local.start()
    headline, *details = str(died.value).splitlines()
    assert headline.startswith("Triton stopped while it started")
    assert details == [
        "  broken: RuntimeError: no weights here",
        f"    at {repository}/broken/1/model.py(8): initialize",
        f"  its log: {local.log_path}",
    ]
    assert local.process_tree() == []


def test_a_server_that_takes_too_long_is_ended_and_says_what_it_was_loading(tmp_path: Path) -> None:
    add_model(tmp_path / "models", "slow", "time.sleep(600)")
    local = LocalServer(repository=tmp_path / "models", log_path=tmp_path / "triton.log", ready_timeout_s=15)
    seen: list[psutil.Process] = []
    with pytest.raises(NotReady, match=r"not ready after 15 s \(still loading slow\)"):
        local.start(on_line=lambda line: seen.extend(local.process_tree()))
    assert_nothing_left(seen, local.shared_memory_prefix)


def test_a_busy_port_is_found_before_triton_starts(local: LocalServer) -> None:
    with socket.create_server(("127.0.0.1", local.ports.metrics)), pytest.raises(BusyPort, match="--metrics-port"):
        local.start()
    assert not local.log_path.exists()


def test_a_server_that_dies_while_serving_is_reported(local: LocalServer) -> None:
    local.start()
    os.kill(local.pid, signal.SIGKILL)
    with pytest.raises(ServerDied, match=r"stopped while serving \(killed by SIGKILL\)"):
        local.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_stops_cleanly_after_running_requests(number: int, repository: Path) -> None:
    command = CommandLine(repository, free_ports(), "--", "--id=throw-away")
    assert any("echo" in line and "ready after" in line for line in command.wait_for("Ready"))
    assert requests.get(f"http://{command.url}/v2", timeout=60).json()["name"] == "throw-away"
    processes = command.tree()
    assert len(processes) == 2

    answers: list[list[float]] = []
    running = threading.Thread(target=lambda: answers.append(ask_echo(command.url, 2)))
    running.start()
    command.wait_until_asked()
    command.process.send_signal(number)
    code, stdout, stderr = command.finish()
    running.join()
    assert (code, stderr) == (0, "")
    assert "Stopped." in stdout
    assert answers == [[2.0]]
    assert_nothing_left(processes, f"tiny_sd_{command.process.pid}_")


def test_a_second_signal_stops_at_once(repository: Path) -> None:
    command = CommandLine(repository, free_ports(), "--exit-timeout=300")  # longer than finish() waits
    command.wait_for("Ready")
    processes = command.tree()
    # A client that stays connected keeps Triton from stopping by itself.
    with socket.create_connection(("127.0.0.1", command.ports.http)):
        command.process.send_signal(signal.SIGINT)
        command.wait_for("Stopping")
        command.process.send_signal(signal.SIGINT)
        code, stdout, _ = command.finish()
    assert (code, stdout) == (130, "")
    assert_nothing_left(processes, f"tiny_sd_{command.process.pid}_")


def test_triton_does_not_outlive_a_killed_command(repository: Path) -> None:
    command = CommandLine(repository, free_ports())
    command.wait_for("Ready")
    processes = command.tree()
    command.process.kill()
    command.finish()
    assert_nothing_left(processes, f"tiny_sd_{command.process.pid}_")


def test_the_command_reports_a_broken_model_and_fails(repository: Path) -> None:
    add_model(repository, "broken", 'raise RuntimeError("no weights here")')
    code, _, stderr = CommandLine(repository, free_ports()).finish()
    assert code == 1
    assert stderr.startswith("error: Triton stopped while it started")
    assert "broken: RuntimeError: no weights here" in stderr
    assert "Traceback" not in stderr


def test_the_command_reports_a_busy_port_and_fails(repository: Path) -> None:
    ports = free_ports()
    with socket.create_server(("127.0.0.1", ports.http)):
        code, _, stderr = CommandLine(repository, ports).finish()
    assert code == 1
    assert stderr.startswith(f"error: the http port {ports.http} on 127.0.0.1 is already in use")


def test_the_command_reports_a_triton_that_dies(repository: Path) -> None:
    command = CommandLine(repository, free_ports())
    command.wait_for("Ready")
    processes = command.tree()
    processes[0].kill()
    code, _, stderr = command.finish()
    assert code == 1
    assert stderr.startswith("error: Triton stopped while serving (killed by SIGKILL)")
    assert_nothing_left(processes, f"tiny_sd_{command.process.pid}_")


def test_the_command_names_an_option_that_triton_does_not_know(repository: Path) -> None:
    code, _, stderr = CommandLine(repository, free_ports(), "--", "--no-such-option=1").finish()
    assert code == 1
    assert "unrecognized option '--no-such-option=1'" in stderr


def test_the_command_reports_a_log_that_cannot_be_written(repository: Path) -> None:
    path = repository / "echo" / "config.pbtxt" / "triton.log"
    code, _, stderr = CommandLine(repository, free_ports(), f"--log={path}").finish()
    assert code == 1
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr


def test_verbose_shows_tritons_own_log(repository: Path) -> None:
    command = CommandLine(repository, free_ports(), "--verbose")
    command.wait_for("successfully loaded 'echo'")
    command.wait_for("Ready")
    command.process.terminate()
    code, stdout, _ = command.finish()
    assert code == 0
    assert stdout.endswith("Stopped.\n")
