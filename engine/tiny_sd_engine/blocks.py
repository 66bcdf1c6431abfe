"""diffusers' blocks in fewer passes over memory. For networks whose layers are packed.

What a layer's output is added to is added by the layer, activations are taken in place, and texts have a length that
torch's attention for CPUs likes: for 77 tokens, CLIP's number, it takes twice as long as for 80, in bfloat16 and on
processors with AMX.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

_GRAIN = 16  # tokens


def fuse(network: nn.Module) -> None:
    """Replace the blocks within a network that are of Stable Diffusion 1's kind. Its layers are to be packed next."""
    for name, block in network.named_children():
        match block:
            case ResnetBlock2D() if _is_usual_resnet(block):
                setattr(network, name, Resnet(block))
            case Transformer2DModel() if _is_usual_transformer(block):
                setattr(network, name, Transformer(block))
            case Upsample2D() if _is_usual_upsample(block):
                setattr(network, name, Upsample(block))
            case _:
                fuse(block)


class Resnet(nn.Module):
    """``ResnetBlock2D``."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.time_emb_proj, self.conv_shortcut = block.time_emb_proj, block.conv_shortcut

    def forward(self, inputs: Tensor, temb: Tensor | None = None) -> Tensor:
        """inputs: [n, in, h, w]; temb: [n, width], what the timesteps became. Returns [n, out, h, w]."""
        hidden = self.conv1(silu(self.norm1(inputs), inplace=True))
        if temb is not None:
            hidden += self.time_emb_proj(silu(temb))[:, :, None, None]
        hidden = silu(self.norm2(hidden), inplace=True)
        outputs: Tensor = self.conv2(hidden, inputs if self.conv_shortcut is None else self.conv_shortcut(inputs))
        return outputs


class Transformer(nn.Module):
    """``Transformer2DModel``."""

    def __init__(self, block: Transformer2DModel) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = block.norm, block.proj_in, block.proj_out
        self.blocks = nn.ModuleList(TransformerBlock(each) for each in block.transformer_blocks)

    def forward(self, inputs: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        """inputs: [rows, channels, h, w]; encoder_hidden_states: [rows, tokens, width], the texts.

        Returns what ``inputs`` became. The other arguments that diffusers passes are for other networks.
        """
        tokens = encoder_hidden_states.shape[1]
        texts = pad(encoder_hidden_states, (0, 0, 0, -tokens % _GRAIN))
        mask = texts.new_zeros(1, 1, 1, texts.shape[1])
        mask[..., tokens:] = -torch.inf
        hidden = self.proj_in(self.norm(inputs)).permute(0, 2, 3, 1).flatten(1, 2)
        for block in self.blocks:
            hidden = block(hidden, texts, mask)
        return (self.proj_out(hidden.unflatten(1, inputs.shape[2:]).permute(0, 3, 1, 2), inputs),)


class TransformerBlock(nn.Module):
    """``BasicTransformerBlock``."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.attn1, self.attn2 = block.attn1, block.attn2
        self.up, _, self.down = block.ff.net

    def forward(self, hidden: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """hidden: [rows, latents, channels]; texts: [rows, tokens, width]; mask: what to add to their weights."""
        normed = self.norm1(hidden)
        hidden = _attend(self.attn1, normed, normed, None, hidden)
        hidden = _attend(self.attn2, self.norm2(hidden), texts, mask, hidden)
        outputs: Tensor = self.down(self.up(self.norm3(hidden)), hidden)
        return outputs


class Upsample(nn.Module):
    """``Upsample2D``: a convolution over a picture in which each pixel has become four.

    Nine weights meet nine pixels there, of which only four differ. With the weights of equal ones added up beforehand
    this is a transposed convolution of the small picture, with four ninths of the products.
    """

    def __init__(self, block: Upsample2D) -> None:
        super().__init__()
        self.conv = block.conv
        self.doubled = nn.ConvTranspose2d(block.channels, block.out_channels, 4, 2, padding=1, device="meta")
        weight = block.conv.weight.transpose(0, 1).flip(2, 3)
        summed = torch.zeros(self.doubled.weight.shape)
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):  # the four pixels that one has become
            summed[:, :, down : down + 3, right : right + 3] += weight
        self.doubled.weight = nn.Parameter(summed.to(weight.dtype), requires_grad=False)
        self.doubled.bias = block.conv.bias

    def forward(self, inputs: Tensor, output_size: tuple[int, int] | None = None) -> Tensor:
        """inputs: [n, in, h, w]. Returns [n, out, 2 * h, 2 * w], or of ``output_size``, where that is given."""
        # Where an edge is not quite doubled, what is at that edge has other neighbours.
        doubles = output_size is None
        outputs: Tensor = self.doubled(inputs) if doubles else self.conv(interpolate(inputs, output_size))
        return outputs


def _attend(attention: Attention, normed: Tensor, context: Tensor, mask: Tensor | None, hidden: Tensor) -> Tensor:
    query, key, value = (
        each.unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for each in (attention.to_q(normed), attention.to_k(context), attention.to_v(context))
    )
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scale)
    outputs: Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2), hidden)
    return outputs


def _is_usual_resnet(block: ResnetBlock2D) -> bool:
    bare = not block.up and not block.down and not block.skip_time_act and block.output_scale_factor == 1
    # "group" is what VAEs say, whose blocks have nothing to do with timesteps.
    usual_norm = block.time_embedding_norm in ("default", "group")
    return bare and usual_norm and isinstance(block.nonlinearity, nn.SiLU)


def _is_usual_upsample(block: Upsample2D) -> bool:
    bare = block.norm is None and block.interpolate and block.name == "conv" and not block.use_conv_transpose
    return bare and block.use_conv and (block.conv.kernel_size, block.conv.padding) == ((3, 3), (1, 1))


def _is_usual_transformer(block: Transformer2DModel) -> bool:
    bare = block.is_input_continuous and not block.use_linear_projection
    return bare and all(_is_usual(each) for each in block.transformer_blocks)


def _is_usual(block: BasicTransformerBlock) -> bool:
    bare = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
    attentions = (block.attn1, block.attn2)
    return (
        bare
        and not hasattr(block, "fuser")
        and isinstance(block.ff.net[0], GEGLU)
        and all(each is not None and _is_usual_attention(each) for each in attentions)
        and block.attn2.is_cross_attention
    )


def _is_usual_attention(attention: Attention) -> bool:
    parts = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
    bare = not any(getattr(attention, name, None) for name in parts)
    return bare and not attention.residual_connection and attention.rescale_output_factor == 1
