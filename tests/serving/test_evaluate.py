"""Evaluating a running server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import evaluate
from evaluation.orders import Order, by_pipeline, by_server
from local_server import LocalServer
from tiny_sd_engine.pipeline import Pipeline


def test_a_server_paints_what_the_engine_paints_in_the_order_of_the_prompts(
    narrow_server: LocalServer, checkpoint: Path
):
    # More than the server takes on at a time, and of unequal lengths.
    orders = [Order(f"star {seed}", seed, steps=20 + 40 * (seed % 2), size=128) for seed in range(10)]
    pipeline = Pipeline.from_checkpoint(checkpoint, precision="fp32")
    with by_server(f"grpc://{narrow_server.grpc_url}") as paint:
        for served, here in zip(paint(orders), by_pipeline(pipeline)(orders), strict=True):
            assert np.abs(served.astype(int) - here).max() <= 1


def test_the_command_evaluates_a_server(narrow_server: LocalServer, tmp_path: Path):
    url = f"http://{narrow_server.http_url}"
    arguments = ["--url", url, "--prompts", "3", "--landscapes", "1", "--checks", "0", "--size", "128"]
    assert evaluate.main([*arguments, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["circumstances"]["pictures of"] == url
    assert [len(report["following"][kind][0]["pictures"]) for kind in ("shapes", "landscapes")] == [3, 1]
