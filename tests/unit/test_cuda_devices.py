"""The engine on a GPU, as far as can be told without one: which tensor is where, in which precision, what it waits for.

torch's fake tensors stand for those on the GPU: they have a shape, a precision and a device but no values, and an
operation across devices fails. Tensors on the CPU are real; what comes back from the GPU is all zeros.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from tiny_sd_engine import checkpoint as checkpoints
from tiny_sd_engine.denoiser import Denoiser
from tiny_sd_engine.device import Device
from tiny_sd_engine.flight import Job, Task
from tiny_sd_engine.graphs import Graphs
from tiny_sd_engine.previews import Previewer
from tiny_sd_engine.prompts import tokenize
from tiny_sd_engine.text_encoder import TextEncoder
from tiny_sd_engine.vae import VaeDecoder

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU need not be pretended")

# Not the first: code that forgets which GPU it is on would take that one.
GPU = Device(torch.device("cuda", 1), torch.float16)
TEXT = torch.zeros(77, 48)
LOOPS = ("UniPC", "Euler a", "Heun", "DDPM", "PNDM", "LMS")
ATEN = torch.ops.aten
COMPOSITE = "CompositeImplicitAutograd"
PRODUCTS = (ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default, ATEN.baddbmm.default, ATEN.convolution.default)


class PretendGpu(FakeTensorMode):
    """Runs what concerns a GPU on fake tensors, everything else as usual."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []  # where the CPU would wait for the GPU
        self.sent: list[torch.Size] = []  # what it would be sent without waiting
        # The mode's memory of tensors has weak references to them, with which a module cannot be moved twice.
        self.fake_tensor_converter.set_tensor_memo = lambda *_: None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        fake = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        target = next((leaf.type for leaf in leaves if isinstance(leaf, torch.device)), None)
        if not fake and target != "cuda":
            return func(*args, **kwargs)
        if func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE):
            with self:
                return func.decompose(*args, **kwargs)
        if func in PRODUCTS and len({leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)}) > 1:
            raise RuntimeError(f"{func}: expected one dtype")  # a fake tensor's product lets it pass
        if func is ATEN._local_scalar_dense.default:
            self.waits.append("value")
            return True
        if func is ATEN._to_copy.default and not fake:
            self.send(args[0], kwargs.get("non_blocking", False))
        made = super().__torch_dispatch__(func, types, args, kwargs)
        if func is ATEN._to_copy.default and target == "cpu":
            self.waits.append("to CPU")
            return torch.zeros(made.shape, dtype=made.dtype)
        return made

    def send(self, tensor: torch.Tensor, non_blocking: bool) -> None:
        # From memory that is not pinned, a GPU's driver may wait all the same.
        if non_blocking and getattr(tensor, "pinned_here", False):
            self.sent.append(tensor.shape)
        else:
            self.waits.append("to GPU")


class Event:
    """The end of a call; they are numbered."""

    def __init__(self, gpu: PretendGpu, number: int) -> None:
        self._gpu, self._number = gpu, number

    def record(self, stream: str) -> None:
        assert stream == f"stream of {GPU.torch_device}"

    def synchronize(self) -> None:
        self._gpu.waits.append(f"call {self._number}")


def _item(tensor: FakeTensor, index: Any) -> FakeTensor:
    meta = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return FakeTensor(tensor.fake_mode, meta[index], tensor.device)


def _set_item(tensor: FakeTensor, index: Any, value: torch.Tensor) -> None:
    own = tensor[index]
    assert (value.device, value.dtype, value.shape) == (own.device, own.dtype, own.shape)


def _pin(tensor: torch.Tensor) -> torch.Tensor:
    pinned = tensor.clone()
    pinned.pinned_here = True  # type: ignore[attr-defined]
    return pinned


def _copy(tensor: FakeTensor, source: torch.Tensor) -> FakeTensor:
    assert torch.broadcast_shapes(tensor.shape, source.shape) == tensor.shape
    if not isinstance(source, FakeTensor):
        tensor.fake_mode.send(source, non_blocking=False)
    return tensor


@pytest.fixture(scope="module")
def gpu(checkpoint: Path) -> Iterator[PretendGpu]:
    mode = PretendGpu()
    with pytest.MonkeyPatch.context() as patch, mode:
        # Without CUDA in torch these four fail before they come to the mode.
        patch.setattr(FakeTensor, "__getitem__", _item, raising=False)
        patch.setattr(FakeTensor, "__setitem__", _set_item, raising=False)
        patch.setattr(FakeTensor, "copy_", _copy, raising=False)
        patch.setattr(FakeTensor, "contiguous", lambda tensor, **memory: tensor.clone(**memory), raising=False)
        patch.setattr(torch.Tensor, "pin_memory", _pin)
        patch.setattr(torch.cuda, "synchronize", lambda device: mode.waits.append(f"all of {device}"))
        patch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
        numbers = itertools.count()
        patch.setattr(torch.cuda, "Event", lambda blocking: Event(mode, next(numbers)))
        yield mode


