"""tools/evaluate.py: what is asked, how it is counted, and what the report says. Reading has tests of its own."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from drawings import Landscape, Shapes, draw, parse, shape_combinations
from evaluation import metrics
from evaluation.comparison import Size, measure_size, measure_speed
from evaluation.grading import EVERYTHING, Graded, Share, accuracy, grade
from evaluation.lab import Pixels
from evaluation.metrics import ClipScore, FrechetDistance, MetricError, read_captions
from evaluation.orders import Order, by_pipeline, held_out_orders
from evaluation.protocol import NEGATIVES, Series, by_guidance, by_scheduler, forbid_colours
from evaluation.report import Contender, Findings, markdown, to_json
from evaluation.sheet import contact_sheet
from tiny_sd_client.parameters import parse as parse_parameters
from tiny_sd_engine.architectures import ARCHITECTURES
from tiny_sd_engine.pipeline import Pipeline

SIDE = 128


def silent(name: str, done: int, total: int) -> None:
    pass


@dataclass
class Draughtsman:
    """Draws what it is asked for; but without guidance it does not listen, and a negative prompt it obeys."""

    asked: list[Order] = field(default_factory=list)

    def __call__(self, orders: Sequence[Order]) -> Iterator[Pixels]:
        for order in orders:
            self.asked.append(order)
            yield draw(self._scene(order), SIDE, SIDE)

    def _scene(self, order: Order) -> Shapes | Landscape:
        if order.guidance <= 1:
            return Shapes(shape="ring", colour="black", background="white")
        scene = replace(parse(order.prompt), variation=order.seed)
        if isinstance(scene, Shapes) and not scene.background:
            colours = [colour for colour in ("red", "blue") if colour != order.negative_prompt]
            both = colours[order.seed % len(colours)], "yellow" if order.seed == 4 else "white"
            scene = replace(scene, background=both[0], colour=both[1])
        return scene


# Orders


def test_prompts_are_held_out_and_the_same_for_the_same_seed():
    orders = held_out_orders(60, seed=3, landscapes=False, steps=25)
    assert orders == held_out_orders(60, seed=3, landscapes=False, steps=25)
    assert orders[:20] == held_out_orders(20, seed=3, landscapes=False, steps=25)
    assert orders != held_out_orders(60, seed=4, landscapes=False, steps=25)
    held_out = shape_combinations("held-out")
    for number, order in enumerate(orders):
        asked = parse(order.prompt)
        assert isinstance(asked, Shapes)
        assert (asked.shape, asked.colour, asked.background) in held_out
        assert (order.seed, order.steps) == (3 + number, 25)


def test_an_order_is_what_the_documented_parameters_say():
    order = Order("a red circle", 7, "DDIM", 30, 5.0, "blue", 768)
    asked = order.parameters().picture()
    assert asked == {
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "scheduler": "DDIM",
        "num_inference_steps": 30,
        "guidance_scale": 5.0,
        "samples": 1,
        "seed": 7,
        "img_width": 768,
        "img_height": 768,
        "image_format": "png",
    }


def test_the_engine_in_this_process_paints_what_it_would_generate(checkpoint: Path):
    pipeline = Pipeline.from_checkpoint(checkpoint)
    orders = [Order("a star", seed, size=64) for seed in range(10)]
    painted = list(by_pipeline(pipeline)(orders))
    assert len(painted) == 10
    for order, pixels in zip(orders[::9], painted[::9], strict=True):
        np.testing.assert_array_equal(pixels, pipeline.generate(order.parameters()).pixels[0])


# Grades


def test_only_what_the_prompt_tells_is_graded():
    drawing = draw(Shapes(shape="circle", colour="red", background="white"), SIDE, SIDE)
    graded = grade(Order("a circle on a blue background", 0, scene=Shapes(shape="circle", background="blue")), drawing)
    assert graded.right == {"shape": True, "background": False, "count": True, "size": True, "position": True}


def test_accuracy_counts_each_attribute_among_the_prompts_that_tell_it():
    drawing = draw(Shapes(shape="circle", colour="red", background="white"), SIDE, SIDE)
    scenes = [Shapes(colour="red"), Shapes(colour="blue"), Shapes(shape="circle")]
    shares = accuracy(grade(Order("", 0, scene=scene), drawing) for scene in scenes)
    assert (shares["colour"], shares["shape"], shares[EVERYTHING]) == (Share(1, 2), Share(1, 1), Share(2, 3))


def test_shares_have_wilsons_intervals():
    # Wilson (1927) as in Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 15 of 148.
    assert Share(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert Share(15, 148).interval == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert str(Share(195, 200)) == "97.5% (94.3% to 98.9%)"


# Protocol


def test_every_scheduler_gets_the_same_prompts_and_seeds():
    paint = Draughtsman()
    orders = held_out_orders(8, seed=0, landscapes=False) + held_out_orders(4, seed=0, landscapes=True)
    series = by_scheduler(paint, orders, ["UniPC", "DDIM"], silent)
    assert [one.name for one in series] == ["UniPC", "DDIM"]
    assert [order.scheduler for order in paint.asked] == ["UniPC"] * 12 + ["DDIM"] * 12
    assert [replace(order, scheduler="UniPC") for order in paint.asked] == orders * 2
    assert all(one.accuracy[EVERYTHING] == Share(12, 12) for one in series)


def test_a_painter_that_ignores_its_prompts_without_guidance_is_found_out():
    without, with_it = by_guidance(Draughtsman(), held_out_orders(10, seed=0, landscapes=False), silent)
    assert (without.name, with_it.name) == ("guidance 1", "guidance 7.5")
    assert without.accuracy[EVERYTHING].hits == 0
    assert with_it.accuracy[EVERYTHING].hits == 10


def test_negative_prompts_are_checked_where_all_colours_are_open():
    paint = Draughtsman()
    found = {f.colour: f for f in forbid_colours(paint, held_out_orders(10, seed=0, landscapes=False), silent)}
    assert set(found) == set(NEGATIVES)
    assert (found["red"].without, found["red"].with_it) == (Share(5, 10), Share(0, 10))
    assert (found["green"].without, found["green"].with_it) == (Share(0, 10), Share(0, 10))
    assert (found["yellow"].without, found["yellow"].with_it) == (Share(1, 10), Share(1, 10))
    assert {(order.prompt, order.negative_prompt) for order in paint.asked} == {
        ("a circle", c) for c in ("", *NEGATIVES)
    }
    assert [order.seed for order in paint.asked] == [*range(10)] * 5


def test_progress_is_reported_picture_by_picture():
    told = []
    orders = held_out_orders(3, seed=0, landscapes=True)
    by_scheduler(Draughtsman(), orders, ["UniPC"], lambda *report: told.append(report))
    assert told == [("UniPC", 1, 3), ("UniPC", 2, 3), ("UniPC", 3, 3)]


# Comparison


def configured(folder: Path, architecture: str) -> Path:
    """A checkpoint without its weights."""
    networks = ARCHITECTURES[architecture]
    for name, config in (("unet", networks.unet), ("vae", networks.vae), ("text_encoder", networks.text_encoder)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(dict(config)))
    return folder


def test_the_published_architectures_have_their_published_sizes(tmp_path: Path):
    tiny = measure_size(configured(tmp_path / "tiny", "tiny-sd"), 512)
    full = measure_size(configured(tmp_path / "full", "sd15"), 512)
    assert (tiny.unet_parameters, full.unet_parameters) == (323_384_964, 859_520_964)
    assert tiny.parameters == 323_384_964 + 123_060_480 + 83_653_863
    # BK-SDM counts 339 G multiplications with addition for a row of SD 1.4's U-Net, without those inside attention.
    assert 2 * 2 * 339e9 < full.unet_flops < 1.25 * 2 * 2 * 339e9
    assert 0.5 < tiny.unet_flops / full.unet_flops < 0.7


def test_speed_is_measured_in_turns_after_one_that_does_not_count():
    turns = []
    pipelines = [SimpleNamespace(generate=lambda parameters, name=name: turns.append(name)) for name in "AB"]
    seconds = measure_speed(pipelines, Order("a star", 0), rounds=4)
    assert "".join(turns) == "AB" + "ABBAABBA"
    assert [len(each) for each in seconds] == [4, 4]


# Report


def graded(prompt: str, scene: Shapes) -> Graded:
    return grade(Order(prompt, 0, scene=parse(prompt)), draw(scene, SIDE, SIDE))


RIGHT = graded("a red circle on white", Shapes(shape="circle", colour="red", background="white"))
WRONG = graded("a red circle on white", Shapes(shape="square", colour="red", background="white"))


def test_the_sheet_frames_wrong_pictures_in_red_and_no_others():
    sheet = np.asarray(contact_sheet([RIGHT, WRONG]).convert("RGB"))
    framed = (sheet == (210, 32, 30)).all(axis=-1)
    half = sheet.shape[1] // 2
    assert not framed[:, :half].any()
    assert framed[:, half:].sum() > 4 * SIDE


def test_the_report_shows_accuracies_and_compares():
    series = Series("UniPC", [RIGHT] * 3 + [WRONG])
    size = Size(unet_parameters=1000, parameters=3000, unet_flops=4_000_000)
    findings = Findings(
        following={"shapes": [series]},
        guidance=[series],
        contenders=[
            Contender("teacher", size, [2.0, 2.2], {"shapes": Series("UniPC", [RIGHT])}),
            Contender("student", replace(size, unet_parameters=400), [1.0, 1.0], {"shapes": series}),
        ],
        scores={"CLIP score": 0.26531},
    )
    text = markdown(findings, {"date": "today"})
    assert "| UniPC | 4 | 100.0% (51.0% to 100.0%) | 75.0% (30.1% to 95.4%) |" in text
    assert "| U-Net parameters | 1,000 | 400 | -60.0 % |" in text
    assert "2.10x as fast (2.00x to 2.20x)" in text
    assert re.search(r"\| shapes: shape \| 100.0% .* \| 75.0% .* \| -25.0 points \|", text)
    assert "| CLIP score | 0.2653 |" in text
    content = json.loads(json.dumps(to_json(findings, {"date": "today"})))
    last = content["following"]["shapes"][0]["pictures"][-1]
    assert (last["prompt"], last["reading"]["shape"], last["wrong"]) == ("a red circle on white", "square", ["shape"])


# The command


def test_the_command_writes_report_and_sheets(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = (
        "--prompts 2 --landscapes 1 --checks 1 --size 64 --rounds 1 --schedulers UniPC,DDIM --against-guidance 1.5"
    )
    out = tmp_path / "out"
    code = evaluate.main(
        [*arguments.split(), "--checkpoint", str(checkpoint), "--against", str(checkpoint), "--out", str(out)]
    )
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "landscapes-ddim.jpg",
        "landscapes-unipc.jpg",
        "report.json",
        "report.md",
        "shapes-ddim.jpg",
        "shapes-unipc.jpg",
    ]
    text = (out / "report.md").read_text()
    assert capsys.readouterr().out == text
    titles = re.findall("^## (.*)$", text, re.MULTILINE)
    assert [title.split(",")[0] for title in titles] == [
        "Shapes",
        "Landscapes",
        "Guidance",
        "Negative prompts",
        "Side by side",
    ]
    report = json.loads((out / "report.json").read_text())
    assert [len(series["pictures"]) for series in report["following"]["shapes"]] == [2, 2]
    scales = [{one["guidance"] for one in each["series"]["shapes"]["pictures"]} for each in report["contenders"]]
    assert scales == [{1.5}, {7.5}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedulers", "Magic"], "scheduler: got 'Magic'; allowed: DDIM"),
        (["--schedulers", "UniPC,Magic"], "scheduler: got 'Magic'"),
        (["--steps", "5"], "num_inference_steps: got 5"),
        (["--against-guidance", "0"], "guidance_scale: got 0"),
        (["--checkpoint", "/nowhere"], "/nowhere: no such checkpoint folder"),
        (["--metrics", "clip", "--captions", "/nowhere.csv"], "/nowhere.csv"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(arguments: list[str], message: str, capsys, tmp_path: Path):
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "grpc://here", "--checkpoint", "there"], "not allowed with"),
        (["--url", "grpc://here", "--against", "there"], "neither --url nor --metrics"),
        (["--metrics", "inception"], "got 'inception'; allowed: clip, fid"),
        (["--metrics", "clip"], "--metrics needs --captions"),
        (["--metrics", "fid", "--captions", "file"], "needs --references"),
        (["--prompts", "0"], "allowed: 1 or more"),
        (["--checks", "-1"], "allowed: a whole number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_all_schedulers_are_the_documented_ones():
    names = evaluate.schedulers(evaluate.parse_arguments(["--schedulers", "all"]))
    assert len(names) == 14
    assert all(parse_parameters({"prompt": "x", "scheduler": name}).scheduler == name for name in names)


# Scores of real checkpoints


@pytest.mark.parametrize(
    ("module", "make", "package"),
    [
        ("open_clip", lambda _: ClipScore(torch.device("cpu")), "open_clip_torch"),
        ("torchmetrics.image.fid", lambda folder: FrechetDistance(folder, torch.device("cpu")), "torchmetrics[image]"),
    ],
)
def test_a_missing_library_is_named_with_how_to_get_it(module, make, package, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(
        MetricError, match=re.escape(f"{package} is not installed; it comes with pip install -e '.[eval")
    ):
        make(tmp_path)


def test_captions_come_from_the_column_text_in_order(tmp_path: Path):
    file = tmp_path / "metadata.csv"
    file.write_text('file_name,text\n1.jpg,a man\n2.jpg,"a cat, asleep"\n3.jpg,a bus\n')
    assert read_captions(file, 2) == ["a man", "a cat, asleep"]
    with pytest.raises(MetricError, match="holds 3 captions; 4 were asked for"):
        read_captions(file, 4)


@pytest.mark.parametrize("content", ["file_name,caption\n1.jpg,a man\n", "\x00\xff", ""])
def test_captions_of_another_form_are_refused(content: str, tmp_path: Path):
    file = tmp_path / "metadata.csv"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(MetricError, match=re.escape(str(file))):
        read_captions(file, 1)


def test_references_are_the_pictures_of_a_folder(tmp_path: Path):
    for name in ("b.jpg", "a.PNG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in metrics.reference_pictures(tmp_path)] == ["a.PNG", "b.jpg"]
    with pytest.raises(MetricError, match="no such folder"):
        metrics.reference_pictures(tmp_path / "nowhere")


def test_pictures_are_scored_at_256_pixels():
    assert metrics.scored(Image.new("RGB", (512, 768))).size == (256, 256)
