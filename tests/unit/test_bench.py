"""tools/bench.py without a contender: its options, its figures and how they are shown."""

from __future__ import annotations

import doctest
import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import bench
from benchmark import figures, report
from benchmark.arrivals import (
    SHORT_ALONE,
    Answers,
    lost,
    near_capacity_chart,
    near_capacity_table,
    trace_chart,
    trace_tables,
)
from benchmark.baselines import load_openvino, tune
from benchmark.chart import Bars, Chart, Lines, save
from benchmark.contenders import BenchError, Peak, Ready, Setup, worker
from benchmark.figures import Spread, alternating, high_water_bytes, largest_difference, process_name, read_metrics
from benchmark.first_signs import watch
from benchmark.latency import CONTENDERS, compare_pictures, latency_tables
from benchmark.mixed import at_once_table, mixed_tables
from benchmark.report import Report, Table, memory_table, pair_table
from benchmark.throughput import CALLERS, ENGINE, throughput_chart, throughput_table
from tiny_sd_client import Generation, Progress, Stage, Timings
from tiny_sd_engine.architectures import ARCHITECTURES

SETUP = Setup(Path("unused"), "CPU", "auto", size=64, steps=20)
BARS = Bars("seconds", {"": {"a": Spread(2.0, 1.0, 3.0)}})
METRICS = """
# TYPE tiny_sd_unet_call_rows histogram
tiny_sd_unet_call_rows_count{instance="unet_0_0",model="unet",version="1"} 20
tiny_sd_unet_call_rows_count{instance="unet_0_1",model="unet",version="1"} 10
nv_inference_count{model="unet",version="1"} 3
nv_inference_count{model="tokenizer",version="1"} 4
nv_pinned_memory_pool_used_bytes 0
nv_cache_util 4.7e-07
"""


