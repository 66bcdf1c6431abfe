"""Training: what is learned from, what is saved, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

import distill
from distillation import trainer
from distillation.batches import Batches
from distillation.data import Drawings
from distillation.encoders import embeddings_each_time, embeddings_once, latents_each_time, latents_once
from distillation.errors import DistillError, Diverged, UnfitOptions
from distillation.lesson import Lesson
from distillation.losses import Weights, watched
from distillation.networks import Networks, load_networks
from distillation.options import Options
from distillation.plot import plot
from distillation.record import Entry, Record, read
from distillation.reporter import Reporter
from distillation.surgery import make_student
from distillation.trainer import train
from local_server.install import ROOT
from tiny_sd_client.parameters import parse
from tiny_sd_engine.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
FOUR_LEVELS = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 24, 24),
    "layers_per_block": 2,
    "attention_head_dim": 2,
    "cross_attention_dim": 48,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def teacher(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``test`` checkpoint with a U-Net that can be cut, for pictures of 128 pixels."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    shutil.copytree(checkpoint, folder)
    (folder / "LICENSE.md").write_text("the teacher's terms")
    torch.manual_seed(0)
    UNet2DConditionModel(**FOUR_LEVELS).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share, as runs do."""
    return tmp_path_factory.mktemp("latents")


@pytest.fixture
def options(teacher: Path, latents: Path, tmp_path: Path) -> Options:
    """Six short steps with a teacher."""
    return Options(
        checkpoint=teacher,
        student="tiny",
        out=tmp_path / "student",
        data="drawings:10",
        steps=6,
        batch=2,
        learning_rate=1e-3,
        warmup=2,
        save_every=3,
        cache=latents,
        device="CPU",
    )


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take most of the time, and one test looks at them."""
    monkeypatch.setattr(trainer, "plot", lambda *_: None)


def change(options: Options, **values: Any) -> Options:
    return dataclasses.replace(options, **values)


def losses(options: Options) -> list[float]:
    return [entry.loss for entry in read(options.out / "training" / "losses.jsonl")]


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def set_scheduler(teacher: Path, folder: Path, **values: Any) -> Path:
    shutil.copytree(teacher, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


# What a run leaves behind


def test_a_run_makes_a_checkpoint_that_can_be_served(options: Options, teacher: Path) -> None:
    train(options)
    out = options.out
    made = Pipeline.from_checkpoint(out, "fp32", "CPU").generate(
        parse({"prompt": "a red circle", "seed": 3, "img_width": 64, "img_height": 64}, (64,))
    )
    assert made.pixels[0].shape == (64, 64, 3)
    for component in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for file in (teacher / component).iterdir():
            assert (out / component / file.name).read_bytes() == file.read_bytes()
    assert (out / "LICENSE.md").read_text() == "the teacher's terms"
    assert {path.name for path in out.iterdir()} == {
        *("model_index.json", "LICENSE.md", "training"),
        *("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    }
    student = UNet2DConditionModel.from_pretrained(out / "unet")
    assert (len(student.down_blocks), student.mid_block, student.dtype) == (3, None, torch.float32)


def test_a_run_records_every_step_and_plots_them(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "plot", plot)
    train(options)
    entries = read(options.out / "training" / "losses.jsonl")
    assert [entry.step for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [entry.learning_rate for entry in entries] == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    for entry in entries:
        assert entry.loss == pytest.approx(entry.task + entry.output + entry.feature)
        assert min(entry.task, entry.output, entry.feature, entry.gradient, entry.seconds) > 0
    with Image.open(options.out / "training" / "losses.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 10


def test_only_the_last_state_is_kept(options: Options) -> None:
    train(change(options, steps=7))
    assert [path.name for path in (options.out / "training").glob("step-*")] == ["step-7"]


def test_a_student_learns(options: Options) -> None:
    train(change(options, steps=40, batch=4, learning_rate=3e-3, save_every=40))
    values = losses(options)
    assert np.mean(values[-10:]) < 0.8 * np.mean(values[:10])


def test_sizes_take_turns_and_larger_pictures_come_in_smaller_batches(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    add_noise = DDPMScheduler.add_noise

    def watch(self: DDPMScheduler, latents: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(latents.shape))
        noisy: torch.Tensor = add_noise(self, latents, *others)
        return noisy

    monkeypatch.setattr(DDPMScheduler, "add_noise", watch)
    options = change(options, batch=4, more_sizes=(256,), steps=2, save_every=1, cache=None, workers=0)
    train(options)
    assert seen == [(4, 4, 8, 8), (1, 4, 16, 16)]
    train(change(options, steps=4), resume=True)
    assert seen[2:] == [(4, 4, 8, 8), (1, 4, 16, 16)]
    with pytest.raises(UnfitOptions, match="size is 100; this checkpoint's VAE needs a multiple of 16"):
        train(change(options, out=tmp_path / "other", more_sizes=(100,)))


def test_weights_are_averaged(options: Options) -> None:
    """After n steps diffusers' decay is (1 + n) / (10 + n), at most the option's; the first average is the weights."""
    trail = []
    for steps in (1, 2, 3):
        plain = change(options, ema=0.0, steps=steps, out=options.out.with_name(f"plain-{steps}"))
        train(plain)
        trail.append(load_file(plain.out / UNET))
    train(change(options, steps=3))
    averaged = load_file(options.out / UNET)
    for name, tensor in averaged.items():
        expected = trail[0][name]
        for step, decay in ((1, 2 / 11), (2, 3 / 12)):
            expected = decay * expected + (1 - decay) * trail[step][name]
        assert torch.allclose(tensor, expected, atol=1e-6)
    assert not same_weights(options.out / UNET, options.out.with_name("plain-3") / UNET)


# Saved states

NO_FURTHER_THAN_5 = """
import os, sys, time
import distill

