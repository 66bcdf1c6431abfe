"""tools/bench.py without a contender: its options, its figures and how they are shown."""

from __future__ import annotations

import doctest
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bench
from benchmark import figures, report
from benchmark.arrivals import Answers, lost, near_capacity_table, trace_tables
from benchmark.contenders import Peak, Setup
from benchmark.figures import Spread, alternating, high_water_bytes, largest_difference, process_name, read_metrics
from benchmark.latency import CONTENDERS, compare_pictures, latency_tables
from benchmark.mixed import mixed_tables
from benchmark.report import Report, Table, memory_table
from benchmark.throughput import throughput_table
from tiny_sd_engine.architectures import ARCHITECTURES

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


def test_a_report_is_a_section_of_markdown_and_keeps_every_measurement_for_json() -> None:
    peaks = [Peak("engine", 3 * 2**20, 2**20), Peak("served: tritonserver", 2**20)]
    tables = [Table(["who", "how much"], [["a", "1"]]), memory_table(peaks)]
    made = Report("Title", tables, ["A note."], {"seconds": {"a": [1.5]}, "peaks": peaks}, failures=["they differ"])
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
    setup = Setup(Path("unused"), "CPU", "auto", size=64, steps=20)
    assert setup.request(1) == setup.request(1)
    assert setup.request(1).prompt != setup.request(2).prompt
    assert setup.request(1).negative_prompt != setup.request(2).negative_prompt
    assert setup.request(1, steps=100).num_inference_steps == 100


def answers(*rows: tuple[float, float, str, str]) -> Answers:
    """When each was due, how long it took, its kind, and how it ended."""
    names = ("due_s", "seconds", "kind", "outcome")
    return Answers([dict(zip(names, map(str, row), strict=True)) for row in rows])


def test_arrivals_are_compared_by_kind() -> None:
    in_flight = answers((0, 1, "draft", "answered"), (1, 2, "draft", "answered"), (2, 6, "long", "answered"))
    plain = answers((0, 4, "draft", "answered"), (1, 0.1, "draft", "refused"), (2, 3, "long", "answered"))
    waited, compared, ends = trace_tables({"in flight": [in_flight], "plain": [plain]})
    assert ["draft p50, in flight", "1.00", "1.00 to 1.00"] in waited.rows
    assert ["draft p99, plain", "4.00", "4.00 to 4.00"] in waited.rows
    assert ["draft p50", "4.00x", "4.00x to 4.00x"] in compared.rows
    assert ["long p99", "0.50x", "0.50x to 0.50x"] in compared.rows
    assert ends.rows == [["in flight", "3", "0"], ["plain", "2", "1"]]


def test_a_load_near_capacity_is_compared_with_what_was_offered() -> None:
    saturated = answers(*((0, second, "draft", "answered") for second in (1, 2, 3, 4)))
    loaded = answers((0, 1, "draft", "answered"), (3, 2, "draft", "answered"), (4, 1, "draft", "lost"))
    rows = {row[0]: row[1] for row in near_capacity_table([saturated], [loaded], [0.5]).rows}
    assert (rows["capacity, pictures a second"], rows["answered"]) == ("1.000", "0.400")
    assert (rows["answered / offered"], rows["p99 / p50"]) == ("0.800", "2.00x")
    assert lost([saturated, loaded]) == ["1 requests lost"]


def test_options_offer_what_there_is() -> None:
    assert set(bench.ARCHITECTURES) == set(ARCHITECTURES)
    assert list(bench.CONTENDERS) == list(CONTENDERS)
    assert bench.parse_arguments(["--contenders", "served,engine"]).contenders == ("served", "engine")


@pytest.mark.parametrize(
    "wrong", [["--contenders", "engine,onnx"], ["--repeats", "0"], ["--architecture", "test", "--checkpoint", "x"]]
)
def test_wrong_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse_arguments(wrong)
    assert wrong[-2] in capsys.readouterr().err
