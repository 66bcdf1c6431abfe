"""The command ``tiny-sd`` as people run it: a process of its own, against a real server."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from callers import change_of, grpc, job_ids
from PIL import Image
from serving_server import SMALL_SIZES, serve

from local_server import LocalServer
from local_server.install import ROOT
from tiny_sd_client.pictures import read_parameters

LONG = ["a long walk", "--steps", "100", "--scheduler", "Heun", "-n", "4"]
"""Takes far longer than anything that these tests do to it."""
EVALUATIONS = 4 * 199
"""Of the U-Net, if nobody stops it."""


@dataclass
class Command:
    """Runs ``tiny-sd`` in a folder, for the server at ``url``."""

    folder: Path
    url: str

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        with self.started(*arguments, stdin=subprocess.PIPE) as process:
            out, err = process.communicate(stdin, timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, out.decode(), err.decode())

    @contextmanager
    def started(self, *arguments: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(
            [sys.executable, "-m", "tiny_sd_client", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "client"), "TINY_SD_URL": self.url},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def made(self, *arguments: str) -> list[dict[str, Any]]:
        """What ``generate --json`` tells."""
        done = self("generate", *arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(params=["grpc", "http"])
def tiny_sd(request: pytest.FixtureRequest, server: LocalServer, tmp_path: Path) -> Command:
    return over_grpc(server, tmp_path) if request.param == "grpc" else Command(tmp_path, f"http://{server.http_url}")


def over_grpc(server: LocalServer, folder: Path) -> Command:
    return Command(folder, f"grpc://{server.grpc_url}")


def job_in_flight(server: LocalServer) -> str:
    """The id of the one generation that the server works on, as soon as there is one."""
    end = time.monotonic() + 60
    while not (ids := job_ids(server.http_url)):
        assert time.monotonic() < end, "no generation has begun"
        time.sleep(0.05)
    (only,) = ids
    return str(only)


def wait_until_idle(server: LocalServer) -> None:
    end = time.monotonic() + 60
    while ids := job_ids(server.http_url):
        assert time.monotonic() < end, f"still in flight: {ids}"
        time.sleep(0.05)


@contextmanager
def slow(server: LocalServer, tiny_sd: Command) -> Iterator[None]:
    """Long generations are in flight, so many that a step of another one takes half a second and more.

    So it is seen whether somebody waits for a first step or for the last.
    """
    many = 28
    (tiny_sd.folder / "many.txt").write_text("a long walk\n" * many)
    with tiny_sd.started("generate", "--file", "many.txt", "--concurrency", str(many), *LONG[1:]):
        end = time.monotonic() + 60
        while len(job_ids(server.http_url)) < many:
            assert time.monotonic() < end
            time.sleep(0.05)
        yield
    wait_until_idle(server)


@contextmanager
def stopped_early(server: LocalServer) -> Iterator[None]:
    """The server does not work to the end of what is begun and stopped in the block."""
    with change_of(server.metrics_url) as change:
        yield
        wait_until_idle(server)
    assert change["tiny_sd_unet_steps_total:unet"] < EVALUATIONS / 2


def test_one_command_line_makes_a_picture(tiny_sd: Command) -> None:
    done = tiny_sd("generate", "a small red circle", "--seed", "7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "7.jpg\n", "")
    with Image.open(tiny_sd.folder / "7.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (512, 512))


def test_the_files_are_those_of_the_server_with_every_parameter_as_asked_for(
    tiny_sd: Command, server: LocalServer
) -> None:
    options = (
        "-n 2 --steps 22 --scheduler euler_a --guidance 4.5 --size 768x512 --seed 9 --negative blurry --format png"
    )
    (made,) = tiny_sd.made("ein (roter:1.2) Kreis", *options.split())
    expected = grpc(
        server.grpc_url,
        prompt="ein (roter:1.2) Kreis",
        samples=2,
        num_inference_steps=22,
        scheduler="Euler a",
        guidance_scale=4.5,
        img_width=768,
        img_height=512,
        seed=9,
        negative_prompt="blurry",
        image_format="png",
    )
    assert made["parameters"] == expected.parameters
    assert made["seeds"] == expected.seeds == [9, 10]
    assert made["files"] == ["9.png", "10.png"]
    assert [(tiny_sd.folder / file).read_bytes() for file in made["files"]] == expected.images
    assert 0 < made["seconds"]["server"] <= made["seconds"]["total"]
    assert made["job_id"]


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_a_picture_is_made_again_byte_for_byte(image_format: str, server: LocalServer, tmp_path: Path) -> None:
    tiny_sd = over_grpc(server, tmp_path)
    (made,) = tiny_sd.made("ein Kätzchen, 日本語", "-n", "2", "--steps", "21", "--format", image_format)
    second = tmp_path / made["files"][1]
    redo = ["generate", "--like", second.name, "--out", "-"]
    with (tmp_path / "again").open("wb") as again, tiny_sd.started(*redo, stdout=again) as process:
        assert process.wait(timeout=120) == 0
    assert (tmp_path / "again").read_bytes() == second.read_bytes()


def test_a_picture_is_changed_by_options(server: LocalServer, tmp_path: Path) -> None:
    tiny_sd = over_grpc(server, tmp_path)
    tiny_sd.made("a red circle", "--seed", "5", "--out", "first.jpg")
    (made,) = tiny_sd.made("--like", "first.jpg", "--guidance", "3")
    before, after = (read_parameters((tmp_path / file).read_bytes()) for file in ("first.jpg", made["files"][0]))
    assert after == {**before, "guidance_scale": 3.0}


def test_many_prompts_make_numbered_files_and_a_sheet(tiny_sd: Command) -> None:
    lines = ["# two lines", "a cat", '{"prompt": "a dog", "samples": 2, "seed": 5}', ""]
    (tiny_sd.folder / "prompts.txt").write_text("\n".join(lines))
    done = tiny_sd("generate", "--file", "prompts.txt", "--seed", "1", "--out", "made", "--grid", "sheet.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["made/1-1.jpg", "made/2-5.jpg", "made/2-6.jpg", "sheet.png"]
    assert read_parameters((tiny_sd.folder / "made/2-6.jpg").read_bytes())["prompt"] == "a dog"
    with Image.open(tiny_sd.folder / "sheet.png") as sheet, Image.open(tiny_sd.folder / "made/1-1.jpg") as first:
        assert sheet.size == (2 * 512 + 3 * 8, 2 * 512 + 3 * 8)
        assert sheet.crop((8, 8, 520, 520)).tobytes() == first.convert("RGB").tobytes()


def test_prompts_may_come_from_stdin_and_whoever_reads_along_may_leave(server: LocalServer, tmp_path: Path) -> None:
    prompts = "".join(f"prompt {number}\n" for number in range(500)).encode()
    with over_grpc(server, tmp_path).started("generate", "--file", "-", "--json", stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(prompts)
        process.stdin.close()
        assert json.loads(process.stdout.readline())["parameters"]["prompt"] == "prompt 0"
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""
    assert len(list(tmp_path.iterdir())) < 100
    wait_until_idle(server)


def test_show_prints_what_a_picture_was_made_with(server: LocalServer, tmp_path: Path) -> None:
    tiny_sd = over_grpc(server, tmp_path)
    (made,) = tiny_sd.made("a red circle", "--out", "picture.webp")
    (shown,) = map(json.loads, tiny_sd("show", "picture.webp", "--json").stdout.splitlines())
    assert shown == {"file": "picture.webp", "parameters": made["parameters"]}
    assert f"  seed                 {made['seeds'][0]}\n" in tiny_sd("show", "picture.webp").stdout


def test_status_tells_that_the_server_is_ready(tiny_sd: Command) -> None:
    done = tiny_sd("status", "--json")
    state = json.loads(done.stdout)
    assert (done.returncode, state["ready"], state["in_flight"], state["max_in_flight"]) == (0, True, 0, 32)
    assert tiny_sd("status").stdout == f"ready      yes\nversion    {state['version']}\nin flight  0 of 32\n"


def test_a_generation_is_listed_and_cancelled_by_its_id(tiny_sd: Command, server: LocalServer) -> None:
    with stopped_early(server), tiny_sd.started("generate", *LONG, "--size", "1024") as process:
        job_id = job_in_flight(server)
        (job,) = map(json.loads, tiny_sd("jobs", "--json").stdout.splitlines())
        assert (job["job_id"], job["steps"]) == (job_id, 100)
        table = [line.split()[0] for line in tiny_sd("jobs").stdout.splitlines()]
        assert table == ["ID", job_id]
        assert json.loads(tiny_sd("status", "--json").stdout)["in_flight"] == 1

        cancelled = tiny_sd("cancel", job_id)
        assert (cancelled.returncode, cancelled.stdout, cancelled.stderr) == (0, f"{job_id}\n", "")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (5, b"", b"tiny-sd: the generation was cancelled\n")
    assert list(tiny_sd.folder.iterdir()) == []
    again = tiny_sd("cancel", job_id)
    assert again.returncode == 5
    assert again.stderr == f"tiny-sd: {job_id}: no generation in flight has this id; it has ended or never was\n"


def test_a_check_begins_a_picture_and_leaves_nothing_behind(tiny_sd: Command, server: LocalServer) -> None:
    with change_of(server.metrics_url) as change:
        with slow(server, tiny_sd):
            done = tiny_sd("check")
            assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")
        wait_until_idle(server)
    assert change["nv_inference_count_total:vae_decoder"] == 0


def test_a_whole_check_ends_its_picture(tiny_sd: Command, server: LocalServer) -> None:
    with change_of(server.metrics_url) as change:
        done = tiny_sd("check", "--whole")
        assert (done.returncode, done.stdout, done.stderr) == (0, "healthy\n", "")
    assert change["nv_inference_exec_count_total:text_encoder"] == 1, "no answer from the cache tells anything"
    assert change.once("nv_inference_count_total:vae_decoder", 1) == 1


def test_a_server_is_drained_when_nothing_is_in_flight(tiny_sd: Command, server: LocalServer) -> None:
    with tiny_sd.started("generate", *LONG) as process:
        job_in_flight(server)
        hurried = tiny_sd("drain", "--timeout", "0.1", "--json")
        assert (hurried.returncode, json.loads(hurried.stderr)["error"]) == (4, "DeadlineExceeded")
        drained = tiny_sd("drain")
        assert (drained.returncode, drained.stdout, drained.stderr) == (0, "drained\n", "")
        assert process.wait(60) == 0


@pytest.mark.parametrize("many", [False, True])
def test_an_interrupt_stops_the_server_as_well(many: bool, tiny_sd: Command, server: LocalServer) -> None:
    (tiny_sd.folder / "prompts.txt").write_text("a cat\na dog\n")
    wanted = ["--file", "prompts.txt", "--concurrency", "1", *LONG[1:]] if many else LONG
    with stopped_early(server), tiny_sd.started("generate", *wanted, "--size", "1024") as process:
        job_in_flight(server)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, b"", b"tiny-sd: interrupted\n")


def test_a_killed_command_leaves_no_work_behind(tiny_sd: Command, server: LocalServer) -> None:
    with stopped_early(server), tiny_sd.started("generate", *LONG, "--size", "1024"):
        job_in_flight(server)


@pytest.mark.parametrize(
    ("arguments", "code", "error", "message"),
    [
        (["--size", "300"], 2, "InvalidParameter", "--size (img_width): got 300; allowed: 512, 768, 1024"),
        (["--negative", "word " * 1500], 2, "InvalidParameter", "--negative (negative_prompt): "),
        ([*LONG[1:], "--timeout", "0.2"], 4, "DeadlineExceeded", "the "),
    ],
)
def test_what_the_server_refuses_has_its_exit_code(
    arguments: list[str], code: int, error: str, message: str, tiny_sd: Command, server: LocalServer
) -> None:
    with stopped_early(server):
        done = tiny_sd("generate", "a cat", *arguments, "--json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    told = json.loads(done.stderr)
    assert told["error"] == error
    assert told["message"].startswith(message)


@pytest.mark.parametrize("scheme", ["grpc", "grpcs", "http", "https"])
def test_a_server_that_is_not_there_is_told_in_one_line(scheme: str, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        tiny_sd = Command(tmp_path, f"{scheme}://127.0.0.1:{nobody.getsockname()[1]}")
        for arguments in (["generate", "a cat", "--patience", "0"], ["status"], ["jobs"], ["cancel", "x"]):
            done = tiny_sd(*arguments)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
            assert done.stderr.startswith("tiny-sd: ")


def test_a_wrong_server_is_told_in_one_line(server: LocalServer, tmp_path: Path) -> None:
    for url in (f"http://{server.metrics_url}", f"grpc://{server.http_url}", f"grpcs://{server.grpc_url}"):
        done = Command(tmp_path, url)("generate", "a cat", "--patience", "0")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_a_full_server_is_busy_for_the_impatient(narrow_server: LocalServer, tmp_path: Path) -> None:
    tiny_sd = over_grpc(narrow_server, tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n" * 4)
    with tiny_sd.started("generate", "--file", "prompts.txt", *LONG[1:]):
        end = time.monotonic() + 60
        while len(job_ids(narrow_server.http_url)) < 4:
            assert time.monotonic() < end
            time.sleep(0.05)
        done = tiny_sd("generate", "a dog", "--patience", "0", "--json")
        assert tiny_sd("check").stdout == "healthy\n"
    assert (done.returncode, done.stdout) == (3, "")
    told = json.loads(done.stderr)
    assert (told["error"], told["in_flight"], told["limit"]) == ("Busy", 4, 4)
    assert told["retry_after"] > 0
    wait_until_idle(narrow_server)


def test_a_check_notices_a_model_that_has_died(checkpoint: Path, tmp_path: Path) -> None:
    with serve(checkpoint, tmp_path / "log", SMALL_SIZES) as server:
        tiny_sd = over_grpc(server, tmp_path)
        kill_stub(server, "vae_decoder")
        with slow(server, tiny_sd):
            assert tiny_sd("check").returncode == 0  # it does not go so far
        whole = tiny_sd("check", "--whole")
        assert (whole.returncode, whole.stdout) == (1, "")
        kill_stub(server, "unet")
        assert tiny_sd("check").returncode == 1
        assert tiny_sd("status").returncode == 0, "Triton itself has not noticed"


def kill_stub(server: LocalServer, model: str) -> None:
    for process in server.process_tree():
        with suppress(psutil.ZombieProcess):  # Triton lets the dead lie for a while
            if any(f"/{model}/1/model.py" in part for part in process.cmdline()):
                process.kill()
                return
    raise AssertionError(f"no process of {model}")


def test_a_terminal_shows_the_steps_and_the_preview(tiny_sd: Command) -> None:
    terminal, end = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "client"),
        "TINY_SD_URL": tiny_sd.url,
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "COLUMNS": "80",
        "LINES": "24",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tiny_sd_client", "generate", "a cat", "--steps", "60", "-n", "2", "--out", "cat.jpg"],
        cwd=tiny_sd.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=end,
    )
    os.close(end)
    shown = io.BytesIO()
    while data := _read(terminal):
        shown.write(data)
    os.close(terminal)
    assert process.communicate(timeout=60)[0] == b"cat.jpg\ncat-2.jpg\n"
    assert process.returncode == 0
    text = shown.getvalue().decode()
    assert "denoising" in text
    assert "of 60" in text
    assert text.count("▀") >= 80 * 20, "at least one preview of two pictures side by side"
    assert text.rindex("\x1b[2K") > text.rindex("▀"), "the preview is wiped away at the end"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux tells so that the other end is closed
        return b""