@pytest.fixture(scope="module")
def denoiser(gpu: PretendGpu, checkpoint: Path) -> Denoiser:
    return Denoiser(checkpoint, GPU)


def admit(
    denoiser: Denoiser, scheduler: str, guidance_scale: float, samples: int = 1, width: int = 64, steps: int = 3
) -> Job:
    task = Task(TEXT, TEXT, scheduler, steps, guidance_scale, range(samples), width, 64)
    return denoiser.job(object(), lambda: task)


@pytest.mark.usefixtures("gpu")
def test_the_pretended_gpu_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(2, 2), torch.ones(2, 2, device=GPU.torch_device)
    for wrong in (torch.add, torch.mm, lambda *both: torch.stack(both)):
        with pytest.raises(RuntimeError, match="device"):
            wrong(there, here)
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(there, there.half())


def test_jobs_of_all_kinds_run_there_and_come_back(denoiser: Denoiser, caplog: pytest.LogCaptureFixture) -> None:
    denoiser.warm_up(64, 64)
    jobs = [admit(denoiser, name, 0.5 + index % 3, 1 + index % 2) for index, name in enumerate(LOOPS)]
    jobs.append(admit(denoiser, "UniPC", 7.5, width=128))
    denoiser.run(jobs, 0.0)
    assert {job.estimate().device.type for job in jobs} == {"cpu"}
    denoiser.run_to_end(jobs)
    for job in jobs:
        if job.error:
            raise AssertionError(caplog.text)
        assert {image.slab.texts.dtype for image in job.images} == {torch.float16}
        assert {image.latents.dtype for image in job.images} == {torch.float32}
        assert {image.latents.device for image in job.images} == {GPU.torch_device}
        assert job.latents().device.type == "cpu"


@pytest.mark.parametrize(("scheduler", "noise"), [("UniPC", []), ("Euler a", [(3, 4 * 4 * 4)])])
def test_a_step_is_sent_who_takes_part_and_all_noise_and_is_waited_for_only_at_the_end(
    denoiser: Denoiser, gpu: PretendGpu, scheduler: str, noise: list[tuple[int, int]]
) -> None:
    jobs = [admit(denoiser, scheduler, 7.5), admit(denoiser, scheduler, 1.0, samples=2)]
    gpu.waits.clear()
    gpu.sent.clear()
    denoiser.run(jobs, 0.0)
    images, rows = 3, 4
    assert gpu.sent == [*noise, (3 * images + 2 * rows,)]
    assert gpu.waits == ["all of cuda:1"]


def test_python_runs_one_call_ahead_of_the_gpu_and_no_further(
    denoiser: Denoiser, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = admit(denoiser, "UniPC", 7.5)
    advance = denoiser._advance

    def telling(images: Any) -> None:
        gpu.waits.append("launched")
        advance(images)

    monkeypatch.setattr(denoiser, "_advance", telling)
    gpu.waits.clear()
    denoiser.run_to_end([job])
    calls = [wait for wait in gpu.waits if wait.startswith("call")]
    assert gpu.waits == ["launched", "launched", calls[0], "launched", calls[1], "value", "all of cuda:1"]
    first, second = (int(call.removeprefix("call ")) for call in calls)
    assert second == first + 1


def test_calls_that_cannot_be_recorded_are_made_all_the_same(
    denoiser: Denoiser, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(denoiser._unet, Graphs)
    job = admit(denoiser, "UniPC", 7.5, width=192, steps=30)
    denoiser.run_to_end([job])
    assert job.error is None
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once, though it would be worth it often"


def test_prompts_pictures_and_previews_come_back_to_the_cpu(gpu: PretendGpu, checkpoint: Path) -> None:
    encoder, vae = TextEncoder(checkpoint, GPU), VaeDecoder(checkpoint, GPU)
    tokens = tokenize(checkpoints.load_tokenizer(checkpoint), "a (red:1.3) cat " * 40, "")
    gpu.waits.clear()
    for embedding in encoder.encode([tokens.prompt, tokens.negative_prompt])[0]:
        assert embedding.numpy().shape == (2 * 77, 48)
    assert gpu.waits == ["to GPU", "to CPU"]
    gpu.waits.clear()
    pictures = vae.decode([torch.zeros(4, 4, width) for width in (4, 8, 4)])
    assert [picture.shape for picture in pictures] == [(64, 64, 3), (64, 128, 3), (64, 64, 3)]
    assert gpu.waits == ["to GPU", "value", "to CPU"] * 2
    assert Previewer(vae).preview(torch.zeros(4, 4, 4))
