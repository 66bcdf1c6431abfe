"""The training loop: take a batch, compare the student with what it is to learn, take a step; save now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel

from distillation import state
from distillation.batches import Batch, Batches, InTurn
from distillation.data import open_pictures
from distillation.encoders import embeddings_each_time, embeddings_once, latents_each_time, latents_once
from distillation.errors import Diverged, UnfitOptions
from distillation.lesson import Lesson
from distillation.losses import Weights
from distillation.networks import Networks, copy_components, load_networks, write_component
from distillation.options import Options
from distillation.plot import plot
from distillation.record import Entry, Record, read
from distillation.reporter import Reporter

_PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FEW_LATENTS = 32 * 32
_SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine"}


def train(options: Options, *, resume: bool = False) -> None:
    """Train a student and write it to `options.out`, a checkpoint in diffusers' layout, each time the state is saved.

    `out/training` holds the options, the losses (losses.jsonl, losses.png) and the last saved state. With `resume` the
    run goes on from there, or begins if there is none; its steps are those it would have taken without the break.

    Raises DistillError, and the engine's CheckpointError.
    """
    _claim(options, resume)
    accelerator = _accelerator(options)
    with Reporter(silent=not accelerator.is_main_process) as reporter:
        Run(options, accelerator, reporter).train()


class Run:
    """One run on this process's device; under `accelerate launch` one of several that train the same student."""

    def __init__(self, options: Options, accelerator: Accelerator, reporter: Reporter) -> None:
        """Load everything, and the last saved state if there is one. Raises as `train` does."""
        self._options = options
        self._accelerator = accelerator
        self._reporter = reporter
        self._training = options.out / "training"
        set_seed(options.seed, device_specific=True)
        networks = load_networks(options)
        _place(networks, accelerator)
        self._trained: dict[str, Any] = {"unet": networks.student}
        if options.train_text_encoder:
            self._trained["text_encoder"] = networks.text_encoder
        optimizer = torch.optim.AdamW(self._parameters(), lr=options.learning_rate)
        self._schedule = get_scheduler(
            _SCHEDULES[options.schedule],
            optimizer,
            num_warmup_steps=options.warmup,
            num_training_steps=options.steps,
        )
        self._average = EMAModel(self._parameters(), decay=options.ema, foreach=True) if options.ema else None
        self._optimizer, *self._prepared = accelerator.prepare(optimizer, *self._trained.values())
        self._batches, self._lesson = self._prepare_lessons(networks)
        accelerator.register_for_checkpointing(self._schedule, *filter(None, [self._average]))
        self._step = state.restore(accelerator, self._training)
        if self._average:
            self._average.to(accelerator.device)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._training.mkdir(parents=True, exist_ok=True)
            copy_components(options.checkpoint, options.out, trained=frozenset(self._trained))
            options.write(self._training / "options.json")

    def _prepare_lessons(self, networks: Networks) -> tuple[InTurn, Lesson]:
        options = self._options
        student = self._prepared[0]
        text_encoder = self._prepared[1] if options.train_text_encoder else networks.text_encoder
        pictures = open_pictures(options.data)
        latents = [latents_each_time(networks, pictures, size) for size in networks.sizes]
        embeddings = embeddings_each_time(networks, text_encoder)
        if options.cache:
            with self._accelerator.main_process_first():
                latents = [latents_once(networks, pictures, size, options, self._reporter) for size in networks.sizes]
                if not options.train_text_encoder:
                    embeddings = embeddings_once(embeddings, networks, pictures, options, self._reporter)
        batches = InTurn(
            [
                Batches(
                    captions=pictures.captions,
                    pictures=way.read,
                    texts=embeddings.read,
                    size=max(1, round(options.batch * (networks.sizes[0] / size) ** 2)),
                    latent_shape=networks.latent_shape(size),
                    timesteps=networks.noise.config.num_train_timesteps,
                    caption_dropout=options.caption_dropout,
                    seed=options.seed + place,  # else all sizes would begin with the same noise
                    noise_bias=options.noise_bias,
                    negatives=options.negatives,
                )
                for place, (size, way) in enumerate(zip(networks.sizes, latents, strict=True))
            ]
        )
        lesson = Lesson(
            networks,
            student,
            Weights(options.w_task, options.w_out, options.w_feat),
            teacher_guidance=options.teacher_guidance,
            student_guidance=options.student_guidance,
            moments=latents[0].encode,
            embeddings=embeddings.encode,
        )
        return batches, lesson

    def train(self) -> None:
        """Take the steps that are left, and save."""
        batches = self._remaining_batches()
        advance = self._reporter.begin("Training", self._options.steps, self._step)
        with Record(self._training / "losses.jsonl", after=self._step) as record:
            while self._step < self._options.steps:
                entry = self._take_step(batches)
                record.add(entry)
                advance(1, f"loss {entry.loss:.4f}")
                if self._step % self._options.save_every == 0 and self._step < self._options.steps:
                    self._save()
        self._save()

    def _attention(self, batch: Batch) -> AbstractContextManager[None]:
        """Which kernel computes attention.

        On a CPU the fused one is slow backwards; on few latents plain matrix products took 0.7 of a whole step's time.
        """
        few = math.prod(batch.noise.shape[2:]) <= _FEW_LATENTS
        return sdpa_kernel(SDPBackend.MATH) if few and batch.noise.device.type == "cpu" else nullcontext()

    def _take_step(self, batches: Iterator[Batch]) -> Entry:
        began = time.perf_counter()
        parts = torch.zeros(4, device=self._accelerator.device)
        for _ in range(self._options.accumulate):
            batch = next(batches).to(self._accelerator.device)
            with self._accelerator.accumulate(*self._prepared), self._attention(batch):
                losses = self._lesson.losses(batch)
                self._accelerator.backward(losses.total)
                if self._accelerator.sync_gradients:
                    norm = self._accelerator.clip_grad_norm_(self._parameters(), self._options.clip)
                self._optimizer.step()
                self._optimizer.zero_grad()
            parts += torch.stack([losses.total, losses.task, losses.output, losses.feature]).detach()
        rate = self._schedule.get_last_lr()[0]
        self._schedule.step()
        if self._average:
            self._average.step(self._parameters())
        self._step += 1
        loss, task, output, feature = self._accelerator.reduce(parts / self._options.accumulate, "mean").tolist()
        if not math.isfinite(loss):
            raise Diverged(f"the loss of step {self._step} is {loss}; try a smaller lr, or precision bf16 for fp16")
        return Entry(self._step, loss, task, output, feature, float(norm), rate, time.perf_counter() - began)

    def _save(self) -> None:
        """Save the state, then write the checkpoint and the plot that belong to it."""
        state.save(self._accelerator, self._training, self._step)
        if self._accelerator.is_main_process:
            self._write_checkpoint()
            entries = read(self._training / "losses.jsonl")
            plot({self._options.out.name: entries}, self._training / "losses.png")
            self._reporter.say(f"Step {self._step}: loss {_recent(entries):.4f}, saved {self._options.out}")
        self._accelerator.wait_for_everyone()

    def _write_checkpoint(self) -> None:
        if self._average:
            self._average.store(self._parameters())
            self._average.copy_to(self._parameters())
        for component, network in self._trained.items():
            write_component(network, self._options.out / component)
        if self._average:
            self._average.restore(self._parameters())

    def _remaining_batches(self) -> Iterator[Batch]:
        """This process's share of the batches from the current step to the last."""
        processes = self._accelerator.num_processes
        each_step = self._options.accumulate * processes
        first = self._step * each_step + self._accelerator.process_index
        return self._batches.loader(
            range(first, self._options.steps * each_step, processes),
            workers=0 if self._options.cache else self._options.workers,
            pin_memory=self._accelerator.device.type == "cuda",
        )

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for network in self._trained.values() for parameter in network.parameters()]


