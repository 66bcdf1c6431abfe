"""tools/bench.py for real: three contenders, one of them behind Triton."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from local_server.install import ROOT

NAMES = ["diffusers", "engine", "served"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/bench.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def test_three_contenders_make_the_same_picture_and_are_reported(checkpoint: Path, tmp_path: Path) -> None:
    stem = tmp_path / "report"
    options = [f"--checkpoint={checkpoint}", "--precision=fp32", "--repeats=1", "--size=128", "--device=CPU"]
    done = bench(*options, f"--report={stem}")
    assert done.returncode == 0, done.stderr
    report = stem.with_suffix(".md").read_text()
    assert done.stdout == report
    assert "Served and engine: equal to the byte in every round." in report
    # In float32, as the reference computes, no pixel is off by more than a step.
    assert any(f"difference of a pixel is {steps}/255" in report for steps in (0, 1))

    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    measured = json.loads(stem.with_suffix(".json").read_text())["measurements"]
    assert {name: len(seconds) for name, seconds in measured["seconds"].items()} == dict.fromkeys(NAMES, 1)
    models = ("jobs", "text_encoder", "tiny_sd_stream", "tokenizer", "unet", "vae_decoder")
    stubs = [f"served: stub {model}" for model in models]
    processes = [peak["process"] for peak in measured["peaks"]]
    assert sorted(processes) == sorted(["diffusers", "engine", "served: tritonserver", *stubs])
    assert all(peak["resident_bytes"] > 10 * 2**20 for peak in measured["peaks"])


@pytest.mark.long
def test_the_best_of_diffusers_and_openvino_make_pictures_too(checkpoint: Path) -> None:
    names = ["diffusers-best", *(["openvino"] if find_spec("openvino") else [])]
    options = [f"--checkpoint={checkpoint}", "--repeats=2", "--size=128", "--device=CPU"]
    done = bench(*options, f"--contenders={','.join([*names, 'engine'])}")
    assert done.returncode == 0, done.stderr
    for name in names:
        assert f"\n- {name}: " in done.stdout  # how it was set
        assert f"\n| speed-up: {name} / engine |" in done.stdout


@pytest.mark.long
def test_first_signs_come_in_order_alone_and_beside_long_generations(checkpoint: Path, tmp_path: Path) -> None:
    stem = tmp_path / "report"
    options = [f"--checkpoint={checkpoint}", "--repeats=2", "--device=CPU", "--scenario=first-signs"]
    done = bench(*options, f"--report={stem}")
    assert done.returncode == 0, done.stderr
    measured = json.loads(stem.with_suffix(".json").read_text())["measurements"]["seconds"]
    assert list(measured) == ["alone", "beside 3 long ones"]
    for signs in measured.values():
        for event, step, preview, picture in zip(*signs.values(), strict=True):
            assert 0 < event <= step <= preview < picture


@pytest.mark.long
def test_the_gateway_is_compared_with_triton_itself(checkpoint: Path, tmp_path: Path) -> None:
    stem = tmp_path / "report"
    options = [f"--checkpoint={checkpoint}", "--repeats=2", "--size=128", "--device=CPU", "--scenario=gateway"]
    done = bench(*options, f"--report={stem}")
    assert done.returncode == 0, done.stderr
    assert "Both give the same file for the same request." in done.stdout
    measured = json.loads(stem.with_suffix(".json").read_text())["measurements"]
    assert {name: len(seconds) for name, seconds in measured["seconds"].items()} == {"Triton": 2, "gateway": 2}
    assert {"Triton: tritonserver", "gateway"} <= {peak["process"] for peak in measured["peaks"]}


@pytest.mark.long
def test_a_server_is_ready_before_its_first_picture_however_it_is_started(checkpoint: Path, tmp_path: Path) -> None:
    stem = tmp_path / "report"
    options = [f"--checkpoint={checkpoint}", "--repeats=2", "--size=128", "--device=CPU", "--scenario=start"]
    done = bench(*options, f"--report={stem}")
    assert done.returncode == 0, done.stderr
    measured = json.loads(stem.with_suffix(".json").read_text())["measurements"]["seconds"]
    assert list(measured) == ["as it comes", "configurations completed"]
    for signs in measured.values():
        assert len(signs["ready"]) == 2
        assert all(0 < ready < picture for ready, picture in zip(*signs.values(), strict=True))


@pytest.mark.long
def test_both_modes_get_the_same_arrivals_from_locust(checkpoint: Path, tmp_path: Path) -> None:
    stem = tmp_path / "report"
    options = [f"--checkpoint={checkpoint}", "--repeats=1", "--size=128", "--device=CPU", "--scenario=trace"]
    done = bench(*options, "--run-seconds=8", f"--report={stem}")
    assert done.returncode == 0, done.stderr
    runs = json.loads(stem.with_suffix(".json").read_text())["measurements"]["requests"]
    (in_flight,), (plain,) = runs["in flight"], runs["plain"]
    assert abs(len(in_flight) - len(plain)) <= 1  # one may be due at the very end
    both = list(zip(in_flight, plain, strict=False))
    assert len(both) > 1
    for one, other in both:
        assert (one["kind"], float(one["due_s"])) == (other["kind"], pytest.approx(float(other["due_s"]), abs=0.2))


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = bench(f"--checkpoint={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
