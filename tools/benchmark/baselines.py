"""What others offer: diffusers as one begins with it, with its documented settings for speed, and on OpenVINO."""

from __future__ import annotations

import io
import os
import sys
import warnings
from functools import partial
from typing import Any

from benchmark.contenders import BenchError, Make, Ready, Setup
from tiny_sd_client.parameters import Parameters

_PNG_COMPRESSION = 1  # the engine's own, so that diffusers' files take as long to write
_GUIDED_ROWS = 2


def load_diffusers(setup: Setup) -> Ready:
    """diffusers' own pipeline, used as its documentation says."""
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)  # the engine's setting, which this process was handed on
    import torch  # noqa: PLC0415 -- only the contenders' processes hold it

    pipeline = _pipeline(setup, torch.float16 if setup.device == "GPU" else torch.float32)
    return Ready(_painter(pipeline))


def load_diffusers_best(setup: Setup) -> Ready:
    """The same with the settings for speed that diffusers documents; the first picture compiles the U-Net."""
    from tiny_sd_engine.device import limit_threads, select_device  # noqa: PLC0415 -- as above

    limit_threads()
    pipeline = _pipeline(setup, select_device(setup.device).dtype)
    how = tune(pipeline, on_gpu=setup.device == "GPU", obstacle=_compiling_fails_with(pipeline.device))
    return Ready(_painter(pipeline), how)


def load_openvino(setup: Setup) -> Ready:
    """The U-Net on OpenVINO, all else diffusers' at its best. Raises BenchError where it cannot be had."""
    if setup.device != "CPU":
        raise BenchError("openvino: runs on CPUs; add --device CPU")
    sys.modules["openvino_telemetry"] = None  # or every conversion would be told to Google Analytics
    try:
        import openvino  # noqa: PLC0415 -- an extra
    except ImportError:
        raise BenchError("openvino: not installed; .venv/bin/pip install '.[openvino]'") from None
    import torch  # noqa: PLC0415 -- as above

    from tiny_sd_engine.device import limit_threads, select_device  # noqa: PLC0415

    dtype = select_device("CPU").dtype
    pipeline = _pipeline(setup, {"unet": torch.float32, "default": dtype})
    pipeline.vae.to(memory_format=torch.channels_last)
    unet, side = pipeline.unet, setup.size // pipeline.vae_scale_factor
    example = (
        torch.zeros(_GUIDED_ROWS, unet.config.in_channels, side, side),
        torch.tensor(1),
        torch.zeros(_GUIDED_ROWS, pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim),
    )
    unet.forward = partial(unet.forward, return_dict=False)  # as the pipeline calls it
    with warnings.catch_warnings(action="ignore"):  # tracing holds every shape for a constant, and here it is
        model = openvino.convert_model(unet, example_input=example, input=[tuple(each.shape) for each in example])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": limit_threads(),
    }
    compiled = openvino.compile_model(model, "CPU", settings)

    def forward(sample: Any, timestep: Any, encoder_hidden_states: Any, **_: Any) -> tuple[Any]:
        inputs = [sample.float().numpy(), timestep.numpy(), encoder_hidden_states.float().numpy()]
        return (torch.from_numpy(compiled(inputs)[0]).to(sample.dtype),)

    unet.forward = forward
    words = ", ".join(f"{name} {value}" for name, value in settings.items())
    version = openvino.__version__.partition("-")[0]
    how = f"U-Net by OpenVINO {version} with {words}; VAE and text encoder by torch in {_name(dtype)}"
    return Ready(_painter(pipeline), how)


def tune(pipeline: Any, *, on_gpu: bool, obstacle: str) -> str:
    """Set ``pipeline`` to its fastest; returns how, in words. ``obstacle``: why torch cannot compile, if it cannot."""
    import torch  # noqa: PLC0415 -- as above

    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last)
    done = [_name(pipeline.dtype), "channels_last"]
    if on_gpu:
        pipeline.fuse_qkv_projections()
        done.append("fused QKV")
    if obstacle:
        done.append(f"U-Net **not** compiled ({obstacle})")
    else:
        mode = "reduce-overhead" if on_gpu else "default"
        pipeline.unet.compile(mode=mode)
        done.append(f"U-Net by torch.compile in mode {mode}")
    return ", ".join(done)


def _compiling_fails_with(device: Any) -> str:
    """The reason, in one line; empty where torch.compile works."""
    import torch  # noqa: PLC0415 -- as above

    try:
        torch.compile(lambda x: x.sin() + x)(torch.ones(64, device=device))
    except RuntimeError as error:  # no compiler, or no headers of Python
        return str(error).partition("\n")[0]
    return ""


def _pipeline(setup: Setup, dtype: Any) -> Any:
    """As loaded and placed on the device."""
    import diffusers  # noqa: PLC0415 -- as above

    diffusers.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        setup.checkpoint, dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if setup.device == "GPU" else "cpu")


def _painter(pipeline: Any) -> Make:
    """A call gives a PNG file."""
    import torch  # noqa: PLC0415 -- as above

    def make(parameters: Parameters) -> bytes:
        image = pipeline(
            prompt=parameters.prompt,
            negative_prompt=parameters.negative_prompt,
            num_inference_steps=parameters.num_inference_steps,
            guidance_scale=parameters.guidance_scale,
            width=parameters.img_width,
            height=parameters.img_height,
            generator=torch.Generator().manual_seed(parameters.seed),
        ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=_PNG_COMPRESSION)
        return file.getvalue()

    return make


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
