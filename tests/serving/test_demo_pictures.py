"""tools/demo.py on a real Triton."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from callers import change_of
from PIL import Image
from rich.console import Console

import demo
from local_server import LocalServer
from local_server.install import ROOT
from sheets import Cell, Paragraph, draw_sheet
from tiny_sd_client import Client
from tiny_sd_client.pictures import read_parameters

PROMPTS = ["a star", "a red sailing boat at sea", "two hearts"]


def test_the_sheet_shows_the_picture_of_each_prompt_and_they_are_made_together(
    server: LocalServer, tmp_path: Path
) -> None:
    console = Console(file=io.StringIO(), width=80)
    out = tmp_path / "sheet.png"
    with change_of(server.metrics_url) as change:
        demo.make_sheet(server.grpc_url, PROMPTS, 7, out, console)
    assert change["nv_inference_count_total:unet"] > change["nv_inference_exec_count_total:unet"]
    with Client(f"grpc://{server.grpc_url}") as client:
        alone = [client.generate(prompt, seed=7, image_format="png").images[0] for prompt in PROMPTS]
    cells = [Cell(picture, [Paragraph(prompt)]) for picture, prompt in zip(alone, PROMPTS, strict=True)]
    assert np.array_equal(Image.open(out), draw_sheet(cells, demo.LAYOUT))
    told = console.file.getvalue()
    for prompt in PROMPTS:
        assert re.search(rf"^ +\d+\.\d  {prompt}$", told, re.MULTILINE)
    assert re.search(rf"{out}.*\d+\.\d s: \d+\.\d s a picture; seed 7", told.replace("\n", ""))


def test_a_prompt_gets_its_picture_in_the_format_of_the_file(server: LocalServer, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    out = tmp_path / "picture.webp"
    demo.make_picture(server.grpc_url, "a star", 7, out, console)
    parameters = read_parameters(out.read_bytes())
    assert (parameters["prompt"], parameters["seed"], parameters["image_format"]) == ("a star", 7, "webp")
    with Client(f"grpc://{server.grpc_url}") as client:
        assert client.generate("a star", seed=7, image_format="webp").files[0] == out.read_bytes()


def test_the_command_starts_a_server_makes_the_sheet_and_leaves_nothing_running(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "sheet.jpg"
    command = subprocess.run(
        [sys.executable, "tools/demo.py", f"--out={out}"],
        cwd=ROOT,
        env={**os.environ, "TINY_SD_CHECKPOINT": str(checkpoint)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (command.returncode, command.stderr) == (0, "")
    lines = command.stdout.splitlines()
    assert lines[0] == f"Triton serves {checkpoint}"
    assert [line[10:] for line in lines[2:-1]] == list(demo.PROMPTS)
    assert lines[-1].startswith(f"Sheet     {out}  (all in ")
    assert "\x1b" not in command.stdout  # no bar without a terminal
    sheet = Image.open(out)
    side, gap = demo.LAYOUT.side, demo.LAYOUT.gap
    assert sheet.width == 4 * side + 5 * gap
    assert sheet.height > 3 * (side + gap)
