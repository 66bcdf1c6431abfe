"""The memory of images in flight, and the step that takes several on at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from booking import book
from torch.utils._python_dispatch import TorchDispatchMode

from tiny_sd_engine.architectures import SCHEDULER
from tiny_sd_engine.device import select_device
from tiny_sd_engine.flight import Image, Job, Task, take_step
from tiny_sd_engine.schedulers import compile_schedule, prediction_slot
from tiny_sd_engine.slab import Slab, call_of

SHAPE = (4, 2, 6)
TOKENS, HIDDEN = 3, 5
NAMES = ("Euler a", "UniPC", "DDPM", "LMS", "Heun", "PNDM")


@pytest.fixture
def slab() -> Slab:
    return Slab(SHAPE, (TOKENS, HIDDEN), 40, select_device("CPU", precision="fp32"))


def text(seed: int) -> torch.Tensor:
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(seed))


def a_job(slab: Slab, name: str = "UniPC", scale: float = 7.5, seeds: Sequence[int] = (5,)) -> Job:
    task = Task(text(1), text(2), name, 12, scale, seeds, width=96, height=32)
    return Job(task, compile_schedule(name, 12, SCHEDULER), slab)


def unet(
    latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor, return_dict: bool
) -> tuple[torch.Tensor]:
    """Depends on all that it is asked, row by row."""
    assert not return_dict
    return (torch.sin(latents + timesteps[:, None, None, None] + embeddings.mean((1, 2))[:, None, None, None]),)


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("out of memory")


def run(*images: Image) -> None:
    """Each to its end, together."""
    while unfinished := [image for image in images if not image.finished]:
        take_step(unfinished, unet)


def test_a_call_names_the_images_their_rows_and_the_texts_of_those() -> None:
    slots, first, last = call_of([7, 3, 5], [2, 1, 2])[:9].view(3, 3).tolist()
    image, kind = call_of([7, 3, 5], [2, 1, 2])[9:].view(2, 5).tolist()
    assert (slots, first, last) == ([7, 3, 5], [0, 2, 3], [1, 2, 4])
    assert (image, kind) == ([0, 0, 1, 2, 2], [0, 1, 1, 0, 1])


def test_images_of_all_schedules_go_on_together_as_they_do_alone(slab: Slab) -> None:
    jobs = [a_job(slab, name, 0.5 + index % 3, seeds=[index, index + 9]) for index, name in enumerate(NAMES)]
    run(*[image for job in jobs for image in job.images])
    for index, (job, name) in enumerate(zip(jobs, NAMES, strict=True)):
        alone = a_job(slab, name, 0.5 + index % 3, seeds=[index, index + 9])
        for image in alone.images:
            run(image)
        torch.testing.assert_close(job.latents(), alone.latents(), rtol=1e-4, atol=1e-4)


class Counter(TorchDispatchMode):
    """Counts operations on tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["UniPC", "Heun"])
def test_a_step_takes_as_many_operations_for_one_image_as_for_ten(slab: Slab, name: str) -> None:
    jobs = [a_job(slab, name, scale, seeds=range(5)) for scale in (7.5, 1.0)]
    images = [image for job in jobs for image in job.images]
    counts = []
    for company in (images[:1], images[:4], images):
        with Counter() as counter:
            take_step(company, unet)
        counts.append(counter.count)
    assert counts[0] == counts[1] == counts[2] < 40


def test_without_guidance_the_prediction_is_the_row_itself(slab: Slab) -> None:
    guided, unguided = a_job(slab, "DDIM", 7.5), a_job(slab, "DDIM", 0.3)
    told = torch.randn(SHAPE)
    for job in (guided, unguided):
        book(job.images[0], told)
    assert torch.equal(slab.past(unguided.images[0].slot)[prediction_slot(0)], told)
    assert torch.equal(guided.latents(), unguided.latents()), "nor is it another where both rows are the same"


@pytest.mark.parametrize("name", ["Euler a", "UniPC"])
def test_a_step_that_failed_can_be_repeated_as_if_it_had_not(slab: Slab, name: str) -> None:
    job, undisturbed = a_job(slab, name, seeds=[5, 6]), a_job(slab, name)
    image, other = job.images
    while not image.finished:
        before = [memory.clone() for memory in (slab.history, slab.position)]
        with pytest.raises(RuntimeError):
            take_step([image, other], failing)
        for memory, as_it_was in zip((slab.history, slab.position), before, strict=True):
            assert torch.equal(memory, as_it_was)
        take_step([image], unet)
    assert (image.evaluation, other.evaluation) == (12, 0)
    run(*undisturbed.images)
    assert torch.equal(image.latents, undisturbed.latents()[0])


def test_images_that_come_later_get_memory_without_a_change_to_the_others(slab: Slab) -> None:
    early = a_job(slab)
    (first,) = early.images
    for _ in range(5):
        take_step([first], unet)
    before = slab.past(first.slot).clone()
    jobs = [a_job(slab, seeds=range(9)) for _ in range(3)]
    slots = {image.slot for job in jobs for image in job.images} | {first.slot}
    assert len(slots) == 28 <= len(slab.history) <= 2 * 28
    assert torch.equal(slab.past(first.slot), before)
    run(first)
    alone = a_job(slab)
    run(*alone.images)
    assert torch.equal(early.latents(), alone.latents())


def test_memory_of_images_that_are_gone_is_used_again_and_holds_nothing_of_theirs(slab: Slab) -> None:
    for _ in range(20):
        job = a_job(slab, "LMS", seeds=[1, 2, 3])
        for image in job.images:
            for _ in range(6):
                book(image, torch.full(SHAPE, torch.nan))
        assert not job.is_finite()
        del image, job
    assert len(slab.history) == 4
    jobs = [a_job(slab, "LMS", seeds=[1, 2]), a_job(slab, "LMS", seeds=[3, 4])]
    assert len(slab.history) == 4
    run(*[image for job in jobs for image in job.images])
    assert all(job.is_finite() for job in jobs)


def test_the_memory_of_an_image_does_not_depend_on_its_steps(slab: Slab) -> None:
    job = a_job(slab)
    held = [memory.shape for memory in (slab.history, slab.table)]
    run(*job.images)
    assert [memory.shape for memory in (slab.history, slab.table)] == held
