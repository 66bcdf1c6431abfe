"""The command line, with a client that is none: what is asked for, what is written, what is told."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny_sd_client
from tiny_sd_client.command.main import main
from tiny_sd_client.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    ServerFault,
    TinySDError,
    Unavailable,
    UnknownJob,
)
from tiny_sd_client.parameters import ImageFormat, InvalidParameter, Parameters, allowed_values, parse
from tiny_sd_client.pictures import read_parameters
from tiny_sd_client.results import Generation, JobStatus, Progress, ServerStatus, Stage, Timings
from tiny_sd_engine.images import encode, image_parameters

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "\x1b]0;gone\x07\x9b2J\u202eevil"
HARMLESS = r"\x1b]0;gone\x07\x9b2J\u202eevil"
READY = ServerStatus(ready=True, version="2.51.0", in_flight=1, max_in_flight=32, jobs=())


@dataclass
class FakeServer:
    """In the place of a client and its server: makes one-coloured pictures, and fails where it is told to."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    client: dict[str, Any] = field(default_factory=dict)
    failure: BaseException | None = None
    fails_after: int = 0
    state: ServerStatus = READY
    flying: list[JobStatus] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    open: int = 0
    concurrency: int = 0

    def connect(self, url: str, **settings: Any) -> FakeServer:
        self.client = {"url": url, **settings}
        return self

    def __enter__(self) -> FakeServer:
        self.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.open -= 1

    def stream(self, **values: Any) -> Generator[Progress | Generation, None, None]:
        self.open += 1
        try:
            yield Progress("id", Stage.DENOISING, 1, 20, 0.5, 9.5)
            yield self.generation(values)
        finally:
            self.open -= 1

    def generate_many(
        self, prompts: Iterable[Mapping[str, object]], *, concurrency: int
    ) -> Generator[Generation, None, None]:
        self.concurrency = concurrency
        self.open += 1
        try:
            for prompt in prompts:
                yield self.generation(dict(prompt))
        finally:
            self.open -= 1

    def generation(self, values: dict[str, Any]) -> Generation:
        if self.failure and len(self.asked) == self.fails_after:
            raise self.failure
        self.asked.append(values)
        parameters = parse({name: values[name] for name in values if name != "preview_every"}, sizes=None)
        if parameters.seed < 0:
            parameters = parameters.model_copy(update={"seed": 42})
        files = [
            encode(
                np.full((parameters.img_height // 8, parameters.img_width // 8, 3), 80 * i, np.uint8),
                parameters.image_format,
                image_parameters(parameters.picture(), i),
            )
            for i in range(parameters.samples)
        ]
        seeds = tuple(parameters.seed + i for i in range(parameters.samples))
        return Generation(f"job-{len(self.asked)}", tuple(files), seeds, parameters, Timings(1.25, 1.5))

    def status(self) -> ServerStatus:
        return self.state

    def jobs(self) -> list[JobStatus]:
        return self.flying

    def cancel(self, job_id: str) -> None:
        if self.failure:
            raise self.failure
        if job_id == "gone":
            raise UnknownJob("no generation in flight has this id; it has ended or never was", "gone")
        self.cancelled.append(job_id)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServer:
    """What every command in these tests speaks to, in an empty folder."""
    server = FakeServer()
    monkeypatch.setitem(vars(tiny_sd_client), "Client", server.connect)
    monkeypatch.delenv("TINY_SD_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return server


@dataclass
class Told:
    """What a command told."""

    code: int
    out: str
    err: str

    @property
    def results(self) -> list[Any]:
        """Its lines on stdout, from JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


class Tell:
    """Runs the command; picks up what it tells."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Told:
        code = main([str(argument) for argument in arguments])
        return Told(code, *self._capsys.readouterr())


@pytest.fixture
def tiny_sd(capsys: pytest.CaptureFixture[str]) -> Tell:
    return Tell(capsys)


def help_of(*command: str) -> str:
    """Its help, each run of blanks one space, as the width of the terminal does not matter."""
    arguments = [sys.executable, "-m", "tiny_sd_client", *command, "--help"]
    done = subprocess.run(arguments, cwd=ROOT / "client", capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


# What may be typed


def test_the_help_tells_every_parameter_with_what_is_allowed_and_its_default() -> None:
    text = help_of("generate")
    for name, definition in Parameters.model_fields.items():
        if name not in ("prompt", "base64"):
            assert allowed_values(name) in text
            assert str(definition.default) in text
            assert str(definition.description).split(";")[0].removesuffix(" in pixels.").lower() in text.lower()


@pytest.mark.parametrize("command", ["generate", "show", "status", "jobs", "cancel"])
def test_every_help_tells_the_exit_codes(command: str) -> None:
    text = help_of(command)
    for line in (
        "0 done",
        "1 nobody",
        "2 wrong usage",
        "3 the server is busy",
        "4 the timeout",
        "5 the",
        "130 ",
    ):
        assert line in text
    assert command in help_of()


def test_only_what_was_given_is_sent(tiny_sd: Tell, server: FakeServer) -> None:
    assert tiny_sd("generate", "a cat") == Told(0, "42.jpg\n", "")
    assert server.asked == [{"prompt": "a cat", "preview_every": 0}]
    assert server.client == {
        "url": "grpc://localhost:8001",
        "headers": {},
        "tls": None,
        "timeout": None,
        "patience": 60.0,
    }
    assert server.open == 0


def test_every_parameter_can_be_given(tiny_sd: Tell, server: FakeServer) -> None:
    options = "-n 2 --steps 25 --scheduler euler_a --guidance 9 --size 768x512 --seed 7 --negative dog --format webp"
    tiny_sd("generate", "a cat", *options.split())
    assert server.asked == [
        {
            "prompt": "a cat",
            "samples": 2,
            "num_inference_steps": 25,
            "scheduler": "euler_a",
            "guidance_scale": 9.0,
            "img_width": 768,
            "img_height": 512,
            "seed": 7,
            "negative_prompt": "dog",
            "image_format": "webp",
            "preview_every": 0,
        }
    ]
    assert names() == ["7.webp", "8.webp"]
    assert set(Parameters.model_fields) - set(server.asked[0]) == {"base64"}


@pytest.mark.parametrize(("size", "width", "height"), [("768x512", 768, 512), ("1024", 1024, 1024), ("96X64", 96, 64)])
def test_a_size_is_width_and_height_or_one_number_for_both(
    size: str, width: int, height: int, tiny_sd: Tell, server: FakeServer
) -> None:
    assert tiny_sd("generate", "a cat", "--size", size).code == 0
    assert (server.asked[0]["img_width"], server.asked[0]["img_height"]) == (width, height)


def test_the_connection_is_as_the_options_say(tiny_sd: Tell, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "pem").touch()
    options = "--url grpcs://host:1 --ca pem --cert pem --key pem --timeout 2.5 --patience 0"
    told = tiny_sd("generate", "a cat", *options.split(), "--header", "authorization: Bearer a:b", "--header", "x:")
    assert told.code == 0
    assert server.client == {
        "url": "grpcs://host:1",
        "headers": {"authorization": "Bearer a:b", "x": ""},
        "tls": tiny_sd_client.TLS(ca=Path("pem"), certificate=Path("pem"), key=Path("pem")),
        "timeout": 2.5,
        "patience": 0.0,
    }


def test_the_url_may_come_from_the_environment(
    tiny_sd: Tell, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_SD_URL", "http://there:8000")
    tiny_sd("status")
    assert server.client["url"] == "http://there:8000"
    tiny_sd("status", "--url", "http://here")
    assert server.client["url"] == "http://here"


def test_an_unusable_connection_is_wrong_usage(tiny_sd: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert tiny_sd("status", "--url", "ftp://x").code == 2
    told = tiny_sd("status", "--url", "grpcs://localhost:1", "--ca", "missing.pem")
    assert told == Told(2, "", "tiny-sd: TLS: no such file: missing.pem\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "the following arguments are required: COMMAND; see tiny-sd --help"),
        (["paint"], "argument COMMAND: invalid choice: 'paint'"),
        (["generate"], "a prompt, --file or --like is needed; see tiny-sd generate --help"),
        (["generate", "a cat", "--file", "p.txt"], "a prompt and --file exclude each other"),
        (["generate", "a", "cat"], "unrecognized arguments: cat; see tiny-sd"),
        (["generate", "a cat", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["generate", "a cat", "--step", "20"], "unrecognized arguments: --step 20"),
        (["generate", "a cat", "--size", "512*512"], "argument --size: got '512*512'; allowed: WIDTHxHEIGHT or one"),
        (["generate", "a cat", "--size", "x512"], "argument --size: got 'x512'; allowed: WIDTHxHEIGHT or one"),
        (["generate", "a cat", "--timeout", "0"], "argument --timeout: got '0'; allowed: a number of at least 0.001"),
        (["generate", "a cat", "--patience", "nan"], "argument --patience: got 'nan'; allowed: a number of at least 0"),
        (["generate", "a cat", "--concurrency", "0"], "argument --concurrency: got '0'; allowed: an integer from 1 to"),
        (["generate", "a cat", "--header", "x"], "argument --header: allowed: NAME:VALUE"),
        (["generate", "a cat", "--header", "a b:c"], "argument --header: allowed: NAME:VALUE"),
        (["generate", "a cat", "--header", "a:b\nc"], "argument --header: allowed: NAME:VALUE"),
        (["generate", "--grid", "a cat"], "argument --grid: got 'a cat'; allowed: a file in .jpg, .jpeg,"),
        (["generate", "a cat", "--out", "cat.gif"], "--out: got 'cat.gif'; allowed: a file in .jpg, .jpeg, .png"),
        (["generate", "a cat", "--out", "a.jpg", "--format", "png"], "the file of --out is a jpeg, but png is"),
        (["generate", "a cat", "--out", "-", "-n", "2"], "--out -: allowed: one picture, without --json and --grid"),
        (["generate", "a cat", "--out", "-", "--json"], "--out -: allowed: one picture, without --json and --grid"),
        (["generate", "a cat", "--out", "-", "--grid"], "--out -: allowed: one picture, without --json and --grid"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_in_one_line_and_asks_nothing(
    arguments: list[str], problem: str, tiny_sd: Tell, server: FakeServer
) -> None:
    told = tiny_sd(*arguments)
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert problem in told.err
    assert server.asked == []
    assert names() == []


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--steps", "300", "--steps (num_inference_steps): got 300; allowed: an integer from 20 to 100"),
        ("--guidance", "nan", "--guidance (guidance_scale): got nan; allowed: a number from 0.1 to 25.0"),
        ("-n", "5", "--samples (samples): got 5; allowed: an integer from 1 to 4"),
        ("--format", "gif", "--format (image_format): got 'gif'; allowed: jpeg, png, webp"),
        ("--negative", "\x1b", "--negative (negative_prompt): got '\\x1b'; allowed: text of at most 4000"),
    ],
)
def test_an_invalid_parameter_is_told_with_its_option_and_what_is_allowed(
    option: str, value: str, problem: str, tiny_sd: Tell, server: FakeServer
) -> None:
    told = tiny_sd("generate", "a cat", option, value)
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert told.err.startswith(f"tiny-sd: {problem}")
    assert server.asked == []


# Where pictures go


def test_pictures_are_never_overwritten_unless_that_is_asked_for(tiny_sd: Tell) -> None:
    Path("cat.jpg").write_text("mine")
    assert tiny_sd("generate", "a cat", "-n", "2", "--out", "cat.jpg").out == "cat-2.jpg\ncat-3.jpg\n"
    assert Path("cat.jpg").read_text() == "mine"
    assert tiny_sd("generate", "a cat", "-n", "2", "--out", "cat.jpg", "--overwrite").out == "cat.jpg\ncat-2.jpg\n"
    assert Path("cat.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_suffix_chooses_the_format_and_the_folder_is_made(tiny_sd: Tell) -> None:
    assert tiny_sd("generate", "a cat", "--out", "new/cat.png").out == "new/cat.png\n"
    assert Path("new/cat.png").read_bytes().startswith(b"\x89PNG")
    assert tiny_sd("generate", "a cat", "--out", "pictures", "--format", "jpg").out == "pictures/42.jpg\n"


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_made(tiny_sd: Tell, server: FakeServer) -> None:
    Path("file").touch()
    told = tiny_sd("generate", "a cat", "--out", "file/sub/")
    assert told == Told(1, "", "tiny-sd: file/sub: Not a directory\n")
    assert server.asked == []


def test_one_picture_can_go_to_stdout(capfdbinary: pytest.CaptureFixture[bytes], server: FakeServer) -> None:
    assert main(["generate", "a cat", "--out", "-"]) == 0
    assert read_parameters(capfdbinary.readouterr().out)["prompt"] == "a cat"
    assert names() == []


def test_a_picture_does_not_go_to_a_terminal(
    tiny_sd: Tell, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "stdout is a terminal" in tiny_sd("generate", "a cat", "--out", "-").err
    assert server.asked == []


def test_json_tells_one_object_for_each_generation(tiny_sd: Tell) -> None:
    told = tiny_sd("generate", "ein Kätzchen", "-n", "2", "--seed", "7", "--json")
    assert told.err == ""
    assert told.out.count("\n") == 1
    assert told.results == [
        {
            "job_id": "job-1",
            "files": ["7.jpg", "8.jpg"],
            "seeds": [7, 8],
            "parameters": parse({"prompt": "ein Kätzchen", "samples": 2, "seed": 7}).picture(),
            "seconds": {"server": 1.25, "total": 1.5},
        }
    ]


# From a picture, from a file, onto a sheet


def test_a_picture_is_made_again_from_its_own_parameters(tiny_sd: Tell) -> None:
    tiny_sd("generate", "a cat", "-n", "2", "--steps", "30", "--out", "cat.webp")
    told = tiny_sd("generate", "--like", "cat-2.webp")
    assert told == Told(0, "43.webp\n", "")
    assert Path("43.webp").read_bytes() != Path("cat.webp").read_bytes()
    # The fake's colour is that of the first sample; all that makes a picture is the same.
    assert read_parameters(Path("43.webp").read_bytes()) == read_parameters(Path("cat-2.webp").read_bytes())


def test_options_change_what_a_picture_says(tiny_sd: Tell) -> None:
    tiny_sd("generate", "a cat", "--steps", "30", "--guidance", "9", "--out", "cat.jpg")
    tiny_sd("generate", "a dog", "--like", "cat.jpg", "--steps", "40", "--out", "dog.png")
    before, after = (read_parameters(Path(name).read_bytes()) for name in ("cat.jpg", "dog.png"))
    assert after == {**before, "prompt": "a dog", "num_inference_steps": 40, "image_format": "png"}


def test_a_file_that_is_no_picture_cannot_be_made_again(tiny_sd: Tell, server: FakeServer) -> None:
    Path("cat.jpg").write_bytes(b"meow")
    told = tiny_sd("generate", "--like", "cat.jpg")
    assert told == Told(2, "", "tiny-sd: cat.jpg: is not a readable JPEG, PNG or WebP file\n")
    assert tiny_sd("generate", "--like", "dog.jpg") == Told(1, "", "tiny-sd: dog.jpg: No such file or directory\n")
    assert server.asked == []


def test_parameters_of_a_picture_are_checked_like_any_other(tiny_sd: Tell, server: FakeServer) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    Path("steps.png").write_bytes(encode(pixels, "png", {"prompt": "a cat", "num_inference_steps": 10**9}))
    Path("evil.png").write_bytes(encode(pixels, "png", {"prompt": "a cat", HOSTILE: 1}))
    told = tiny_sd("generate", "--like", "steps.png")
    assert (told.code, told.err[:62]) == (2, "tiny-sd: steps.png: --steps (num_inference_steps): got 1000000")
    told = tiny_sd("generate", "--like", "evil.png")
    assert (told.code, told.err.startswith(f"tiny-sd: evil.png: {HARMLESS}: unknown parameter")) == (2, True)
    tiny_sd("generate", "a cat", "--out", "good.png")
    assert tiny_sd("generate", "--like", "good.png", "--steps", "5").err.startswith("tiny-sd: --steps (num_inf")
    assert len(server.asked) == 1


def test_a_file_of_prompts_makes_numbered_pictures(tiny_sd: Tell, server: FakeServer) -> None:
    prompts = ["# animals", "a cat", '{"prompt": "a dog", "num_inference_steps": 40, "samples": 2}', *["a cow"] * 9]
    Path("prompts.txt").write_text("\n".join(prompts))
    told = tiny_sd("generate", "--file", "prompts.txt", "--steps", "30", "--out", "animals", "--concurrency", "3")
    assert told.out.splitlines()[:4] == [f"animals/{n}.jpg" for n in ("01-42", "02-42", "02-43", "03-42")]
    assert told.out.splitlines()[-1] == "animals/11-42.jpg"
    assert [asked["num_inference_steps"] for asked in server.asked] == [30, 40, *[30] * 9]
    assert server.concurrency == 3
    assert server.open == 0


def test_every_prompt_of_a_file_is_checked_before_the_first_is_made(tiny_sd: Tell, server: FakeServer) -> None:
    Path("prompts.txt").write_text('a cat\n{"prompt": "a dog", "num_inference_steps": 5}\n')
    told = tiny_sd("generate", "--file", "prompts.txt")
    assert told.code == 2
    assert told.err.startswith("tiny-sd: prompts.txt, line 2: --steps (num_inference_steps): got 5; allowed: ")
    Path("prompts.txt").write_text('{"seed": 5}\n')
    assert "prompts.txt, line 1: prompt: is required" in tiny_sd("generate", "--file", "prompts.txt").err
    assert server.asked == []


def test_a_file_of_one_prompt_makes_a_numbered_picture_too(tiny_sd: Tell) -> None:
    Path("prompts.txt").write_text("a cat\n")
    assert tiny_sd("generate", "--file", "prompts.txt").out == "1-42.jpg\n"


def test_what_was_made_before_a_failure_is_kept(tiny_sd: Tell, server: FakeServer) -> None:
    Path("prompts.txt").write_text("a cat\na dog\na cow\n")
    server.failure, server.fails_after = ServerFault("the denoiser failed"), 2
    told = tiny_sd("generate", "--file", "prompts.txt", "--out", "animals", "--grid")
    assert told == Told(1, "animals/1-42.jpg\nanimals/2-42.jpg\n", "tiny-sd: the denoiser failed\n")
    assert server.open == 0


def test_a_grid_shows_all_pictures_on_one_sheet(tiny_sd: Tell) -> None:
    Path("prompts.txt").write_text("a cat\na dog\n")
    told = tiny_sd("generate", "--file", "prompts.txt", "-n", "2", "--grid", "new/sheet.png", "--json")
    assert told.results[2] == {"sheet": "new/sheet.png"}
    with Image.open("new/sheet.png") as sheet:
        assert sheet.size == (2 * 64 + 3 * 8, 2 * 64 + 3 * 8)
        assert [sheet.getpixel(at)[0] for at in [(40, 40), (112, 40), (40, 112), (112, 112)]] == [0, 80, 0, 80]


def test_a_grid_without_a_name_stands_beside_the_pictures(tiny_sd: Tell) -> None:
    assert tiny_sd("generate", "a cat", "--out", "cats", "--grid").out == "cats/42.jpg\ncats/grid.jpg\n"
    assert tiny_sd("generate", "a cat", "--out", "cat.png", "--grid").out == "cat.png\ncat-grid.png\n"
    assert tiny_sd("generate", "a cat", "--grid", "--out", "cats").out == "cats/42-2.jpg\ncats/grid-2.jpg\n"


# What is told of failures


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("nobody there"), 1),
        (ServerFault("broken"), 1),
        (InvalidParameter("img_width", "got 300; allowed: 512, 768, 1024"), 2),
        (Busy("32 of 32 generations are in flight; come back in 3 s", 3.0, 32, 32), 3),
        (DeadlineExceeded("too late"), 4),
        (Cancelled("the generation was cancelled"), 5),
        (UnknownJob("no generation in flight has this id", "x"), 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_has_its_exit_code_and_one_line(
    error: TinySDError, code: int, tiny_sd: Tell, server: FakeServer
) -> None:
    server.failure = error
    told = tiny_sd("generate", "a cat")
    message = str(error).replace("img_width", "--size (img_width)")
    assert told == Told(code, "", f"tiny-sd: {message}\n")
    assert server.open == 0


def test_json_tells_an_error_as_an_object_on_stderr(tiny_sd: Tell, server: FakeServer) -> None:
    server.failure = Busy("32 of 32 generations are in flight; come back in 3 s", 3.0, 32, 32)
    told = tiny_sd("generate", "a cat", "--json")
    assert (told.code, told.out) == (3, "")
    assert json.loads(told.err) == {
        "error": "Busy",
        "message": "32 of 32 generations are in flight; come back in 3 s",
        "retry_after": 3.0,
        "in_flight": 32,
        "limit": 32,
    }
    told = tiny_sd("generate", "a cat", "--json", "--steps", "5")
    assert json.loads(told.err)["parameter"] == "num_inference_steps"
    assert json.loads(told.err)["allowed"] == "an integer from 20 to 100"
    assert json.loads(tiny_sd("generate", "--json", "--steps", "x").err)["error"] == "UsageError"


def test_an_interrupt_closes_the_stream_and_the_client(tiny_sd: Tell, server: FakeServer) -> None:
    server.failure = KeyboardInterrupt()
    assert tiny_sd("generate", "a cat") == Told(130, "", "tiny-sd: interrupted\n")
    assert server.open == 0


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["show", *["cat.jpg"] * 2000]])
def test_a_closed_pipe_is_no_error(arguments: list[str], tiny_sd: Tell, tmp_path: Path) -> None:
    tiny_sd("generate", "a cat", "--out", "cat.jpg")
    command = subprocess.Popen(
        [sys.executable, "-m", "tiny_sd_client", *arguments],
        env={"PYTHONPATH": str(ROOT / "client"), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout
    assert command.stderr
    command.stdout.close()
    assert (command.wait(timeout=300), command.stderr.read()) == (0, b"")
    command.stderr.close()


@pytest.mark.parametrize("arguments", [["generate", "a cat"], ["cancel", "some"]])
def test_what_a_server_says_never_acts_on_the_terminal(arguments: list[str], tiny_sd: Tell, server: FakeServer) -> None:
    server.failure = ServerFault(f"{HOSTILE}\nsecond line")
    assert tiny_sd(*arguments) == Told(1, "", f"tiny-sd: {HARMLESS}\\nsecond line\n")
    assert tiny_sd(*arguments, "--json").err.isascii()


# Looking at pictures and at the server


def test_show_prints_the_parameters_of_pictures(tiny_sd: Tell) -> None:
    tiny_sd("generate", "a cat\non a mat", "--seed", "7", "--out", "cat.png")
    told = tiny_sd("show", "cat.png")
    assert told.out.splitlines()[0] == "cat.png"
    assert "  prompt               a cat\\non a mat" in told.out.splitlines()
    assert "  seed                 7" in told.out.splitlines()
    assert tiny_sd("show", "cat.png", "--json").results == [
        {"file": "cat.png", "parameters": read_parameters(Path("cat.png").read_bytes())}
    ]


def test_show_reads_a_picture_from_stdin(tiny_sd: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(np.zeros((8, 8, 3), np.uint8), "png", {"prompt": "a cat"})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert tiny_sd("show", "-", "--json").results == [{"file": "-", "parameters": {"prompt": "a cat"}}]


def test_show_goes_on_after_a_file_that_tells_nothing(tiny_sd: Tell) -> None:
    Path("empty.jpg").touch()
    tiny_sd("generate", "a cat", "--out", "cat.jpg")
    told = tiny_sd("show", "missing.jpg", "empty.jpg", "cat.jpg")
    assert told.code == 1
    assert told.out.startswith("cat.jpg\n")
    assert told.err == (
        "tiny-sd: missing.jpg: No such file or directory\n"
        "tiny-sd: empty.jpg: is not a readable JPEG, PNG or WebP file\n"
    )


def test_parameters_inside_a_picture_never_act_on_the_terminal(tiny_sd: Tell) -> None:
    data = encode(np.zeros((8, 8, 3), np.uint8), "png", {"prompt": HOSTILE, HOSTILE: [HOSTILE]})
    Path("evil.png").write_bytes(data)
    out = tiny_sd("show", "evil.png").out
    assert f"  prompt               {HARMLESS}\n" in out
    assert f"  {HARMLESS}" in out.splitlines()[2]
    assert out.isascii()
    assert tiny_sd("show", "evil.png", "--json").out.isascii()


def test_status_tells_of_the_server(tiny_sd: Tell, server: FakeServer) -> None:
    assert tiny_sd("status") == Told(0, "ready      yes\nversion    2.51.0\nin flight  1 of 32\n", "")
    assert tiny_sd("status", "--json").results == [
        {"ready": True, "version": "2.51.0", "in_flight": 1, "max_in_flight": 32}
    ]
    server.state = ServerStatus(False, HOSTILE, 0, 0, ())
    assert tiny_sd("status") == Told(1, f"ready      no\nversion    {HARMLESS}\nin flight  0 of 0\n", "")


def test_jobs_are_listed_oldest_first(tiny_sd: Tell, server: FakeServer) -> None:
    assert tiny_sd("jobs").out == "ID  STAGE  STEP  SECONDS  LEFT\n"
    assert tiny_sd("jobs", "--json").out == ""
    server.flying = [
        JobStatus("a-long-id", Stage.DENOISING, 7, 20, 3.25, 6.04),
        JobStatus(HOSTILE, Stage.QUEUED, 0, 100, 0.01, None),
    ]
    assert tiny_sd("jobs").out.splitlines() == [
        f"{'ID':<{len(HARMLESS)}}  STAGE      STEP   SECONDS  LEFT",
        f"{'a-long-id':<{len(HARMLESS)}}  denoising  7/20   3.2      6.0",
        f"{HARMLESS}  queued     0/100  0.0",
    ]
    told = tiny_sd("jobs", "--json")
    assert told.results[0] == {
        "job_id": "a-long-id",
        "stage": "denoising",
        "step": 7,
        "steps": 20,
        "seconds": 3.25,
        "seconds_left": 6.04,
    }
    assert told.results[1]["seconds_left"] is None
    assert told.out.isascii()


def test_cancel_goes_on_after_an_id_that_is_not_in_flight(tiny_sd: Tell, server: FakeServer) -> None:
    told = tiny_sd("cancel", "one", "gone", "two")
    message = "tiny-sd: gone: no generation in flight has this id; it has ended or never was\n"
    assert told == Told(5, "one\ntwo\n", message)
    assert server.cancelled == ["one", "two"]
    told = tiny_sd("cancel", "gone", "three", "--json")
    assert told.results == [{"job_id": "three", "stage": "cancelling"}]
    assert json.loads(told.err)["job_id"] == "gone"


def test_the_default_format_is_that_of_the_definition(tiny_sd: Tell) -> None:
    tiny_sd("generate", "a cat")
    assert read_parameters(Path("42.jpg").read_bytes())["image_format"] == ImageFormat.JPEG
