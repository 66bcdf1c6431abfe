"""Weights in the layout that oneDNN computes with, made once. For networks in bfloat16 on a CPU.

torch's own layers hand oneDNN plain weights, which it lays out anew in every call, add biases in a pass of their own
and take four passes for a gated GELU. These layers give the same, with the gated GELU rounded less often. torch.compile
with freezing packs weights by the same operations, but wants minutes and a compiler first.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from tiny_sd_engine.device import Device

_onednn: Any = torch.ops.mkldnn
_lay_out_convolution: Any = torch._C._nn.mkldnn_reorder_conv2d_weight


def can_pack(device: Device) -> bool:
    """Whether :func:`pack` is for networks on this device."""
    on_cpu = device.torch_device.type == "cpu" and device.dtype == torch.bfloat16
    return on_cpu and bool(_onednn._is_mkldnn_bf16_supported())


def pack(network: nn.Module) -> None:
    """Replace the linear layers, convolutions (transposed ones, too) and gated GELUs within a network.

    Their plain weights are let go.
    """
    for name, layer in network.named_children():
        match layer:
            case GEGLU():
                setattr(network, name, PackedGeglu(layer))
            case nn.Linear():
                setattr(network, name, PackedLinear(layer))
            case nn.Conv2d() if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                setattr(network, name, PackedConv2d(layer))
            case nn.ConvTranspose2d() if layer.output_padding == (0, 0):
                setattr(network, name, PackedConvTranspose2d(layer))
            case _:
                pack(layer)


class PackedLinear(nn.Module):
    """``nn.Linear``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._weight = _lay_out(layer.weight)
        self._bias = layer.bias

    def forward(self, inputs: Tensor, to: Tensor | None = None) -> Tensor:
        """[..., in] to [..., out], added to ``to``, [..., out], where that is given."""
        outputs: Tensor
        if to is None:
            outputs = _onednn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        else:
            outputs = _onednn._linear_pointwise.binary(inputs, to, self._weight, self._bias, "add")
        return outputs


class PackedGeglu(nn.Module):
    """diffusers' ``GEGLU``: one half of a linear layer times the exact GELU of the other (Shazeer, 2020)."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        self._value, self._gate = map(_lay_out, layer.proj.weight.chunk(2))
        bias = layer.proj.bias
        self._value_bias: Tensor | None
        self._gate_bias: Tensor | None
        self._value_bias, self._gate_bias = (None, None) if bias is None else bias.detach().chunk(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        gate = _onednn._linear_pointwise(inputs, self._gate, self._gate_bias, "gelu", [], "none")
        outputs: Tensor = _onednn._linear_pointwise.binary(inputs, gate, self._value, self._value_bias, "mul")
        return outputs


class PackedConv2d(nn.Module):
    """``nn.Conv2d`` with zeros around the picture."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._manner = (layer.padding, layer.stride, layer.dilation, layer.groups)
        self._weight = _lay_out_convolution(layer.weight.detach().to_mkldnn(), *self._manner)
        self._bias = layer.bias

    def forward(self, inputs: Tensor, to: Tensor | None = None) -> Tensor:
        """[n, in, h, w], channels last, to [n, out, h, w], added to ``to`` of that shape where it is given."""
        outputs: Tensor
        layer = (self._weight, self._bias, *self._manner)
        if to is None:
            outputs = _onednn._convolution_pointwise(inputs, *layer, "none", [], "")
        else:
            outputs = _onednn._convolution_pointwise.binary(inputs, to, *layer, "add", 1.0, None, [], None)
        return outputs


class PackedConvTranspose2d(nn.Module):
    """``nn.ConvTranspose2d`` without output padding."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        self._manner = (layer.padding, layer.output_padding, layer.stride, layer.dilation, layer.groups)
        self._weight = _onednn._reorder_convolution_transpose_weight(layer.weight.detach(), *self._manner)
        self._bias = layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, in, h, w], channels last, to [n, out, larger h, larger w]."""
        outputs: Tensor = _onednn._convolution_transpose_pointwise(
            inputs, self._weight, self._bias, *self._manner, "none", [], ""
        )
        return outputs


def _lay_out(weight: Tensor) -> Tensor:
    packed: Tensor = _onednn._reorder_linear_weight(weight.detach().contiguous())
    return packed
