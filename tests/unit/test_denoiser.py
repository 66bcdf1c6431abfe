"""The denoising loop in flight: what shares a call, who runs when, and whose failure is whose."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from board_users import Clock
from booking import book

from reference import largest_difference
from tiny_sd_client.parameters import Parameters, Scheduler, parse
from tiny_sd_engine.denoiser import Denoiser
from tiny_sd_engine.device import Device, Pace, select_device
from tiny_sd_engine.errors import Cancelled, EngineError, InvalidInput, Overdue
from tiny_sd_engine.flight import MAX_STEPS, Image, Job, Task
from tiny_sd_engine.pipeline import Pipeline
from tiny_sd_engine.turns import Lately, Speed, Turns

HIDDEN = 48
WINDOW = 77


@dataclass
class Recorder:
    """An observer that keeps everything it is told."""

    calls: list[tuple[int, int]] = field(default_factory=list)
    """Rows and images of each U-Net call."""
    jobs: list[int] = field(default_factory=list)
    evicted: int = 0
    overdue: int = 0
    cancelled: int = 0

    def unet_call(self, rows: int, images: int) -> None:
        self.calls.append((rows, images))

    def denoised(self, seconds: float) -> None:
        assert seconds >= 0

    def jobs_in_flight(self, jobs: int) -> None:
        self.jobs.append(jobs)

    def job_evicted(self) -> None:
        self.evicted += 1

    def job_overdue(self) -> None:
        self.overdue += 1

    def job_cancelled(self) -> None:
        self.cancelled += 1


@pytest.fixture(scope="module")
def cpu() -> Device:
    return select_device("CPU", precision="fp32")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return Pipeline.from_checkpoint(checkpoint, precision="fp32", device="CPU")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path, cpu: Device) -> Denoiser:
    return Denoiser(checkpoint, cpu)


@pytest.fixture
def denoiser(loaded: Denoiser) -> Denoiser:
    """A denoiser with no job yet, told to share calls of up to 16 rows; its recorder is ``denoiser._observer``."""
    return sharing(loaded, 16)


def sharing(loaded: Denoiser, max_rows: int) -> Denoiser:
    """A fresh denoiser around networks that are loaded already."""
    denoiser = copy.copy(loaded)
    denoiser._max_rows = max_rows
    denoiser._observer = Recorder()
    denoiser._jobs = {}
    denoiser._slabs = weakref.WeakValueDictionary()
    denoiser._turns = Turns()
    denoiser._speed = Speed()
    denoiser._round_trip = Lately()
    denoiser._lock = threading.RLock()
    return denoiser


def recorder(denoiser: Denoiser) -> Recorder:
    assert isinstance(denoiser._observer, Recorder)
    return denoiser._observer


def text(seed: int, tokens: int = WINDOW) -> torch.Tensor:
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def a_task(**changes: Any) -> Task:
    task = Task(text(1), text(2), "DDIM", 20, 7.5, seeds=[5], width=128, height=128)
    return replace(task, **changes)


def admit(denoiser: Denoiser, *tasks: Task) -> list[Job]:
    """Jobs under the keys 0, 1, …"""
    return [denoiser.job(key, lambda task=task: task) for key, task in enumerate(tasks)]


def progress(job: Job) -> list[int]:
    return [image.evaluation for image in job.images]


def alone(loaded: Denoiser, task: Task) -> torch.Tensor:
    """The latents of a task that has the denoiser to itself."""
    denoiser = sharing(loaded, 1)
    (job,) = admit(denoiser, task)
    denoiser.run_to_end([job])
    assert job.error is None
    return job.latents()


def spy_on_calls(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> list[list[Image]]:
    """The images of each U-Net call from now on."""
    calls: list[list[Image]] = []
    advance = denoiser._advance

    def spying(images: Sequence[Image]) -> None:
        calls.append(list(images))
        advance(images)

    monkeypatch.setattr(denoiser, "_advance", spying)
    return calls


def random_parameters(source: random.Random) -> Parameters:
    values = {
        "prompt": source.choice(["a red cat", "a (blue:1.4) dog", "a green tree " * 40]),
        "negative_prompt": source.choice(["", "blurry", "ugly " * 100]),
        "scheduler": source.choice([scheduler.value for scheduler in Scheduler]),
        "num_inference_steps": source.choice([20, 23, 31]),
        "guidance_scale": source.choice([0.5, 1.0, 4.0, 7.5]),
        "samples": source.choice([1, 2]),
        "seed": source.randrange(2**40),
        "img_width": source.choice([64, 96]),
        "img_height": source.choice([64, 96]),
    }
    return parse(values, sizes=(64, 96))


# What a picture depends on


@pytest.mark.parametrize("seed", range(2))
def test_on_a_cpu_a_request_gets_the_same_bytes_alone_and_in_company(pipeline: Pipeline, seed: int) -> None:
    many = [random_parameters(random.Random(100 * seed + i)) for i in range(8)]
    together = pipeline.generate_together(many)
    for place in (0, 3, 7):
        assert together[place].images == pipeline.generate(many[place]).images
    assert len({image for generation in together for image in generation.images}) == sum(p.samples for p in many)


@pytest.mark.parametrize("scheduler", ["UniPC", "Euler a", "DPM2 a Karras", "DDPM"])
def test_image_i_of_several_is_the_image_of_seed_plus_i(pipeline: Pipeline, scheduler: str) -> None:
    several = parse(
        {"prompt": "a cat", "scheduler": scheduler, "samples": 3, "seed": 41, "img_width": 64, "img_height": 64}, (64,)
    )
    generation = pipeline.generate(several)
    assert generation.seeds == [41, 42, 43]
    assert len(set(generation.images)) == 3
    for i, image in enumerate(generation.images):
        single = several.model_copy(update={"samples": 1, "seed": 41 + i})
        assert pipeline.generate(single).images == [image]


def test_what_a_refused_request_leaves_undone_does_not_become_the_picture_of_the_next(pipeline: Pipeline) -> None:
    size = {"img_width": 64, "img_height": 64}
    first, second = (parse({"prompt": prompt, "seed": 1, **size}, (64,)) for prompt in ("a cat", "a dog"))
    expected = pipeline.generate(second).images
    too_long = first.model_copy(update={"prompt": "a " * 1990})
    with pytest.raises(InvalidInput):
        pipeline.generate_together([first, too_long])
    assert pipeline.denoiser.jobs() == []
    assert pipeline.generate(second).images == expected


def test_requests_that_share_calls_get_the_pictures_they_get_alone(checkpoint: Path, cpu: Device) -> None:
    shared = Pipeline(checkpoint, cpu, max_rows=16)
    watch = Recorder()
    shared.denoiser._observer = watch
    source = random.Random(5)
    many = [random_parameters(source).model_copy(update={"img_width": 64, "img_height": 64}) for _ in range(6)]
    together = shared.generate_together(many)
    assert max(images for _, images in watch.calls) >= 4
    assert len(watch.calls) < sum(images for _, images in watch.calls) / 2, "most calls are shared"
    single = Pipeline(checkpoint, cpu)
    for parameters, generation in zip(many, together, strict=True):
        expected = single.generate(parameters).pixels
        for ours, theirs in zip(generation.pixels, expected, strict=True):
            assert theirs.std() > 10
            assert largest_difference(ours, theirs) <= 1


def test_an_evicted_job_that_is_asked_for_again_gives_the_same_result(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 1)
    task = a_task(scheduler="Euler a", num_inference_steps=5, seeds=[5, 6])
    (job,) = admit(denoiser, task)
    denoiser.run([job], 0.0)
    assert denoiser.evict(older_than_s=-1) == [job]
    (again,) = admit(denoiser, task)
    assert again is not job
    assert progress(again) == [0, 0]
    denoiser.run_to_end([again])
    assert torch.equal(again.latents(), alone(loaded, task))


# What shares a call


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 7, 16])
def test_a_call_holds_at_most_max_rows_but_never_splits_an_image(loaded: Denoiser, max_rows: int) -> None:
    denoiser = sharing(loaded, max_rows)
    tasks = [
        a_task(num_inference_steps=4, guidance_scale=scale, seeds=seeds)
        for scale, seeds in [(7.5, [1]), (1.0, [2, 3, 4]), (3.0, [5, 6]), (0.5, [7])]
    ]
    jobs = admit(denoiser, *tasks)
    denoiser.run_to_end(jobs)
    calls = recorder(denoiser).calls
    assert all(rows <= max_rows or images == 1 for rows, images in calls)
    assert max(rows for rows, _ in calls) == max(2, min(max_rows, 10)), "what fits is used"
    assert sum(images for _, images in calls) == 4 * 7
    assert sum(rows for rows, _ in calls) == 4 * (2 + 3 + 4 + 1)


@pytest.mark.parametrize(("edge", "rows"), [(64, 16), (128, 16), (192, 6), (256, 4)])
def test_a_call_holds_fewer_of_larger_pictures(
    loaded: Denoiser, monkeypatch: pytest.MonkeyPatch, edge: int, rows: int
) -> None:
    denoiser = sharing(loaded, 16)
    monkeypatch.setattr(denoiser, "_usual_area", (128 // denoiser._pixels_per_latent) ** 2)
    job = denoiser.job(0, lambda: a_task(num_inference_steps=2, seeds=range(16), width=edge, height=edge))
    denoiser.run_to_end([job])
    assert max(rows for rows, _ in recorder(denoiser).calls) == rows


@pytest.mark.parametrize(
    "change",
    [
        {"width": 64},
        {"height": 64},
        {"width": 64, "height": 256},
        {"prompt_embeds": text(1, 2 * WINDOW), "negative_embeds": text(2, 2 * WINDOW)},
    ],
    ids=["width", "height", "equal-area", "windows"],
)
def test_pictures_and_prompts_of_other_sizes_do_not_share_a_call(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    calls = spy_on_calls(denoiser, monkeypatch)
    usual, twin, other = admit(
        denoiser, *(a_task(num_inference_steps=4, seeds=[1, 2], **more) for more in ({}, {}, change))
    )
    denoiser.run_to_end([usual, twin, other])
    jobs_of_calls = [{image.job for image in call} for call in calls]
    assert jobs_of_calls.count({usual, twin}) == 4
    assert jobs_of_calls.count({other}) == 4
    assert len(calls) == 8


def test_everything_else_may_differ_within_a_call(denoiser: Denoiser) -> None:
    jobs = admit(
        denoiser,
        a_task(scheduler="Heun", num_inference_steps=20),
        a_task(scheduler="LMS", num_inference_steps=31, guidance_scale=1.0),
        a_task(scheduler="DDPM", num_inference_steps=100, seeds=[7, 8], prompt_embeds=text(9)),
    )
    denoiser.run(jobs, 0.0)
    assert recorder(denoiser).calls == [(2 + 1 + 4, 4)]


@pytest.mark.parametrize(("scale", "rows"), [(0.1, 1), (1.0, 1), (math.nextafter(1.0, 2), 2), (7.5, 2)])
def test_guidance_of_at_most_one_takes_one_row(denoiser: Denoiser, scale: float, rows: int) -> None:
    (job,) = admit(denoiser, a_task(guidance_scale=scale, seeds=[1, 2, 3]))
    assert job.rows == rows
    denoiser.run([job], 0.0)
    assert recorder(denoiser).calls == [(3 * rows, 3)]


def test_without_guidance_the_negative_prompt_has_no_effect(loaded: Denoiser) -> None:
    task = a_task(guidance_scale=1.0, num_inference_steps=3)
    assert torch.equal(alone(loaded, task), alone(loaded, replace(task, negative_embeds=text(99))))
    guided = replace(task, guidance_scale=1.5)
    assert not torch.equal(alone(loaded, guided), alone(loaded, replace(guided, negative_embeds=text(99))))


# Who runs, and for how long


def test_a_run_makes_one_call_when_its_time_is_up_at_once(denoiser: Denoiser) -> None:
    jobs = admit(denoiser, a_task(), a_task(width=64))
    for runs in range(1, 4):
        denoiser.run(jobs, 0.0)
        assert len(recorder(denoiser).calls) == runs


def test_a_run_lasts_as_long_as_its_quantum(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, clock = denoiser._unet, Clock()

    def slow(*rows: torch.Tensor, **named: Any) -> Any:
        clock.now += 1 / 16
        return unet(*rows, **named)

    slow.config = unet.config  # type: ignore[attr-defined]
    monkeypatch.setattr(denoiser, "_unet", slow)
    monkeypatch.setattr("tiny_sd_engine.denoiser.time", clock)
    (job,) = admit(denoiser, a_task(num_inference_steps=100))
    start = clock.now
    denoiser.run([job], 0.3)
    assert clock.now - start == 5 / 16, "the last call begins before the end"
    assert progress(job) == [5]


def test_a_run_ends_after_the_call_behind_which_it_is_told_to(denoiser: Denoiser) -> None:
    (job,) = admit(denoiser, a_task(num_inference_steps=100))
    asked: list[float] = []

    def ends() -> bool:
        asked.append(denoiser.seconds_left().get(job, -1.0))  # the asked may look at the denoiser
        return len(asked) == 3

    denoiser.run([job], math.inf, ends)
    assert progress(job) == [3]


@pytest.mark.parametrize(("channels", "threads"), [(128, 1), (1280, 3)])
def test_a_narrow_unet_has_one_thread(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, channels: int, threads: int
) -> None:
    unet, seen = denoiser._unet, set[int]()

    def watched(*rows: torch.Tensor, **named: Any) -> Any:
        seen.add(torch.get_num_threads())
        return unet(*rows, **named)

    watched.config = unet.config  # type: ignore[attr-defined]
    monkeypatch.setattr(denoiser, "_unet", watched)
    monkeypatch.setattr(denoiser, "_channels_within", channels)
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        denoiser.run_to_end(admit(denoiser, a_task(num_inference_steps=1)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)
    assert seen == {threads}


def test_a_slice_is_as_long_as_round_trips_are_dear_but_not_longer_than_allowed(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("tiny_sd_engine.denoiser.time", clock)
    (job,) = admit(denoiser, a_task(num_inference_steps=100))
    assert denoiser.time_slice_s(0.25) == 0.25
    clock.now += 5  # nobody came back: the server was idle
    denoiser.run([job], 0.0)
    assert denoiser.time_slice_s(0.25) == 0.25
    clock.now += 0.002
    denoiser.run([job], 0.0)
    assert denoiser.time_slice_s(0.25) == pytest.approx(0.1)
    denoiser.remove(0)
    other = denoiser.job("other", a_task)
    clock.now += 7  # this one was not there before
    denoiser.run([other], 0.0)
    assert denoiser.time_slice_s(0.25) == pytest.approx(0.1)
    for _ in range(15):
        clock.now += 0.004
        denoiser.run([other], 0.0)
    assert denoiser.time_slice_s(0.25) == pytest.approx(0.2, rel=0.01)
    clock.now += 1
    denoiser.run([other], 0.0)
    assert denoiser.time_slice_s(0.25) == 0.25


def test_a_run_returns_as_soon_as_one_job_has_ended(denoiser: Denoiser) -> None:
    short, long = admit(denoiser, a_task(num_inference_steps=3), a_task(num_inference_steps=50))
    denoiser.run([short, long], math.inf)
    assert short.finished
    assert not long.ended
    assert progress(long) == [3]
    denoiser.run([short, long], math.inf)
    assert progress(long) == [3], "an ended job is to be handed back first"


def test_a_short_job_that_comes_later_is_done_while_a_long_one_goes_on(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 1)
    long_task, short_task = a_task(num_inference_steps=40, scheduler="LMS"), a_task(num_inference_steps=4, seeds=[8])
    long = denoiser.job("long", lambda: long_task)
    for _ in range(10):
        denoiser.run([long], 0.0)
    short = denoiser.job("short", lambda: short_task)
    denoiser.run([long, short], math.inf)
    assert short.finished
    assert progress(long) == [10], "it waits, since by even sharing the short one would be done first"
    denoiser.run_to_end([long])
    assert torch.equal(short.latents(), alone(loaded, short_task))
    assert torch.equal(long.latents(), alone(loaded, long_task))


def test_of_jobs_that_cannot_share_a_call_the_first_to_come_goes_on_once_all_have_begun(
    loaded: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = sharing(loaded, 2)
    calls = spy_on_calls(denoiser, monkeypatch)
    first, second = admit(denoiser, a_task(width=64, height=128), a_task(width=128, height=64))
    for _ in range(6):
        denoiser.run([second, first], 0.0)
    assert [call[0].job for call in calls] == [first, second, first, first, first, first]


@pytest.mark.parametrize("max_rows", [2, 4, 16])
def test_no_job_ends_later_than_by_even_sharing_whoever_asks_first(loaded: Denoiser, max_rows: int) -> None:
    denoiser = sharing(loaded, max_rows)
    jobs = admit(
        denoiser,
        a_task(width=128, num_inference_steps=30),
        a_task(width=64, height=64, seeds=[1, 2, 3], num_inference_steps=20),
        a_task(width=64, num_inference_steps=20),
        a_task(width=64, height=96, guidance_scale=1.0, num_inference_steps=20),
    )
    first_steps = sum(job.rows * image.slab.area for job in jobs for image in job.images)
    by_even_sharing = [sum(min(job.work, other.work) for other in jobs) for job in jobs]
    unfinished, turn = list(jobs), 0
    while unfinished:
        turn += 1
        denoiser.run(unfinished[turn % len(unfinished) :] + unfinished[: turn % len(unfinished)], 0.0)
        done = sum(sum(progress(job)) * job.rows * job.images[0].slab.area for job in jobs)
        for job in [job for job in unfinished if job.finished]:
            assert done <= by_even_sharing[jobs.index(job)] + first_steps
            assert all(sum(progress(other)) for other in jobs), "each has begun"
            unfinished.remove(job)


def test_a_job_that_comes_has_a_step_done_before_others_go_on(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 1)
    first = denoiser.job("first", lambda: a_task(num_inference_steps=20))
    denoiser.run([first], 0.0)
    several = denoiser.job("several", lambda: a_task(num_inference_steps=20, scheduler="Heun", seeds=[1, 2]))
    calls = 0
    while not several.step:
        denoiser.run([first, several], 0.0)
        calls += 1
    assert progress(first) == [1]
    assert calls <= 2 * 2, "two images, and at most two evaluations a step"
    denoiser.run([first, several], 0.0)
    assert progress(first) == [2]


def test_the_images_of_a_job_go_on_together(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 2)
    (job,) = admit(denoiser, a_task(seeds=[1, 2, 3], num_inference_steps=20))
    for _ in range(20):
        denoiser.run([job], 0.0)
        assert max(progress(job)) - min(progress(job)) <= 1


def test_a_small_job_does_not_wait_for_the_steps_of_large_ones(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 1)
    large = [denoiser.job(f"large {i}", lambda: a_task(width=256, height=256, num_inference_steps=50)) for i in (1, 2)]
    for _ in range(4):
        denoiser.run(large, 0.0)
    small = denoiser.job("small", lambda: a_task(width=64, height=64, num_inference_steps=16))
    calls = 0
    while not small.finished:
        denoiser.run([*large, small], 0.0)
        calls += 1
    assert calls <= 16 + 4, "a step of a large one is worth sixteen of the small one"


def test_a_job_that_was_away_keeps_its_place_in_line(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 1)
    away, here = admit(denoiser, a_task(num_inference_steps=50), a_task(num_inference_steps=50))
    for _ in range(20):
        denoiser.run([here], 0.0)
    for _ in range(10):
        denoiser.run([here, away], 0.0)
    assert (progress(away), progress(here)) == ([10], [20])


def test_the_seconds_left_of_a_job_hold_those_of_the_jobs_before_it(
    loaded: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = sharing(loaded, 1)
    short, long = admit(denoiser, a_task(num_inference_steps=4), a_task(num_inference_steps=10))
    assert denoiser.seconds_left() == {}
    now = [0.0]
    monkeypatch.setattr("tiny_sd_engine.denoiser.time.monotonic", lambda: now[0])
    advance = denoiser._advance
    monkeypatch.setattr(denoiser, "_advance", lambda images: (advance(images), now.__setitem__(0, now[0] + 2.0)))
    denoiser.run([short, long], 0.0)
    assert denoiser.seconds_left() == {short: pytest.approx(3 * 2.0), long: pytest.approx(13 * 2.0)}
    denoiser.stop(short, Cancelled())
    assert denoiser.seconds_left() == {long: pytest.approx(10 * 2.0)}


def test_a_job_that_was_stopped_is_nobodys_competitor(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 1)
    stopped = denoiser.job("stopped", lambda: a_task(num_inference_steps=30))
    denoiser.job("first", lambda: a_task(num_inference_steps=30))
    denoiser.stop(stopped, Cancelled())
    denoiser.remove("stopped")
    first = denoiser.job("first", lambda: a_task(num_inference_steps=30))
    for _ in range(20):
        denoiser.run([first], 0.0)
    second = denoiser.job("second", lambda: a_task(num_inference_steps=12))
    for _ in range(8):
        denoiser.run([second, first], 0.0)
    assert (progress(first), progress(second)) == ([27], [1]), "with ten steps to go it would be done first"


def test_a_job_that_is_not_asked_for_stands_still(denoiser: Denoiser) -> None:
    asked, other = admit(denoiser, a_task(), a_task(seeds=[9]))
    denoiser.run([asked], 0.0)
    assert (progress(asked), progress(other)) == ([1], [0])


def test_running_nothing_does_nothing(denoiser: Denoiser) -> None:
    denoiser.run([], math.inf)
    denoiser.run_to_end([])
    assert recorder(denoiser).calls == []


def test_the_same_key_is_the_same_job_until_it_is_removed(denoiser: Denoiser) -> None:
    def unasked() -> Task:
        raise AssertionError("the job is there already")

    first = denoiser.job("key", a_task)
    assert denoiser.job("key", unasked) is first
    assert denoiser.jobs() == [first]
    denoiser.remove("key")
    assert denoiser.jobs() == []
    denoiser.remove("key")
    assert denoiser.job("key", a_task) is not first
    assert recorder(denoiser).jobs == [1, 0, 0, 1]


# Whose failure is whose


def test_an_overdue_job_is_stopped_and_its_neighbour_goes_on(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy_on_calls(denoiser, monkeypatch)
    now = time.time()
    late, punctual = admit(denoiser, a_task(deadline=now + 3600), a_task(num_inference_steps=6, deadline=now + 7200))
    denoiser.run([late, punctual], 0.0)
    assert {image.job for image in calls[-1]} == {late, punctual}
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    denoiser.run([late, punctual], math.inf)
    assert isinstance(late.error, Overdue)
    assert late.ended
    assert not late.finished
    assert len(calls) == 1, "an ended job is handed back before the next call"
    denoiser.run([punctual], math.inf)
    assert punctual.finished
    assert punctual.error is None
    assert late.images[0].evaluation == 1
    assert recorder(denoiser).overdue == 1


def test_a_deadline_that_has_passed_costs_no_call(denoiser: Denoiser) -> None:
    jobs = admit(denoiser, a_task(deadline=time.time() - 1))
    denoiser.run(jobs, math.inf)
    assert isinstance(jobs[0].error, Overdue)
    assert recorder(denoiser).calls == []


def test_a_job_that_is_finished_is_never_overdue(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    jobs = admit(denoiser, a_task(num_inference_steps=2, deadline=now + 3600))
    denoiser.run_to_end(jobs)
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    denoiser.run(jobs, math.inf)
    assert jobs[0].error is None
    assert recorder(denoiser).overdue == 0


def test_a_job_that_was_stopped_costs_no_further_call_and_its_neighbour_goes_on(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = spy_on_calls(denoiser, monkeypatch)
    stopped, neighbour = admit(denoiser, a_task(), a_task(num_inference_steps=4, seeds=[9]))
    denoiser.run([stopped, neighbour], 0.0)
    reason = Cancelled()
    denoiser.stop(stopped, reason)
    assert stopped.error is reason
    assert stopped.ended
    assert not stopped.finished
    denoiser.run([stopped, neighbour], math.inf)
    assert len(calls) == 1, "an ended job is handed back before the next call"
    denoiser.run_to_end([stopped, neighbour])
    assert [image.job for call in calls[1:] for image in call] == [neighbour] * 3
    assert neighbour.finished
    assert neighbour.error is None


def test_the_observer_is_told_once_why_a_job_was_stopped(denoiser: Denoiser) -> None:
    cancelled, overdue = admit(denoiser, a_task(), a_task(deadline=time.time() - 1))
    denoiser.stop(cancelled, Cancelled())
    denoiser.stop(overdue, Overdue())
    denoiser.run([cancelled, overdue], math.inf)
    assert (recorder(denoiser).cancelled, recorder(denoiser).overdue) == (1, 1)
    assert recorder(denoiser).calls == []


def failing_at(rows: int, unet: Callable[..., Any]) -> Callable[..., Any]:
    return failing_if(lambda sample: len(sample) == rows, unet)


def failing_if(condition: Callable[[torch.Tensor], object], unet: Callable[..., Any]) -> Callable[..., Any]:
    def call(sample: torch.Tensor, *more: Any, **named: Any) -> Any:
        if condition(sample):
            raise RuntimeError("out of memory")
        return unet(sample, *more, **named)

    call.config = unet.config  # type: ignore[attr-defined]
    return call


def test_a_call_that_is_too_large_is_made_in_parts(
    denoiser: Denoiser, loaded: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoiser, "_unet", failing_if(lambda sample: len(sample) > 2, denoiser._unet))
    tasks = [a_task(seeds=[1, 2]), a_task()]
    jobs = admit(denoiser, *tasks)
    denoiser.run_to_end(jobs)
    for job, task in zip(jobs, tasks, strict=True):
        assert job.error is None
        assert torch.equal(job.latents(), alone(loaded, task))


def test_a_job_that_makes_calls_fail_costs_its_neighbours_nothing(
    denoiser: Denoiser, loaded: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = a_task(num_inference_steps=4)
    guilty, neighbour = admit(denoiser, a_task(seeds=[1, 2]), task)
    mark = guilty.images[0].latents[0, 0, 0].item()  # of the first step; after that there is nothing to fail
    calls = spy_on_calls(denoiser, monkeypatch)
    monkeypatch.setattr(denoiser, "_unet", failing_if(lambda sample: sample.eq(mark).any(), denoiser._unet))
    denoiser.run_to_end([guilty, neighbour])
    assert type(guilty.error) is EngineError
    assert str(guilty.error) == "the denoiser failed: RuntimeError"
    assert isinstance(guilty.error.__cause__, RuntimeError)
    assert guilty.ended
    assert not guilty.finished
    assert [len(call) for call in calls[:3]] == [3, 1, 1], "the guilty one's other picture is not tried any more"
    assert neighbour.error is None
    assert torch.equal(neighbour.latents(), alone(loaded, task))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_that_hold_no_picture_are_an_error(
    denoiser: Denoiser, loaded: Denoiser, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    task = a_task(num_inference_steps=3)
    broken, neighbour = admit(denoiser, a_task(num_inference_steps=3, seeds=[1, 2]), task)
    book(broken.images[1], torch.full_like(broken.images[1].latents, value))
    denoiser.run_to_end([broken, neighbour])
    assert type(broken.error) is EngineError
    assert str(broken.error) == "the denoiser failed: the latents are not finite"
    torch.testing.assert_close(neighbour.latents(), alone(loaded, task), rtol=0, atol=0.005)


def test_latents_that_cannot_be_looked_at_are_an_error_of_that_job_alone(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    guilty, neighbour = admit(denoiser, *(a_task(num_inference_steps=2, seeds=[seed]) for seed in (1, 2)))
    monkeypatch.setattr(guilty, "is_finite", lambda: 1 / 0)
    denoiser.run_to_end([guilty, neighbour])
    assert str(guilty.error) == "the denoiser failed: ZeroDivisionError"
    assert neighbour.error is None
    assert neighbour.finished


def test_a_failed_call_holds_no_memory_while_its_images_get_calls_of_their_own(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = denoiser._unet.conv_out
    compute = last.forward
    activations: list[weakref.ref[torch.Tensor]] = []

    def out_of_memory(rows: torch.Tensor) -> torch.Tensor:
        assert all(held() is None for held in activations)
        if len(rows) > 2 or not activations:
            activations.append(weakref.ref(rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(rows)

    monkeypatch.setattr(last, "forward", out_of_memory)
    monkeypatch.setattr("tiny_sd_engine.denoiser.log.disabled", True)  # pytest keeps all records, with their tracebacks
    jobs = admit(denoiser, a_task(seeds=[1]), a_task(seeds=[2]))
    denoiser.run(jobs, 0.0)
    assert [job.error for job in jobs] == [None, None]
    assert len(activations) == 1
    activations.clear()
    denoiser.run(jobs[:1], 0.0)
    assert isinstance(jobs[0].error, EngineError)
    assert activations[0]() is None, "nor does the job's error"


def test_a_job_that_is_removed_leaves_its_memory_at_once(denoiser: Denoiser) -> None:
    """The memory of a GPU cannot wait until Python looks for cycles, which many small objects bring about, not a few
    large ones."""
    admit(denoiser, a_task())
    denoiser.run(denoiser.jobs(), 0.0)
    history = weakref.ref(denoiser.jobs()[0].images[0].slab.history)
    gc.disable()
    try:
        denoiser.remove(0)
        assert history() is None
    finally:
        gc.enable()


def test_memory_of_one_size_is_kept_for_as_long_as_a_job_has_it(denoiser: Denoiser) -> None:
    admit(denoiser, a_task(seeds=[1, 2]), a_task(seeds=[3]), a_task(width=64))
    assert len(denoiser._slabs) == 2
    slab = denoiser.jobs()[0].images[0].slab
    assert slab is denoiser.jobs()[1].images[0].slab
    slots = len(slab.history)
    for _ in range(10):
        denoiser.remove(0)
        denoiser.job(0, lambda: a_task(seeds=[4, 5]))
    assert len(slab.history) == slots
    del slab
    for key in range(3):
        assert len(denoiser._slabs) == 2 - (key == 2)
        denoiser.remove(key)
    assert not denoiser._slabs


@pytest.mark.parametrize(("kind", "wait"), [(Device, "synchronize"), (Pace, "keep")])
def test_a_failure_that_the_device_tells_of_late_fails_the_jobs_of_the_run_alone(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, kind: type, wait: str
) -> None:
    def fail(_self: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    first, second, third = admit(denoiser, a_task(), a_task(seeds=[6]), a_task(seeds=[7]))
    denoiser.stop(third, Cancelled())
    with monkeypatch.context() as patched:
        patched.setattr(kind, wait, fail)
        denoiser.run([first], 0.0)
        denoiser.run([third], 0.0)
    assert isinstance(first.error, EngineError)
    assert isinstance(third.error, Cancelled)
    denoiser.run_to_end([second])
    assert second.error is None


def test_the_denoiser_works_on_after_a_failure(denoiser: Denoiser, loaded: Denoiser) -> None:
    unet = denoiser._unet
    denoiser._unet = failing_at(2, unet)
    task = a_task(num_inference_steps=3)
    (job,) = admit(denoiser, task)
    denoiser.run_to_end([job])
    assert job.error is not None
    denoiser._unet = unet
    denoiser.remove(0)
    (job,) = admit(denoiser, task)
    denoiser.run_to_end([job])
    assert torch.equal(job.latents(), alone(loaded, task))


def test_only_jobs_that_nobody_has_run_for_long_are_evicted(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    seen, unseen = admit(denoiser, a_task(), a_task())
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    for _ in range(3):
        denoiser.run([seen], 0.0)
    assert denoiser.evict(older_than_s=200) == []
    assert denoiser.evict(older_than_s=50) == [unseen]
    assert recorder(denoiser).evicted == 1
    assert recorder(denoiser).jobs[-1] == 1
    assert denoiser.job(0, a_task) is seen
    assert denoiser.job(1, a_task) is not unseen


def test_who_comes_alone_is_denoised_together_with_those_who_wait_for_the_next_run(denoiser: Denoiser) -> None:
    first = denoiser.job("first", a_task)
    assert denoiser.others([first]) == []
    denoiser.run([first], 0.0)
    second = denoiser.job("second", a_task)
    assert denoiser.others([second]) == [first]
    denoiser.run([second], 0.0)
    denoiser.run([second], 0.0, others=[first])
    assert (progress(first), progress(second)) == ([2], [2])
    assert recorder(denoiser).calls[-1] == (4, 2)
    assert denoiser.others([first, second]) == []


def test_a_job_that_has_ended_or_is_no_longer_asked_for_is_not_denoised_beside_others(denoiser: Denoiser) -> None:
    ended, gone, other = admit(denoiser, a_task(num_inference_steps=2), a_task(), a_task(num_inference_steps=100))
    denoiser.run_to_end([ended])
    assert denoiser.others([other]) == [gone]
    while denoiser.others([other]):
        denoiser.run([other], 0.0, others=denoiser.others([other]))
    assert progress(gone) == [2], "the two runs after the one that it missed first"
    assert denoiser.evict(older_than_s=0.0) == [ended, gone, other]


def test_a_job_that_was_stopped_while_nobody_asked_for_it_is_counted_once(denoiser: Denoiser) -> None:
    here, other = admit(denoiser, a_task(), a_task())

    def cancelled() -> bool:
        denoiser.stop(other, Cancelled())
        return False

    denoiser.run([here], math.inf, cancelled, others=[other])
    denoiser.stop(other, Overdue())  # whoever asks for it next learns of it anew
    assert isinstance(other.error, Cancelled)
    assert (recorder(denoiser).cancelled, recorder(denoiser).overdue) == (1, 0)


def test_a_run_ends_with_a_job_that_was_not_asked_for_in_it(denoiser: Denoiser) -> None:
    here, short = admit(denoiser, a_task(num_inference_steps=100), a_task(num_inference_steps=3))
    denoiser.run([here], math.inf, others=[short])
    assert short.finished
    assert progress(here) == [3]


def test_a_job_that_waits_for_a_slow_run_of_others_is_not_evicted(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    seen, waiting = admit(denoiser, a_task(), a_task())
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    denoiser.run([seen], 0.0)
    assert denoiser.evict(older_than_s=50) == []
    monkeypatch.setattr(time, "monotonic", lambda: now + 151)
    assert denoiser.evict(older_than_s=50) == [seen, waiting]


def test_a_run_that_takes_longer_than_the_patience_evicts_none_of_its_jobs(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    (job,) = admit(denoiser, a_task(num_inference_steps=2))
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    denoiser.run([job], math.inf)
    assert denoiser.evict(older_than_s=50) == []


def test_jobs_may_be_evicted_and_removed_from_other_threads_while_they_run(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 1)
    stop = threading.Event()
    disturbed = []
    failures: list[BaseException] = []

    def disturb(name: str) -> None:
        try:
            for key in zip(itertools.repeat(name), itertools.count()):
                if stop.is_set():
                    return
                denoiser.job(key, a_task)
                denoiser.evict(older_than_s=0.001)
                denoiser.remove(key)
                disturbed.append(key)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=disturb, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    while {name for name, _ in disturbed[:]} != {"first", "second"} and not failures:
        time.sleep(0.001)
    tasks = [a_task(scheduler=name, num_inference_steps=8, seeds=[3, 4]) for name in ("Euler a", "PNDM")]
    # As Triton does it: between any two runs the other threads may come in and evict the jobs.
    for _ in range(3):
        jobs = admit(denoiser, *tasks)
        while unfinished := [job for job in jobs if not job.ended]:
            denoiser.run(unfinished, 0.0)
            time.sleep(0.002)
        for job, task in zip(jobs, tasks, strict=True):
            assert torch.equal(job.latents(), alone(loaded, task))
        for key in range(len(jobs)):
            denoiser.remove(key)
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert failures == []
    assert {name for name, _ in disturbed} == {"first", "second"}
    assert denoiser._jobs == {}
    assert recorder(denoiser).jobs[-1] == 0


# How far a job is


@pytest.mark.parametrize("samples", [1, 3, 4])
@pytest.mark.parametrize("scheduler", [scheduler.value for scheduler in Scheduler])
def test_steps_never_fall_and_end_at_what_was_asked_for(loaded: Denoiser, scheduler: str, samples: int) -> None:
    task = a_task(scheduler=scheduler, num_inference_steps=20, seeds=list(range(samples)), width=32, height=32)
    (job,) = admit(sharing(loaded, 1), task)
    steps = [job.step]
    source = random.Random(samples)
    while not job.finished:
        image = source.choice([image for image in job.images if not image.finished])
        book(image, torch.zeros_like(image.latents))
        steps.append(job.step)
        assert job.finished == (job.step == 20)
    assert steps[0] == 0
    assert sorted(set(steps)) == list(range(21)), "each step is seen"
    assert steps == sorted(steps)


def test_a_job_whose_images_take_turns_is_as_far_as_they_are_on_average(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 2)
    (job,) = admit(denoiser, a_task(num_inference_steps=20, seeds=[1, 2]))
    seen = []
    for _ in range(5):
        denoiser.run([job], 0.0)
        seen.append((progress(job), job.step))
    assert seen == [([1, 0], 0), ([1, 1], 1), ([2, 1], 1), ([2, 2], 2), ([3, 2], 2)]


def test_estimates_are_float32_on_the_cpu_in_the_order_of_the_seeds_and_end_as_the_latents(loaded: Denoiser) -> None:
    denoiser = sharing(loaded, 2)
    (job,) = admit(denoiser, a_task(seeds=[1, 2, 3], num_inference_steps=4, width=64, height=96))
    while not job.finished:
        denoiser.run([job], 0.0)
        estimate = job.estimate()
        assert estimate.shape == (3, 4, 6, 4)
        assert (estimate.dtype, estimate.device.type) == (torch.float32, "cpu")
        for own, image in zip(estimate, job.images, strict=True):
            assert torch.equal(own, image.estimate())
    assert torch.equal(job.estimate(), job.latents())


# What is refused

LIMIT = f"allowed: 1 to {MAX_STEPS}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negative_embeds": text(2, 2 * WINDOW)}, "negative_embeds: must have the shape of prompt_embeds"),
        ({"prompt_embeds": torch.zeros(77, 47), "negative_embeds": torch.zeros(77, 47)}, "prompt_embeds: "),
        ({"prompt_embeds": torch.zeros(48), "negative_embeds": torch.zeros(48)}, "prompt_embeds: must be [tokens, 48]"),
        ({"prompt_embeds": torch.zeros(1, 77, 48), "negative_embeds": torch.zeros(1, 77, 48)}, "prompt_embeds: "),
        ({"prompt_embeds": torch.zeros(0, 48), "negative_embeds": torch.zeros(0, 48)}, "prompt_embeds: "),
        ({"width": 0}, "img_width: got 0; allowed: multiples of 16 pixels"),
        ({"width": -64}, "img_width: got -64; "),
        ({"height": 100}, "img_height: got 100; allowed: multiples of 16 pixels"),
        ({"seeds": []}, "seed: "),
        ({"seeds": [1, -1]}, "seed: "),
        ({"seeds": [2**63]}, "seed: "),
        ({"num_inference_steps": 0}, f"num_inference_steps: got 0; {LIMIT}"),
        ({"num_inference_steps": MAX_STEPS + 1}, f"num_inference_steps: got {MAX_STEPS + 1}; {LIMIT}"),
        ({"guidance_scale": math.nan}, "guidance_scale: got nan; "),
        ({"guidance_scale": math.inf}, "guidance_scale: got inf; "),
        ({"scheduler": "none such"}, "scheduler: got 'none such'; allowed: DDIM, "),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_task_that_cannot_be_run_is_refused_by_name(denoiser: Denoiser, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        denoiser.job("key", lambda: a_task(**change))
    assert str(caught.value).startswith(message)
    assert caught.value.parameter == message.split(":", maxsplit=1)[0]
    assert recorder(denoiser).jobs == []
    assert denoiser.job("key", a_task).task.seeds == [5], "the key is free again"


def test_the_largest_values_are_not_refused(denoiser: Denoiser) -> None:
    (job,) = admit(denoiser, a_task(seeds=[2**63 - 1, 0], num_inference_steps=MAX_STEPS, scheduler="Heun"))
    denoiser.run([job], 0.0)
    assert progress(job) == [1, 1]
    assert job.error is None


@pytest.mark.parametrize("scheduler", [scheduler.value for scheduler in Scheduler])
def test_a_single_step_is_enough_for_every_scheduler(loaded: Denoiser, scheduler: str) -> None:
    assert alone(loaded, a_task(scheduler=scheduler, num_inference_steps=1)).isfinite().all()


def test_warming_up_leaves_nothing_behind(denoiser: Denoiser) -> None:
    denoiser.warm_up(96, 64)
    assert recorder(denoiser) == Recorder()
    assert denoiser._jobs == {}
    assert not denoiser._slabs


def test_on_a_cpu_nothing_is_asked_of_cuda(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Event", "Stream", "CUDAGraph", "current_stream", "device", "graph", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, None)
    denoiser.warm_up(96, 64)
    (job,) = admit(denoiser, a_task(scheduler="Euler a", num_inference_steps=3))
    denoiser.run_to_end([job])
    assert job.error is None


def test_latents_are_float32_on_the_cpu_in_the_order_of_the_seeds(loaded: Denoiser) -> None:
    latents = alone(loaded, a_task(seeds=[1, 2, 3], num_inference_steps=2, width=64, height=96))
    assert latents.shape == (3, 4, 6, 4)
    assert (latents.dtype, latents.device.type) == (torch.float32, "cpu")
    second = alone(loaded, a_task(seeds=[2], num_inference_steps=2, width=64, height=96))
    assert np.array_equal(latents[1:2].numpy(), second.numpy())