def _claim(options: Options, resume: bool) -> None:
    """Make the output folder, or check that the run in it may go on. Raises UnfitOptions."""
    written = options.out / "training" / "options.json"
    if resume and written.is_file():
        options.check_continues(written)
    elif options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        advice = "holds no run to go on with" if resume else "exists; go on with --resume"
        raise UnfitOptions(f"{options.out}: {advice}, or name a folder that does not exist")


def _accelerator(options: Options) -> Accelerator:
    if options.device == "GPU" and not torch.cuda.is_available():
        raise UnfitOptions("device GPU: this torch has no CUDA device")
    try:
        accelerator = Accelerator(
            cpu=options.device == "CPU",
            mixed_precision=options.precision,
            gradient_accumulation_steps=options.accumulate,
        )
    except ValueError as error:  # a precision that the device has not
        raise UnfitOptions(f"precision {options.precision}: {error}") from None
    if options.precision == "fp16" and accelerator.device.type == "cpu":
        raise UnfitOptions("precision fp16: needs a GPU; bf16 works on both")  # accelerate would take fp32 silently
    return accelerator


def _place(networks: Networks, accelerator: Accelerator) -> None:
    """Bring the networks to the device; teachers in the precision that the student computes in."""
    for network in (networks.student, networks.text_encoder, networks.vae):
        network.to(accelerator.device)
    for teacher in filter(None, (networks.teacher, networks.more_sizes_teacher)):
        teacher.to(accelerator.device, _PRECISIONS[accelerator.mixed_precision])


def _recent(entries: list[Entry]) -> float:
    """Mean loss of the last steps."""
    last = [entry.loss for entry in entries[-100:]]
    return sum(last) / len(last)
