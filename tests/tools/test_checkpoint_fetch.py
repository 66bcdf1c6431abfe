"""tools/checkpoint.py fetch, from a hub on this machine that can fail as networks do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from hub import Hub, serve, sha256
from huggingface_hub import constants, file_download
from published import UNET, VAE, Touches
from running import Tool, names

from checkpoints.fetching import FetchError
from checkpoints.fetching import fetch as fetch_files
from checkpoints.manifest import Manifest
from local_server.install import ROOT

NAME = "segmind/tiny-sd"
NEEDED = [
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
]
PATIENT = {"HF_HUB_ETAG_TIMEOUT": "300", "HF_HUB_DOWNLOAD_TIMEOUT": "300"}
"""Settings of the library, which else asks again after ten seconds: this machine may be that slow."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub()) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library's cache, one for each test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, value in PATIENT.items():
        monkeypatch.setattr(constants, name, int(value))
    return tmp_path / "cache"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a checkpoint is to appear; nothing else is ever left beside it."""
    (tmp_path / "made").mkdir()
    return tmp_path / "made" / "tiny-sd"


@pytest.fixture
def fetch(tool: Tool, hub: Hub, cache: Path, out: Path) -> list[object]:
    """The command, short of its repository."""
    return ["fetch", "--endpoint", hub.url, "--out", out]


def manifest(out: Path) -> Manifest:
    return Manifest.model_validate_json((out / "manifest.json").read_bytes())


def test_a_repository_of_bin_files_is_fetched_converted_and_verified(
    tool: Tool, hub: Hub, bins: Path, fetch: list[object], out: Path
) -> None:
    commit = hub.publish(NAME, bins)
    output = tool.run(*fetch)
    assert f"{NAME} at {commit}: {len(NEEDED)} files" in output
    assert sorted(hub.asked_for()) == NEEDED
    found = manifest(out)
    assert (found.source.name, found.source.revision) == (f"{hub.url}/{NAME}", commit)
    assert found.licence == "creativeml-openrail-m"
    assert f"{hub.url}/{NAME}, revision {commit}" in (out / "NOTICE").read_text()
    for name, file in found.files.items():
        assert file.sha256 == sha256((out / name).read_bytes())
    assert found.files[f"{UNET}.safetensors"].made_from == {f"{UNET}.bin": sha256((bins / f"{UNET}.bin").read_bytes())}
    assert names(out.parent) == [out.name]
    tool.run("verify", out)


def test_a_repository_of_safetensors_is_fetched_without_what_is_not_needed(
    tool: Tool, hub: Hub, sd15: Path, fetch: list[object], out: Path
) -> None:
    hub.publish("runway/sd15", sd15)
    tool.run(*fetch, "runway/sd15", "--precision", "fp32")
    weights = [name for name in hub.asked_for() if name.endswith((".bin", ".safetensors", ".ckpt"))]
    assert sorted(weights) == [f"{stem}.safetensors" for stem in ("text_encoder/model", UNET, VAE)]
    assert not any("safety" in name or "extractor" in name for name in hub.asked_for())
    assert "LICENSE.md" in names(out)
    assert (out / f"{UNET}.safetensors").read_bytes() == (sd15 / f"{UNET}.safetensors").read_bytes()


@pytest.mark.parametrize("by", ["tag", "commit"])
def test_another_revision_than_main_is_fetched(hub: Hub, cache: Path, bins: Path, by: str) -> None:
    commit = hub.publish(NAME, bins)
    found = fetch_files(NAME, "v1" if by == "tag" else commit, hub.url, lambda *_: None)
    assert found.source.revision == commit
    assert (found.folder / f"{UNET}.bin").read_bytes() == (bins / f"{UNET}.bin").read_bytes()


def test_a_download_that_breaks_off_goes_on_where_it_broke(
    hub: Hub, cache: Path, bins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # 10 MiB, more than the whole file, as they come
    hub.publish(NAME, bins)
    hub.break_off[f"{UNET}.bin"] = [100_000, 200_000]
    found = fetch_files(NAME, "main", hub.url, lambda *_: None)
    asked = [asked for name, asked in hub.downloads if name == f"{UNET}.bin"]
    assert asked == [None, f"bytes={2**16}-", f"bytes={4 * 2**16}-"]
    assert (found.folder / f"{UNET}.bin").read_bytes() == (bins / f"{UNET}.bin").read_bytes()


def test_a_later_run_fetches_only_what_an_earlier_one_did_not(
    tool: Tool, hub: Hub, bins: Path, fetch: list[object], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.publish(NAME, bins)
    hub.break_off[f"{UNET}.bin"] = [1000] + [0] * 5
    assert "so try again" in tool.complaint(*fetch)
    assert names(out.parent) == []
    there = {*hub.asked_for()} - {f"{UNET}.bin"}
    assert len(there) > 8
    hub.downloads.clear()
    tool.run(*fetch)
    assert sorted(hub.asked_for()) == sorted({*NEEDED} - there)
    assert names(out.parent) == [out.name]


def test_an_interrupted_run_stops_at_once_and_leaves_nothing(hub: Hub, bins: Path, tmp_path: Path, out: Path) -> None:
    hub.publish(NAME, bins)
    hub.stall = threading.Event()
    command = [sys.executable, str(ROOT / "tools/checkpoint.py"), "fetch", "--endpoint", hub.url, "--out", str(out)]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0", **PATIENT}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert hub.stalled.wait(200)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert names(out.parent) == []


def test_a_checkpoint_that_turns_out_wrong_at_the_end_leaves_nothing(
    tool: Tool, hub: Hub, bins: Path, fetch: list[object], out: Path
) -> None:
    hub.publish(NAME, bins)
    config = hub.repositories[NAME]["unet/config.json"]
    hub.repositories[NAME]["unet/config.json"] = config.replace(b'"in_channels": 4', b'"in_channels": 5')
    said = tool.complaint(*fetch)
    assert "conv_in.weight has shape [16, 4, 3, 3]; unet/config.json makes it [16, 5, 3, 3]" in said
    assert f"{UNET}.bin: " in said
    assert names(out.parent) == []


def test_a_file_that_was_published_cut_short_is_named(
    tool: Tool, hub: Hub, bins: Path, fetch: list[object], out: Path
) -> None:
    hub.publish(NAME, bins)
    hub.repositories[NAME][f"{VAE}.bin"] = hub.repositories[NAME][f"{VAE}.bin"][:-1000]
    said = tool.complaint(*fetch)
    assert f"{VAE}.bin: is not a PyTorch weights file, or was cut short" in said
    assert names(out.parent) == []


@pytest.mark.parametrize("name", [f"{VAE}.bin", "tokenizer/vocab.json"])
def test_a_file_that_is_damaged_on_its_way_is_fetched_again(hub: Hub, cache: Path, bins: Path, name: str) -> None:
    hub.publish(NAME, bins)
    hub.damaged.add(name)
    with pytest.raises(FetchError, match=f"{name} came damaged"):
        fetch_files(NAME, "main", hub.url, lambda *_: None)
    hub.damaged.clear()
    hub.downloads.clear()
    found = fetch_files(NAME, "main", hub.url, lambda *_: None)
    assert hub.asked_for() == [name]
    assert (found.folder / name).read_bytes() == (bins / name).read_bytes()


def test_a_pickle_that_runs_code_does_not(
    tool: Tool, hub: Hub, bins: Path, tmp_path: Path, fetch: list[object], out: Path
) -> None:
    folder = shutil.copytree(bins, tmp_path / "evil")
    torch.save({"conv_in.weight": Touches(tmp_path / "touched")}, folder / f"{UNET}.bin")
    hub.publish(NAME, folder)
    assert f"{UNET}.bin: holds Python objects (posix.system)" in tool.complaint(*fetch)
    assert not (tmp_path / "touched").exists()
    assert names(out.parent) == []


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("vae/", f"{NAME}/vae: missing"),
        ("tokenizer/merges.txt", f"{NAME}/tokenizer/merges.txt: missing"),
        ("unet/diffusion_pytorch_model.bin", f"{NAME}/unet: has no weights"),
    ],
)
def test_what_a_repository_lacks_is_said_before_anything_is_downloaded(
    tool: Tool, hub: Hub, bins: Path, fetch: list[object], missing: str, said: str
) -> None:
    hub.publish(NAME, bins)
    hub.repositories[NAME] = {
        name: content for name, content in hub.repositories[NAME].items() if not name.startswith(missing)
    }
    assert tool.complaint(*fetch).startswith(said)
    assert hub.downloads == []


def test_what_a_hub_does_not_have_is_said(tool: Tool, hub: Hub, bins: Path, fetch: list[object], out: Path) -> None:
    hub.publish(NAME, bins)
    hub.publish("shy/model", bins)
    hub.gated.add("shy/model")
    assert tool.complaint(*fetch, "nobody/nothing").startswith(f"nobody/nothing: {hub.url} has no such repository")
    assert tool.complaint(*fetch, NAME, "--revision", "v7").startswith(f"{NAME}: has no revision 'v7'")
    assert f"{hub.url}/shy/model" in tool.complaint(*fetch, "shy/model")
    assert "looks like segmind/tiny-sd" in tool.complaint(*fetch, "not a name!")
    assert names(out.parent) == []


def test_a_hub_that_is_not_there_is_said(tool: Tool, cache: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as deaf:  # has the port, so that nobody else gets it, and does not listen
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        assert tool.complaint("fetch", "--endpoint", url, "--out", out).startswith(f"{url} cannot be reached")
    assert "cannot be reached" in tool.complaint("fetch", "--endpoint", "no address", "--out", out)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in tool.complaint("fetch", "--endpoint", url, "--out", out)


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_is_no_hub_is_said(tool: Tool, cache: Path, out: Path, status: int) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>Welcome</title>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        said = tool.complaint("fetch", "--endpoint", url, "--out", out)
        server.shutdown()
    assert url in said
    assert names(out.parent) == []
