"""One Triton server process with its models' stubs: started, watched until ready, stopped without leftovers."""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import psutil

from local_server.errors import ModelDied, NotReady, ServeError, ServerDied
from local_server.install import ROOT, find_triton
from local_server.log import LoadingModels, LogFile, ModelProgress, failures, last_errors
from local_server.ports import Ports, check_ports, free_ports

OnProgress = Callable[[ModelProgress], None]
OnLine = Callable[[str], None]

ADMIN_KEY = "TINY_SD_ADMIN_KEY"
"""The variable with the value that Triton's APIs for operators ask for; without it nobody knows the value."""
_POLL_S = 0.1
_SHARED_MEMORY = Path("/dev/shm")
_CLOSED = "shared-memory,model-repository,logging,trace"
"""Triton's APIs for operators. By themselves they need no key: whoever reaches a port could read other callers' shared
memory, or change what is served and logged. They want a header: `admin-key`, or `triton-grpc-protocol-admin-key`."""
_STREAM_THREADS = 256
"""The Python backend waits for a model's calls of other models in threads, 32 of them unless it is told otherwise; each
stream holds one. With fewer than streams in flight, further ones would wait unseen instead of being refused."""


class LocalServer:
    """A Triton server on this machine, for as long as a `with` block or from `start()` to `stop()`.

    `env` comes on top of this process's environment. `extra_args` go to tritonserver unchanged, after ours, so that
    they win. Without `ports` three free ones are taken. `log_path` is overwritten at every start. A stop lets
    requests in flight finish for up to `exit_timeout_s` seconds; a start gives up after `ready_timeout_s` seconds.
    """

    def __init__(
        self,
        *,
        repository: Path = ROOT / "model_repository",
        ports: Ports | None = None,
        host: str = "127.0.0.1",
        env: Mapping[str, str] | None = None,
        extra_args: Sequence[str] = (),
        log_path: Path | None = None,
        exit_timeout_s: int = 30,
        ready_timeout_s: float = 600,
    ) -> None:
        self.repository = repository
        self.ports = ports or free_ports(host)
        self.host = host
        self.log_path = log_path or ROOT / ".cache" / "triton" / f"{self.ports.http}.log"
        self._env = dict(env or {})
        self._extra_args = tuple(extra_args)
        self._exit_timeout_s = exit_timeout_s
        self._admin_key = self._env.get(ADMIN_KEY) or os.environ.get(ADMIN_KEY) or secrets.token_hex(16)
        self._ready_timeout_s = ready_timeout_s
        # Of the name of everything that this server keeps on tmpfs, so that nothing can be left behind.
        self.shared_memory_prefix = f"tiny_sd_{os.getpid()}_{uuid.uuid4().hex[:8]}_"
        self._jobs = _SHARED_MEMORY / f"{self.shared_memory_prefix}jobs"
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._log = LogFile(self.log_path)
        self._ready = False
        self._models: dict[psutil.Process, str] = {}

    @property
    def http_url(self) -> str:
        """`host:port` of the HTTP endpoint, as Triton's clients take it."""
        return self._url(self.ports.http)

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC endpoint."""
        return self._url(self.ports.grpc)

    @property
    def metrics_url(self) -> str:
        """`host:port` of the Prometheus endpoint; the path is /metrics."""
        return self._url(self.ports.metrics)

    @property
    def pid(self) -> int:
        """Process id of tritonserver. Raises ServeError unless the server was started."""
        return self._running().pid

    def process_tree(self) -> list[psutil.Process]:
        """The server and its models' stub processes; empty when it does not run."""
        with suppress(psutil.NoSuchProcess, ServeError):
            server = psutil.Process(self.pid)
            return [server, *server.children(recursive=True)]
        return []

    def start(self, on_progress: OnProgress | None = None, on_line: OnLine | None = None) -> None:
        """Start Triton and return once it is ready for requests; nothing is left behind when it fails.

        `on_progress` hears of every model that starts loading, gets ready or fails; `on_line` of every line logged.
        Raises BusyPort, NoTriton, NoStub, NoSharedPython, ServerDied or NotReady.
        """
        if self._process:
            raise ServeError("this server was already started")
        if not self.repository.is_dir():
            raise ServeError(f"{self.repository}: no such model repository")
        check_ports(self.host, self.ports)
        try:
            self._launch()
            self._wait_until_ready(on_progress, on_line)
        except BaseException:
            self.stop()
            raise

    def wait(self, on_line: OnLine | None = None) -> NoReturn:
        """Watch a started server; raises ServerDied when it stops by itself, and never returns."""
        while True:
            self.check(on_line)
            time.sleep(_POLL_S)

    def check(self, on_line: OnLine | None = None) -> None:
        """Raise ServerDied if a started server has stopped by itself."""
        process = self._running()
        ended = process.poll() is not None  # asked before the log is read, so that its last lines are seen
        self._read_log(on_line)
        if ended:
            raise self._died(process.returncode, "while serving", last_errors(self._log.recent))

    def check_models(self) -> None:
        """Raise ModelDied if the process of a model has ended since the server got ready."""
        for process, model in self._models.items():
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            raise ModelDied(f"the process of the model {model} has ended; see {self.log_path}")

    def stop(self) -> None:
        """Let requests in flight finish, then end every process and remove what they left. Safe to call again.

        Interrupted by an exception (a second Ctrl-C), it stops at once.
        """
        try:
            # Before it is ready there is nothing to finish, and Triton's own shutdown is not in place yet.
            if self._process and self._ready:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    # Triton counts the same seconds; a little more lets it unload its models.
                    self._process.wait(self._exit_timeout_s + 10)
        finally:
            self.kill()

    def kill(self) -> None:
        """End every process of the server now and remove what they left; harmless when nothing runs."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process, self._ready = None, False
        shutil.rmtree(self._jobs, ignore_errors=True)
        for region in _SHARED_MEMORY.glob(f"{self.shared_memory_prefix}*"):
            region.unlink(missing_ok=True)
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None

    def __enter__(self) -> LocalServer:
        """Start and wait until ready."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def command(self, binary: Path, flags: Sequence[str] = ()) -> list[str]:
        """The command line of the server; `flags` are those the installed Triton cannot do without."""
        return [
            str(binary),
            f"--model-repository={self.repository}",
            # Completing what is complete would start every stage twice.
            "--disable-auto-complete-config",
            *flags,
            *(f"--{name}-address={self.host}" for name in ("http", "grpc", "metrics")),
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory_prefix}",
            f"--backend-config=python,thread-pool-size={_STREAM_THREADS}",
            f"--exit-timeout-secs={self._exit_timeout_s}",
            f"--grpc-restricted-protocol={_CLOSED}:admin-key={self._admin_key}",
            f"--http-restricted-api={_CLOSED}:admin-key={self._admin_key}",
            *([] if has_gpu() else ["--allow-gpu-metrics=false"]),
            *self._extra_args,
        ]

    def _url(self, port: int) -> str:
        # A server on every address is reached on this machine's own.
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{port}"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServeError("this server was not started")
        return self._process

    def _launch(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="tiny-sd-triton-"))
        triton = find_triton(self._directory)
        # Several stages compute at once on the same cores. OpenMP threads that spin while they wait keep the others
        # from getting on: a picture of 0.4 s was seen to take 26 s. Threads that sleep only cost their wake-ups.
        env = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        env |= {"TINY_SD_JOBS_DIR": str(self._jobs), **self._env}
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                dying_with_parent(self.command(triton.binary, triton.flags)),
                env=triton.environment(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only us, and the stubs are one group
            )
        self._log = LogFile(self.log_path)

    def _wait_until_ready(self, on_progress: OnProgress | None, on_line: OnLine | None) -> None:
        process, models = self._running(), LoadingModels()
        deadline = time.monotonic() + self._ready_timeout_s
        while not self._ready:
            # Asked before the log is read, so that its last lines are seen.
            ended, ready = process.poll() is not None, self._answers()
            for line in self._read_log(on_line):
                if (news := models.observe(line, time.monotonic())) and on_progress:
                    on_progress(news)
            if ended:
                errors = failures(self._log.recent) or last_errors(self._log.recent)
                raise self._died(process.returncode, "while it started", errors)
            if not ready and time.monotonic() > deadline:
                raise self._late(models.names)
            self._ready = ready
            if not ready:
                time.sleep(_POLL_S)
        self._models = {process: name for process in self.process_tree() if (name := _model_of(process))}

    def _read_log(self, on_line: OnLine | None) -> list[str]:
        lines = self._log.new_lines()
        if on_line:
            for line in lines:
                on_line(line)
        return lines

    def _answers(self) -> bool:
        # Plain http.client, because a proxy of the environment must not get in between.
        connection = http.client.HTTPConnection(self.http_url, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _died(self, code: int, when: str, errors: list[str]) -> ServerDied:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return ServerDied(self._report(f"Triton stopped {when} ({how})", errors))

    def _late(self, loading: list[str]) -> NotReady:
        what = f"still loading {', '.join(loading)}" if loading else "no model is loading"
        headline = f"Triton was not ready after {self._ready_timeout_s:g} s ({what}); allow more with --ready-timeout"
        return NotReady(self._report(headline, failures(self._log.recent)))

    def _report(self, headline: str, errors: list[str]) -> str:
        details = [f"  {line}" for error in errors for line in error.splitlines()]
        return "\n".join([headline, *details, f"  its log: {self.log_path}"])


def _model_of(process: psutil.Process) -> str | None:
    """The model whose stub this is: its command line holds <repository>/<model>/<version>/model.py."""
    with suppress(psutil.NoSuchProcess):
        for argument in process.cmdline():
            if argument.endswith("/model.py"):
                return Path(argument).parts[-3]
    return None


def has_gpu() -> bool:
    """Whether NVIDIA's driver shows a GPU; asked without loading CUDA."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """The command, so that it gets a SIGTERM when this process ends in any way, kill -9 included.

    By util-linux's setpriv: what Popen runs between fork and exec would run beside gRPC's threads, which gRPC brings
    back in a forked child, and which abort it as soon as Popen closes their files.

    Linux ties this to the thread that starts the child, so a thread that may end before the process cannot use it.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return list(command)
    return [setpriv, "--pdeathsig", "TERM", *command]