def png(*reds: int) -> bytes:
    """A picture one pixel high with these reds."""
    file = io.BytesIO()
    Image.fromarray(np.array([[(red, 0, 0) for red in reds]], np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_the_examples_in_docstrings_hold() -> None:
    assert [doctest.testmod(module).failed for module in (figures, report)] == [0, 0]


def test_contenders_take_turns_in_an_order_that_is_mirrored_every_round() -> None:
    assert "".join(name for _, name in alternating("ABC", 4)) == "ABCCBAABCCBA"
    assert [number for number, _ in alternating("AB", 2)] == [1, 1, 2, 2]


def test_a_spread_is_the_median_with_the_extremes() -> None:
    assert Spread.of([3.0, 1.0, 2.5, 9.0]) == Spread(2.75, 1.0, 9.0)
    assert Spread.of([1.0]).cells(str) == ["1.0", "1.0 to 1.0"]


def test_peak_memory_is_read_from_a_process_status() -> None:
    assert high_water_bytes("VmPeak:\t 9000 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1000 kB\n") == 2 * 2**20
    with pytest.raises(ValueError, match="ended"):
        high_water_bytes("Name:\tzombie\n")


def test_a_triton_server_is_named_by_its_program() -> None:
    assert process_name(["/opt/tritonserver/bin/tritonserver", "--model-repository=/models"]) == "tritonserver"


def test_metrics_are_those_of_one_model_summed_over_its_instances() -> None:
    assert read_metrics(METRICS, "unet") == {"tiny_sd_unet_call_rows_count": 30.0, "nv_inference_count": 3.0}


def test_pictures_are_compared_by_their_worst_pixel() -> None:
    assert largest_difference(png(0, 250), png(3, 240)) == 10


def test_ratios_are_taken_round_by_round() -> None:
    # By their medians alone, 2.0 and 2.0, nothing would be said of the tax.
    tables = latency_tables({"engine": [1.0, 2.0, 4.0], "served": [1.1, 2.0, 4.2]}, steps=20)
    assert tables[0].rows[0] == ["engine", "2.00", "1.00 to 4.00", "0.1000"]
    assert tables[1].rows == [["serving tax: served / engine - 1", "+5.0 %", "+0.0 % to +10.0 %"]]


def test_all_three_contenders_give_three_ratios_and_one_gives_none() -> None:
    taken = {name: [1.0] for name in ("diffusers", "engine", "served")}
    assert len(latency_tables(taken, steps=20)[1].rows) == 3
    assert len(latency_tables({"engine": [1.0]}, steps=20)) == 1


def test_pictures_of_engine_and_served_must_be_equal_to_the_byte() -> None:
    equal = {"engine": [png(1), png(2)], "served": [png(1), png(2)], "diffusers": [png(1), png(4)]}
    assert compare_pictures(equal) == (
        [
            "Served and engine: equal to the byte in every round.",
            "Engine and diffusers: the largest difference of a pixel is 2/255.",
        ],
        [],
    )
    notes, failures = compare_pictures({"engine": [png(1), png(2)], "served": [png(1), png(3)]})
    assert notes == []
    assert failures == ["the served pictures differ from the engine's in 1 of 2 rounds"]


def test_every_baseline_is_compared_with_ours() -> None:
    taken = {name: [1.0] for name in ("diffusers-best", "openvino", "served")}
    labels = [row[0] for row in latency_tables(taken, steps=20)[1].rows]
    assert labels == ["speed-up: diffusers-best / served", "speed-up: openvino / served"]
    notes, failures = compare_pictures({"openvino": [png(1)], "engine": [png(3)]})
    assert (notes, failures) == (["Engine and openvino: the largest difference of a pixel is 2/255."], [])


class FakePipeline:
    """Notes what is done to it."""

    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.done: list[str] = []
        self.unet, self.vae = (
            SimpleNamespace(
                to=lambda memory_format, name=name: self.done.append(f"{name} {memory_format}"),
                compile=lambda mode: self.done.append(f"compile {mode}"),
            )
            for name in ("unet", "vae")
        )

    def fuse_qkv_projections(self) -> None:
        self.done.append("fuse")


@pytest.mark.parametrize(
    ("on_gpu", "obstacle", "done", "how"),
    [
        (False, "", ["compile default"], "bfloat16, channels_last, U-Net by torch.compile in mode default"),
        (False, "no g++", [], "bfloat16, channels_last, U-Net **not** compiled (no g++)"),
        (
            True,
            "",
            ["fuse", "compile reduce-overhead"],
            "bfloat16, channels_last, fused QKV, U-Net by torch.compile in mode reduce-overhead",
        ),
    ],
)
def test_diffusers_at_its_best_says_how(on_gpu: bool, obstacle: str, done: list[str], how: str) -> None:
    pipeline = FakePipeline()
    assert tune(pipeline, on_gpu=on_gpu, obstacle=obstacle) == how
    assert pipeline.done == ["unet torch.channels_last", "vae torch.channels_last", *done]


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BenchError, match=r"install '\.\[openvino\]'"):
        load_openvino(SETUP)


def test_openvino_is_for_cpus() -> None:
    with pytest.raises(BenchError, match="--device CPU"):
        load_openvino(replace(SETUP, device="GPU"))


def load_echo(setup: Setup) -> Ready:
    return Ready(lambda parameters: parameters.prompt.encode(), f"{setup.size} pixels")


def load_nothing(setup: Setup) -> Ready:
    raise BenchError(f"nothing runs on this {setup.device}")


def test_a_contender_tells_how_it_works_or_why_it_cannot() -> None:
    with worker("echo", load_echo, SETUP) as echo:
        assert echo.how == "64 pixels"
        assert echo.make(SETUP.request(7)).file.endswith(b"number 7")
    with pytest.raises(BenchError, match="nothing runs on this CPU"), worker("nothing", load_nothing, SETUP):
        pass


def test_signs_of_a_stream_are_timed_from_its_call() -> None:
    def progress(step: int, *previews: bytes) -> Progress:
        return Progress("job", Stage.DENOISING, step, 20, seconds=0.0, seconds_left=None, previews=previews)

    parameters = SETUP.request(1)
    picture = Generation("job", (b"png",), (1,), parameters, Timings(1.0, 1.0))
    events = [progress(0), progress(1), progress(2, b"jpeg"), progress(4, b"jpeg"), picture]
    assert watch(events, iter([10.0, 11.0, 12.0, 13.0, 14.0, 15.0]).__next__) == {
        "first event": 1.0,
        "first step": 2.0,
        "first preview": 3.0,
        "picture": 5.0,
    }
    at_once = watch([progress(0), picture], iter([10.0, 10.5, 11.0]).__next__)
    assert at_once == {"first event": 0.5, "first step": 1.0, "first preview": 1.0, "picture": 1.0}


def test_two_situations_are_compared_round_by_round() -> None:
    signs = ("first event", "first step", "first preview", "picture")
    alone, beside = dict.fromkeys(signs, (1.0, 2.0)), dict.fromkeys(signs, (2.0, 3.0))
    table = pair_table({"alone": alone, "beside 3 long ones": beside})
    assert table.rows[0] == ["first event", "1.50", "1.00 to 2.00", "2.50", "2.00 to 3.00", "1.75x", "1.50x to 2.00x"]
    assert [row[0] for row in table.rows] == list(signs)


@pytest.mark.parametrize(
    "chart",
    [
        BARS,
        Bars("seconds", {"p50": {"a": Spread(1, 1, 1), "b": Spread(90, 80, 99)}, "p99": {"b": Spread(99, 99, 99)}}),
        throughput_chart({ENGINE: [1.0]} | {f"served, {callers} at once": [1.0, 2.0] for callers in CALLERS}),
    ],
)
def test_a_chart_is_written_as_png(chart: Chart, tmp_path: Path) -> None:
    save(chart, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size == (1050, 600)


def test_bars_of_very_different_lengths_stand_on_a_logarithmic_scale() -> None:
    def scale(*medians: float) -> str:
        axes = Figure().subplots()
        Bars("seconds", {"": {str(median): Spread(median, median, median) for median in medians}}).draw(axes)
        return axes.get_yscale()

    assert scale(1.0, 10.0) == "linear"
    assert scale(1.0, 100.0) == "log"


def test_the_engine_is_a_level_beside_the_callers() -> None:
    rates = {ENGINE: [3.0]} | {f"served, {callers} at once": [float(callers)] for callers in CALLERS}
    assert throughput_chart(rates) == Lines(
        "pictures per second",
        "callers",
        {
            "served": {callers: Spread(callers, callers, callers) for callers in CALLERS},
            ENGINE: dict.fromkeys(CALLERS, Spread(3.0, 3.0, 3.0)),
        },
    )


def test_throughput_tells_how_well_calls_are_shared() -> None:
    change = {
        "tiny_sd_unet_call_rows_sum": 120.0,
        "tiny_sd_unet_call_rows_count": 30.0,
        "nv_inference_count": 9.0,
        "nv_inference_exec_count": 4.0,
    }
    idle = dict.fromkeys(change, 0.0)
    table = throughput_table({"engine": [0.5], "served": [0.7, 0.9]}, {"engine": idle, "served": change})
    assert table.rows == [
        ["engine", "0.500", "0.500 to 0.500", "", ""],
        ["served", "0.800", "0.700 to 0.900", "4.00", "2.25"],
    ]


def test_mixed_compares_short_requests_one_by_one() -> None:
    short = {"alone": [1.0, 1.0], "in flight": [2.0, 1.5], "plain": [6.0, 6.0], "FastAPI + diffusers": [8.0, 3.0]}
    long = {"in flight": [9.0], "plain": [8.0], "FastAPI + diffusers": [7.0]}
    latencies, compared = mixed_tables(short, long, {name: [30.0] for name in short}, steps=20)
    assert latencies.rows[0][3:] == ["", "", "30.0", "30.0 to 30.0"]
    assert latencies.rows[1][3] == "9.00"
    assert compared.rows == [
        ["in flight / alone", "1.75x", "1.50x to 2.00x"],
        ["plain / in flight", "3.50x", "3.00x to 4.00x"],
        ["FastAPI + diffusers / in flight", "3.00x", "2.00x to 4.00x"],
    ]


def test_the_time_for_the_same_work_is_compared_round_by_round() -> None:
    table = at_once_table({"in flight": [2.0, 4.0], "plain": [3.0, 4.0]})
    assert table.rows == [
        ["in flight", "3.00", "2.00 to 4.00", "1.00x", "1.00x to 1.00x"],
        ["plain", "3.50", "3.00 to 4.00", "1.25x", "1.00x to 1.50x"],
    ]


def test_a_report_is_a_section_of_markdown_and_keeps_every_measurement_for_json() -> None:
    peaks = [Peak("engine", 3 * 2**20, 2**20), Peak("served: tritonserver", 2**20)]
    tables = [Table(["who", "how much"], [["a", "1"]]), memory_table(peaks)]
    made = Report(
        "Title", tables, ["A note."], BARS, {"seconds": {"a": [1.5]}, "peaks": peaks}, failures=["they differ"]
    )
    markdown = made.markdown({"CPU": "one"})
    assert markdown.startswith(
        "## Title\n\n**Failed check: they differ.**\n\n| who | how much |\n| --- | ---: |\n| a | 1 |\n"
    )
    assert "| engine | 3 | 1 |\n| served: tritonserver | 1 |  |\n" in markdown
    assert markdown.endswith("- A note.\n\nMeasured with:\n\n- CPU: one\n")
    assert made.json({"CPU": "one"})["measurements"]["peaks"][1] == {
        "process": "served: tritonserver",
        "resident_bytes": 2**20,
        "gpu_bytes": None,
    }


def test_every_request_has_prompts_of_its_own_and_is_the_same_for_every_contender() -> None:
    assert SETUP.request(1) == SETUP.request(1)
    assert SETUP.request(1).prompt != SETUP.request(2).prompt
    assert SETUP.request(1).negative_prompt != SETUP.request(2).negative_prompt
    assert SETUP.request(1, steps=100).num_inference_steps == 100


def answers(*rows: tuple[float, float, str, str]) -> Answers:
    """When each was due, how long it took, its kind, and how it ended."""
    names = ("due_s", "seconds", "kind", "outcome")
    return Answers([dict(zip(names, map(str, row), strict=True)) for row in rows])


def test_arrivals_are_compared_by_kind() -> None:
    in_flight = answers((0, 1, "draft", "answered"), (1, 2, "draft", "answered"), (2, 6, "long", "answered"))
    plain = answers((0, 4, "draft", "answered"), (1, 0.1, "draft", "refused"), (2, 3, "long", "answered"))
    short_alone = answers((0, 0.5, "draft", "answered"), (1, 1, "draft", "answered"))
    runs = {"in flight": [in_flight], "plain": [plain], SHORT_ALONE: [short_alone]}
    waited, compared, ends = trace_tables(runs)
    assert ["draft p50, in flight", "1.00", "1.00 to 1.00"] in waited.rows
    assert ["draft p99, plain", "4.00", "4.00 to 4.00"] in waited.rows
    assert ["draft p50: plain / in flight", "4.00x", "4.00x to 4.00x"] in compared.rows
    assert [f"draft p99: in flight / {SHORT_ALONE}", "2.00x", "2.00x to 2.00x"] in compared.rows
    assert ["long p99: plain / in flight", "0.50x", "0.50x to 0.50x"] in compared.rows
    assert not any(SHORT_ALONE in row[0] for row in compared.rows if row[0].startswith("long"))
    bars = trace_chart(runs).series
    assert bars["plain"]["draft p99"] == Spread(4.0, 4.0, 4.0)
    assert list(bars["in flight"]) == ["draft p50", "draft p99", "long p50", "long p99"]
    assert list(bars[SHORT_ALONE]) == ["draft p50", "draft p99"]
    assert ends.rows == [["in flight", "3", "0"], ["plain", "2", "1"], [SHORT_ALONE, "2", "0"]]


def test_a_load_near_capacity_is_compared_with_what_was_offered() -> None:
    saturated = answers(*((0, second, "draft", "answered") for second in (1, 2, 3, 4)))
    loaded = answers((0, 1, "draft", "answered"), (3, 2, "draft", "answered"), (4, 1, "draft", "lost"))
    rows = {row[0]: row[1] for row in near_capacity_table([saturated], [loaded], [0.5]).rows}
    assert (rows["capacity, pictures a second"], rows["answered"]) == ("1.000", "0.400")
    assert (rows["answered / offered"], rows["p99 / p50"]) == ("0.800", "2.00x")
    assert near_capacity_chart([loaded]).series[""]["p99"] == Spread(2.0, 2.0, 2.0)
    assert lost([saturated, loaded]) == ["1 requests lost"]


def test_options_offer_what_there_is() -> None:
    assert set(bench.ARCHITECTURES) == set(ARCHITECTURES)
    assert list(bench.CONTENDERS) == list(CONTENDERS)
    assert bench.parse_arguments(["--contenders", "served,engine"]).contenders == ("served", "engine")
    assert bench.parse_arguments([]).contenders == ("diffusers", "engine", "served")


def test_a_report_is_three_files_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = tmp_path / "report-1.5"
    bench.write(Report("Title", [], [], BARS, {"peaks": []}), {}, stem)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"report-1.5.{kind}" for kind in ("json", "md", "png")]
    assert Path(f"{stem}.md").read_text() == capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--contenders", "engine,onnx"],
        ["--repeats", "0"],
        ["--report", "no/such/folder"],
        ["--architecture", "test", "--checkpoint", "x"],
    ],
)
def test_wrong_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse_arguments(wrong)
    assert wrong[-2] in capsys.readouterr().err
