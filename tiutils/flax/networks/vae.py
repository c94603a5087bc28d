"""The autoencoder (Kingma & Welling 2013; Rombach et al. 2022): images to latents an eighth their size, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from tiutils.errors import InputError
from tiutils.flax.networks.layers import (
    Attention,
    LayerFactory,
    ModuleList,
    ResizingBlock,
    Resnet,
    read_options,
)

OPTIONS = {  # with diffusers' defaults
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (64,), "layers_per_block": 1,
    "norm_num_groups": 32, "sample_size": 32, "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
    "force_upcast": True,  # without effect: the dtype is the caller's choice
}  # fmt: skip
FIXED = {
    "act_fn": "silu", "mid_block_add_attention": True, "use_quant_conv": True, "use_post_quant_conv": True,
}  # fmt: skip


class VAE(nnx.Module):
    """Encoder and decoder; latents are not scaled, which is left to the caller."""

    def __init__(self, config: Mapping[str, Any], *, dtype: Any = jnp.float32):
        c = read_options(config, "VAE", OPTIONS, FIXED)
        for kind in {*c.down_block_types, *c.up_block_types}:
            if kind not in ("DownEncoderBlock2D", "UpDecoderBlock2D"):
                raise InputError(
                    f"the VAE has a block {kind}, supported in JAX are DownEncoderBlock2D and UpDecoderBlock2D: "
                    "use PyTorch for this model"
                )
        make, latents = LayerFactory(dtype), c.latent_channels
        self.dtype, self.latent_channels = dtype, latents
        self.scaling_factor, self.factor = c.scaling_factor, 2 ** (len(c.block_out_channels) - 1)
        self.encoder = Encoder(make, c)
        self.quant_conv = make.linear(2 * latents, 2 * latents)  # 1×1 convolutions
        self.post_quant_conv = make.linear(latents, latents)
        self.decoder = Decoder(make, c)

    def encode(self, images: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the pictures' latents.

        Args:
            images: `(batch, 3, height, width)` from -1 to 1.

        Returns:
            Two arrays `(batch, channels, height / factor, width / factor)` in the VAE's dtype.
        """
        x = self.encoder(images.astype(self.dtype).transpose(0, 2, 3, 1))
        moments = self.quant_conv(x).transpose(0, 3, 1, 2)
        mean, log_variance = jnp.split(moments, 2, axis=1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: Array) -> Array:
        """Latents `(batch, channels, h, w)` to pictures `(batch, 3, h * factor, w * factor)`, about -1 to 1."""
        x = self.post_quant_conv(latents.astype(self.dtype).transpose(0, 2, 3, 1))
        return self.decoder(x).transpose(0, 3, 1, 2)


class Encoder(nnx.Module):
    """Halves height and width between its blocks."""

    def __init__(self, make: LayerFactory, c: Any):
        widths = c.block_out_channels
        self.conv_in = make.conv(c.in_channels, widths[0])
        blocks, width_before = [], widths[0]
        for i, width in enumerate(widths):
            inputs = [width_before, *[width] * (c.layers_per_block - 1)]
            blocks.append(Block(make, c, inputs, width, "halve" if i < len(widths) - 1 else ""))
            width_before = width
        self.down_blocks = ModuleList(blocks)
        self.mid_block = Middle(make, c, widths[-1])
        self.conv_norm_out = make.group_norm(widths[-1], c.norm_num_groups, 1e-6)
        self.conv_out = make.conv(widths[-1], 2 * c.latent_channels)

    def __call__(self, x: Array) -> Array:
        """`(b, H, W, 3)` to `(b, h, w, 2 * latent channels)`."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Doubles height and width between its blocks."""

    def __init__(self, make: LayerFactory, c: Any):
        widths = c.block_out_channels[::-1]
        self.conv_in = make.conv(c.latent_channels, widths[0])
        self.mid_block = Middle(make, c, widths[0])
        blocks, width_before = [], widths[0]
        for i, width in enumerate(widths):
            inputs = [width_before, *[width] * c.layers_per_block]
            blocks.append(Block(make, c, inputs, width, "double" if i < len(widths) - 1 else ""))
            width_before = width
        self.up_blocks = ModuleList(blocks)
        self.conv_norm_out = make.group_norm(widths[-1], c.norm_num_groups, 1e-6)
        self.conv_out = make.conv(widths[-1], c.out_channels)

    def __call__(self, x: Array) -> Array:
        """`(b, h, w, latent channels)` to `(b, H, W, 3)`."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Block(ResizingBlock):
    """Resnets at one resolution, then a change of resolution."""

    def __init__(self, make: LayerFactory, c: Any, inputs: list[int], width: int, resizing: str):
        self.resnets = ModuleList([_resnet(make, c, n, width) for n in inputs])
        below_and_right = ((0, 1), (0, 1))
        super().__init__(make, width, resizing, below_and_right)

    def __call__(self, x: Array) -> Array:
        """`(b, h, w, c)` to half or twice the size, or the same."""
        for resnet in self.resnets:
            x = resnet(x)
        return self.resize(x)


class Middle(nnx.Module):
    """Self-attention between two resnets, at the lowest resolution."""

    def __init__(self, make: LayerFactory, c: Any, width: int):
        self.resnets = ModuleList([_resnet(make, c, width, width) for _ in range(2)])
        self.attentions = ModuleList(
            [Attention(make, width, 1, bias=True, groups=c.norm_num_groups)]
        )

    def __call__(self, x: Array) -> Array:
        """`(b, h, w, c)` to the same."""
        first, second = self.resnets
        (attention,) = self.attentions
        x = first(x)
        positions = attention.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        return second(x + attention(positions).reshape(x.shape))


def _resnet(make: LayerFactory, c: Any, inputs: int, outputs: int) -> Resnet:
    return Resnet(make, inputs, outputs, groups=c.norm_num_groups, epsilon=1e-6)
