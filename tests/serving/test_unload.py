"""Models that Triton is told to unload."""

from __future__ import annotations

import re
import time
from pathlib import Path

import requests
from serving_server import SMALL_SIZES, serve

from local_server import LocalServer

REPORTING = {"tokenizer", "text_encoder", "unet"}
PATIENCE_S = 120


def reporting(server: LocalServer) -> set[str]:
    """The models that have series of ours among Triton's."""
    text = requests.get(f"http://{server.metrics_url}/metrics", timeout=60).text
    return set(re.findall(r'^tiny_sd_.*model="(\w+)"', text, re.M))


def test_a_model_that_is_unloaded_takes_its_series_along(checkpoint: Path, tmp_path: Path) -> None:
    # It can do so only while its process is sound: one that ends by a fault leaves them behind for ever.
    explicit = ["--model-control-mode=explicit", *(f"--load-model={model}" for model in REPORTING)]
    environment = {**SMALL_SIZES, "TINY_SD_ADMIN_KEY": "known"}
    with serve(checkpoint, tmp_path / "log", environment, *explicit) as server:
        assert reporting(server) == REPORTING
        for model in REPORTING:
            unload = f"http://{server.http_url}/v2/repository/models/{model}/unload"
            requests.post(unload, headers={"admin-key": "known"}, timeout=60).raise_for_status()
        deadline = time.monotonic() + PATIENCE_S
        while reporting(server):
            assert time.monotonic() < deadline, reporting(server)
            time.sleep(0.1)