os.environ.update(distill.QUIET)  # as the command does before it imports the trainer
from distillation.trainer import Run

take_step = Run._take_step

def unless_it_has_taken_5(run, batches):
    if run._step == 5:
        time.sleep(600)
    return take_step(run, batches)

Run._take_step = unless_it_has_taken_5
sys.exit(distill.main())
"""
"""The command in the arguments, which waits to be killed before it saves its state a second time."""


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(options: Options) -> None:
    whole = change(options, accumulate=2)
    killed = change(whole, out=options.out.with_name("killed"))
    train(whole)
    command = [sys.executable, "-c", NO_FURTHER_THAN_5, "--teacher", str(options.checkpoint)]
    command += ["--student", "tiny", "--out", str(killed.out), "--data", "drawings:10", "--cache-latents"]
    command += [str(options.cache), "--batch", "2", "--accumulate", "2", "--lr", "1e-3", "--warmup", "2"]
    # The kill comes at whichever of steps 3, 4 and 5 it has reached.
    command += ["--steps", "100000", "--save-every", "3", "--device", "CPU"]
    with (options.out.with_name("said")).open("wb") as said:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tools")}
        process = subprocess.Popen(command, env=environment, stderr=said)
        try:
            wait_for(killed.out / "training" / "step-3", process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert Path(said.name).read_text().splitlines()[0] == "Training: 0 of 100000"  # no word of the libraries
    assert not (killed.out / "training" / "step-6").exists()
    train(killed, resume=True)
    assert losses(killed) == pytest.approx(losses(whole), abs=1e-6)
    assert same_weights(killed.out / UNET, whole.out / UNET)


def test_what_was_half_saved_or_logged_too_far_does_not_count(options: Options) -> None:
    whole = change(options, out=options.out.with_name("whole"))
    train(whole)
    train(change(options, steps=3))
    training = options.out / "training"
    (training / ".state").mkdir()
    (training / ".state" / "model.safetensors").write_bytes(b"half a file")
    log = training / "losses.jsonl"
    log.write_text(
        log.read_text() + log.read_text().splitlines()[-1].replace('"step": 3', '"step": 4') + '\n{"step": 5, "lo'
    )
    train(options, resume=True)
    assert losses(options) == losses(whole)
    assert not (training / ".state").exists()


def test_resuming_what_never_began_begins(options: Options) -> None:
    train(options, resume=True)
    assert len(losses(options)) == 6


def test_resuming_what_is_finished_changes_nothing(options: Options) -> None:
    train(options)
    before, weights = losses(options), (options.out / UNET).read_bytes()
    train(options, resume=True)
    assert losses(options) == before
    assert (options.out / UNET).read_bytes() == weights


def test_a_folder_with_something_in_it_is_not_overwritten(options: Options, teacher: Path) -> None:
    options.out.mkdir()
    train(change(options, steps=1))
    with pytest.raises(UnfitOptions, match="go on with --resume"):
        train(options)
    for resume in (False, True):
        with pytest.raises(UnfitOptions, match="name a folder that does not exist"):
            train(change(options, out=teacher), resume=resume)


def test_a_run_goes_on_only_with_the_options_it_began_with(options: Options, tmp_path: Path) -> None:
    train(change(options, steps=1))
    with pytest.raises(UnfitOptions, match="begun with batch 2 and is to go on with 4"):
        train(change(options, batch=4), resume=True)
    with pytest.raises(UnfitOptions, match="begun with student tiny"):
        train(change(options, student="small"), resume=True)
    train(change(options, steps=2, save_every=1, cache=None, workers=0), resume=True)
    assert len(losses(options)) == 2


# What is learned from


def make_batches(networks: Networks, options: Options, **ways: Any) -> Batches:
    pictures = Drawings(10)
    return Batches(
        captions=pictures.captions,
        pictures=ways["latents"].read,
        texts=ways["embeddings"].read,
        size=options.batch,
        latent_shape=networks.latent_shape(networks.sizes[0]),
        timesteps=1000,
        caption_dropout=options.caption_dropout,
        negatives=options.negatives,
        seed=options.seed,
    )


def make_lesson(networks: Networks, options: Options) -> tuple[Batches, Lesson]:
    """By hand and without a cache, what a run makes of its options."""
    latents = latents_each_time(networks, Drawings(10), networks.sizes[0])
    embeddings = embeddings_each_time(networks, networks.text_encoder)
    lesson = Lesson(
        networks,
        networks.student,
        Weights(options.w_task, options.w_out, options.w_feat),
        teacher_guidance=options.teacher_guidance,
        student_guidance=options.student_guidance,
        moments=latents.encode,
        embeddings=embeddings.encode,
    )
    return make_batches(networks, options, latents=latents, embeddings=embeddings), lesson


def test_a_step_is_the_mean_of_its_batches(options: Options) -> None:
    options = change(options, accumulate=3, steps=1, w_out=0.5, w_feat=2.0, cache=None, workers=0)
    train(options)
    (entry,) = read(options.out / "training" / "losses.jsonl")
    networks = load_networks(options)
    batches, lesson = make_lesson(networks, options)
    parts = [lesson.losses(batches[number]) for number in range(3)]
    total = torch.stack([part.total for part in parts]).mean()
    total.backward()
    gradient = math.sqrt(sum(float(weight.grad.square().sum()) for weight in networks.student.parameters()))
    assert entry.loss == pytest.approx(total.item(), rel=1e-5)
    assert entry.gradient == pytest.approx(gradient, rel=1e-4)
    assert entry.loss == pytest.approx(entry.task + 0.5 * entry.output + 2 * entry.feature)


@pytest.mark.parametrize("scale", [0.0, 0.35, 3.0])
def test_a_guided_teacher_goes_from_no_caption_beyond_the_caption(options: Options, scale: float) -> None:
    options = change(options, teacher_guidance=scale, w_task=0.0, w_feat=0.5, caption_dropout=0.0, cache=None)
    networks = load_networks(options)
    batches, lesson = make_lesson(networks, options)
    batch, teacher = batches[0], networks.teacher
    assert teacher is not None
    losses = lesson.losses(batch)
    _, plain = make_lesson(networks, change(options, teacher_guidance=1.0))
    seen: list[tuple[torch.Tensor, ...]] = []
    hook = teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    plain.losses(batch)
    hook.remove()
    ((latents, timesteps, embeddings),) = seen
    empty = networks.text_encoder(networks.tokenizer([""], padding="max_length", return_tensors="pt").input_ids)[0]
    with torch.no_grad():
        told = teacher(latents, timesteps, embeddings).sample
        free = teacher(latents, timesteps, empty.expand_as(embeddings)).sample
        prediction = networks.student(latents, timesteps, embeddings).sample
    expected = torch.nn.functional.mse_loss(prediction, free + scale * (told - free))
    assert losses.output.item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses.total.item() == pytest.approx(losses.output.item() + 0.5 * losses.feature.item())


def empty_texts(networks: Networks, rows: int) -> torch.Tensor:
    """The tokens of no caption, so many times."""
    ids: torch.Tensor = networks.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    return ids.expand(rows, -1)


@pytest.mark.parametrize("negatives", [0.0, 1.0])
def test_a_guided_student_is_to_be_like_the_teacher_at_its_own_scale(options: Options, negatives: float) -> None:
    scales = {"teacher_guidance": 1.5, "student_guidance": 6.0}
    options = change(options, **scales, w_task=0.0, w_feat=0.5, caption_dropout=0.0, negatives=negatives, cache=None)
    networks = load_networks(options)
    batches, lesson = make_lesson(networks, options)
    losses = lesson.losses(batches[0])
    _, plain = make_lesson(networks, change(options, teacher_guidance=1.0, student_guidance=1.0, negatives=0.0))
    seen: list[tuple[torch.Tensor, ...]] = []
    hook = networks.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    plain.losses(batches[0])
    hook.remove()
    ((latents, timesteps, embeddings),) = seen
    assert bool(torch.equal(batches[0].negatives, empty_texts(networks, len(embeddings)))) == (not negatives)
    away = networks.text_encoder(batches[0].negatives)[0]
    outputs: dict[str, list[torch.Tensor]] = {}
    features: dict[str, list[Mapping[str, torch.Tensor]]] = {}
    assert networks.teacher is not None
    for who, unet in (("student", networks.student), ("teacher", networks.teacher)):
        for texts in (embeddings, away):
            names = [getattr(pair, who) for pair in networks.pairs]
            with torch.no_grad(), watched(unet, names) as blocks:
                outputs.setdefault(who, []).append(unet(latents, timesteps, texts).sample)
            features.setdefault(who, []).append(dict(blocks))
    told, free = outputs["student"]
    taught, untaught = outputs["teacher"]
    expected = torch.nn.functional.mse_loss(free + 6 * (told - free), untaught + 1.5 * (taught - untaught))
    assert losses.output.item() == pytest.approx(expected.item(), rel=1e-3)
    blocks_apart = 0.0
    for pair in networks.pairs:
        ours = [each[pair.student] for each in features["student"]]
        theirs = [each[pair.teacher] for each in features["teacher"]]
        like = torch.cat([theirs[1] + 0.25 * (theirs[0] - theirs[1]), theirs[1]])
        blocks_apart += torch.nn.functional.mse_loss(torch.cat(ours), like).item()
    assert losses.feature.item() == pytest.approx(blocks_apart, rel=1e-3)


def test_the_cache_gives_what_the_networks_give(options: Options, tmp_path: Path) -> None:
    options = change(options, cache=tmp_path / "cache")
    networks, pictures = load_networks(options), Drawings(10)
    latents, embeddings = (
        latents_each_time(networks, pictures, networks.sizes[0]),
        embeddings_each_time(networks, networks.text_encoder),
    )
    with Reporter(silent=True) as reporter:
        stored_latents = latents_once(networks, pictures, networks.sizes[0], options, reporter)
        stored_embeddings = embeddings_once(embeddings, networks, pictures, options, reporter)
    live = make_batches(networks, options, latents=latents, embeddings=embeddings)[4]
    stored = make_batches(networks, options, latents=stored_latents, embeddings=stored_embeddings)[4]
    assert torch.allclose(stored_latents.encode(stored.pictures), latents.encode(live.pictures), rtol=1e-3, atol=1e-3)
    assert torch.allclose(stored_embeddings.encode(stored.texts), embeddings.encode(live.texts), rtol=1e-3, atol=1e-3)
    assert latents.encode(live.pictures).shape == (2, 8, 8, 8)
    assert embeddings.encode(live.texts).shape == (2, 77, 48)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("rescale", [False, True], ids=["plain schedule", "zero terminal SNR"])
def test_the_checkpoint_says_what_is_predicted(
    options: Options, teacher: Path, tmp_path: Path, kind: str, rescale: bool
) -> None:
    folder = set_scheduler(teacher, tmp_path / kind, prediction_type=kind, rescale_betas_zero_snr=rescale)
    options = change(options, checkpoint=folder, taught=False, seed=5)
    networks = load_networks(options)
    batches, lesson = make_lesson(networks, options)
    batch = batches[0]
    moments = latents_each_time(networks, Drawings(10), networks.sizes[0]).encode(batch.pictures)
    mean, deviation = moments[:, :4], moments[:, 4:].div(2).exp()
    latents = (mean + deviation * batch.posterior_noise) * 0.5  # the checkpoint's scaling_factor
    noise = batch.noise
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal_share = (1 - betas).cumprod(0).sqrt()
    if rescale:  # Lin et al., 2023, algorithm 1
        first, last = signal_share[0].clone(), signal_share[-1].clone()
        signal_share = (signal_share - last) * first / (first - last)
    signal_share = signal_share[batch.timesteps].view(-1, 1, 1, 1)
    noise_share = (1 - signal_share**2).sqrt()
    seen: list[torch.Tensor] = []

    class Prediction:
        sample = torch.zeros_like(latents)

    def student(noisy: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> type[Prediction]:
        seen.append(noisy)
        return Prediction

    lesson._student = student
    if kind == "epsilon":
        Prediction.sample = noise
    else:
        Prediction.sample = signal_share * noise - noise_share * latents
    assert float(lesson.losses(batch).task) < 1e-8
    assert torch.allclose(seen[0], signal_share * latents + noise_share * noise, atol=1e-5)


def test_a_teacher_teaches_nothing_to_its_equal(options: Options, teacher: Path) -> None:
    networks = load_networks(change(options, student="small"))
    equal = dataclasses.replace(networks, student=UNet2DConditionModel.from_pretrained(teacher / "unet").eval())
    batches, lesson = make_lesson(equal, options)
    result = lesson.losses(batches[0])
    assert result.task.item() > 0.1
    assert max(result.output.item(), result.feature.item()) < 1e-9


def test_without_a_teacher_only_the_task_counts(options: Options) -> None:
    train(change(options, taught=False))
    entries = read(options.out / "training" / "losses.jsonl")
    assert all(entry.loss == entry.task > 0 == entry.output == entry.feature for entry in entries)


def test_a_student_starts_from_its_teachers_weights_or_from_random_ones(options: Options, teacher: Path) -> None:
    options = change(options, seed=1)
    source = UNet2DConditionModel.from_pretrained(teacher / "unet")
    copies = make_student(source, "tiny").state_dict()
    given = load_networks(options).student.state_dict()
    fresh = load_networks(change(options, fresh=True)).student.state_dict()
    assert given.keys() == fresh.keys() == copies.keys()
    assert all(torch.equal(given[name], copies[name]) for name in copies)
    assert not torch.equal(fresh["conv_in.weight"], copies["conv_in.weight"])
    again = load_networks(change(options, fresh=True)).student.state_dict()
    assert all(torch.equal(fresh[name], again[name]) for name in fresh)


def test_a_student_starts_from_an_earlier_one(options: Options, teacher: Path, tmp_path: Path) -> None:
    train(change(options, ema=0.0))
    later = change(options, start=options.out, out=tmp_path / "later")
    begun = load_networks(later).student.state_dict()
    assert all(torch.equal(begun[name], weight) for name, weight in load_file(options.out / UNET).items())
    train(later)
    assert losses(later)[0] != losses(options)[0]
    assert str(options.out) not in (later.out / "unet" / "config.json").read_text()
    with pytest.raises(UnfitOptions, match=f"^start: the U-Net of {teacher} has other blocks than "):
        load_networks(change(options, start=teacher))


def test_larger_pictures_may_have_a_teacher_of_their_own(options: Options, teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    torch.manual_seed(1)
    UNet2DConditionModel(**FOUR_LEVELS).save_pretrained(other / "unet")
    options = change(options, more_sizes=(192,), more_sizes_teacher=other, cache=None)
    networks = load_networks(options)
    expected = load_file(other / UNET)
    assert networks.more_sizes_teacher is not None
    assert all(torch.equal(expected[name], it) for name, it in networks.more_sizes_teacher.state_dict().items())
    asked: list[str] = []
    for name in ("teacher", "more_sizes_teacher"):
        getattr(networks, name).register_forward_pre_hook(lambda *_, name=name: asked.append(name))
    batches, lesson = make_lesson(networks, options)
    lesson.losses(batches[0])
    latents = latents_each_time(networks, Drawings(10), 192)
    larger = dataclasses.replace(batches, pictures=latents.read, latent_shape=networks.latent_shape(192))
    lesson.losses(larger[0])
    assert asked == ["teacher", "more_sizes_teacher"]
    assert not any(weight.requires_grad for weight in networks.more_sizes_teacher.parameters())


def test_a_teacher_is_trained_from_scratch_with_its_text_encoder(options: Options, teacher: Path) -> None:
    options = change(
        options, student="same", taught=False, train_text_encoder=True, precision="bf16", schedule="cosine"
    )
    train(change(options, steps=3))
    train(change(options, steps=6), resume=True)
    for weights in (UNET, TEXT_ENCODER):
        assert load_file(options.out / weights).keys() == load_file(teacher / weights).keys()
        assert not same_weights(options.out / weights, teacher / weights)
        assert {tensor.dtype for tensor in load_file(options.out / weights).values()} == {torch.float32}
    assert len(losses(options)) == 6
    Pipeline.from_checkpoint(options.out, "fp32", "CPU")


def test_a_frozen_text_encoder_stays_as_it_is(options: Options, teacher: Path) -> None:
    train(change(options, student="same", taught=False))
    assert (options.out / TEXT_ENCODER).read_bytes() == (teacher / TEXT_ENCODER).read_bytes()
    assert not same_weights(options.out / UNET, teacher / UNET)


def test_a_loss_that_is_no_number_ends_the_run(options: Options) -> None:
    with pytest.raises(Diverged, match="the loss of step 1 is"):
        train(change(options, w_out=math.inf))


# The command


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = distill.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def test_the_command_trains_what_it_is_told_to(
    options: Options, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--teacher", options.checkpoint, "--student", "small", "--out", options.out, "--data", "drawings:10"]
    arguments += ["--steps", 2, "--batch", 3, "--w-feat", 0, "--ema", 0, "--cache-latents", latents, "--device", "CPU"]
    code, said = run_command(capsys, *arguments)
    assert code == 0
    assert said.splitlines()[-2] == "Training: 0 of 2"
    assert said.splitlines()[-1].startswith("Step 2: loss ")
    written = json.loads((options.out / "training" / "options.json").read_text())
    assert (written["batch"], written["w_feat"], written["w_out"], written["taught"]) == (3, 0.0, 1.0, True)
    assert len(UNet2DConditionModel.from_pretrained(options.out / "unet").down_blocks) == 4
    entry = read(options.out / "training" / "losses.jsonl")[0]
    assert entry.loss == pytest.approx(entry.task + entry.output)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--student", "same"], "add --no-teacher"),
        (["--student", "tiny", "--fresh", "--start", "/nowhere"], "give one of them"),
        (["--student", "tiny", "--start", "/nowhere"], "/nowhere: no such folder"),
        (["--student", "tiny", "--train-text-encoder"], "goes with --no-teacher"),
        (["--student", "tiny", "--more-sizes-teacher", "/nowhere"], "goes with --more-sizes"),
        (["--student", "tiny", "--batch", "0"], "batch is 0; at least 1 is needed"),
        (["--student", "tiny", "--ema", "1"], "ema is 1.0"),
        (["--student", "tiny", "--lr", "0"], "greater than 0"),
        (["--student", "tiny", "--caption-dropout", "2"], "must lie in 0 to 1"),
        (["--student", "tiny", "--negatives", "0.5"], "go with a guidance scale other than 1"),
        (["--student", "tiny", "--size", "100"], "a multiple of 16"),
        (["--student", "tiny", "--precision", "fp16", "--device", "CPU"], "fp16: needs a GPU"),
        (["--student", "tiny", "--data", "folder:/nowhere"], "/nowhere: no such folder"),
        (["--student", "tiny", "--teacher", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    teacher: Path, tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--teacher", teacher, "--out", tmp_path / "out", "--data", "drawings:10", *arguments]
    code, said = run_command(capsys, *given)
    assert code == 1
    *before, said = said.splitlines()
    assert said.startswith("error: ")
    assert complaint in said
    assert not any("error" in line or "Traceback" in line for line in before)
    assert not (tmp_path / "out").exists()


def test_a_prediction_that_is_not_known_is_refused(options: Options, teacher: Path, tmp_path: Path) -> None:
    folder = set_scheduler(teacher, tmp_path / "sample", prediction_type="sample")
    with pytest.raises(DistillError, match="predicts sample; known: epsilon, v_prediction"):
        train(change(options, checkpoint=folder))


def test_runs_are_plotted_side_by_side(tmp_path: Path) -> None:
    def entries(output: float) -> list[Entry]:
        return [Entry(step, 1 / step, 1 / step, output, output, 1.0, 1e-4, 0.1) for step in range(1, 501)]

    sizes = {}
    for name, runs in {"one": {"alone": entries(0)}, "both": {"alone": entries(0), "taught": entries(1)}}.items():
        plot(runs, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            sizes[name] = image.size
    assert sizes["both"] == (2 * sizes["one"][0], 2 * sizes["one"][1])


def test_a_record_goes_on_after_a_step(tmp_path: Path) -> None:
    path = tmp_path / "losses.jsonl"
    first = Entry(1, 3.0, 1.0, 1.0, 1.0, 0.5, 1e-4, 0.1)
    with Record(path, after=0) as record:
        for step in (1, 2, 3):
            record.add(dataclasses.replace(first, step=step))
    with Record(path, after=1) as record:
        record.add(dataclasses.replace(first, step=2, loss=4.0))
    assert [(entry.step, entry.loss) for entry in read(path)] == [(1, 3.0), (2, 4.0)]
