"""The U-Net of Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752): predicts the noise in latents."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
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

OPTIONS = {  # with diffusers' defaults: old files leave many out
    "in_channels": 4, "out_channels": 4, "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2, "transformer_layers_per_block": 1, "cross_attention_dim": 1280,
    "norm_num_groups": 32, "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0.0,
    # without effect here: 1×1 convolutions are linear layers, scores are always float32, frozen layers have no dropout
    "use_linear_projection": False, "upcast_attention": False, "dropout": 0.0,
}  # fmt: skip
FIXED = {
    "act_fn": "silu", "attention_type": "default", "conv_in_kernel": 3, "conv_out_kernel": 3,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_out_scale_factor": 1, "resnet_time_scale_shift": "default", "time_embedding_type": "positional",
    "addition_embed_type_num_heads": 64,  # without effect, as there is no addition_embed_type
}  # fmt: skip
HAS_ATTENTION = {
    "DownBlock2D": False, "CrossAttnDownBlock2D": True, "UpBlock2D": False, "CrossAttnUpBlock2D": True,
}  # fmt: skip


class UNet(nnx.Module):
    """Downsampling blocks, a middle block, and upsampling blocks with skip connections.

    With `gradient_checkpointing` only the inputs of resnets and transformers are kept for the backward pass, which
    recomputes the rest: less memory, more time, the same numbers. It may be switched between calls.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        dtype: Any = jnp.float32,
        gradient_checkpointing: bool = False,
    ):
        c = _options(config)
        make = LayerFactory(dtype)
        widths = c.block_out_channels
        self.dtype, self.gradient_checkpointing = dtype, gradient_checkpointing
        self.in_channels, self.context_width = c.in_channels, c.cross_attention_dim
        self.sample_size, self.halvings = c.sample_size, len(widths) - 1
        self.time_channels, self.freq_shift = widths[0], c.freq_shift
        self.flip_sin_to_cos = c.flip_sin_to_cos
        self.time_embedding = TimeEmbedding(make, widths[0], c.time_width)
        self.conv_in = make.conv(c.in_channels, widths[0])

        down: list[Block] = []
        skips = [widths[0]]  # channels of the skip connections
        kinds = zip(c.down_block_types, widths, c.heads, c.only_cross, strict=True)
        for kind, width, heads, only_cross in kinds:
            last = len(down) == len(widths) - 1
            inputs = [skips[-1], *[width] * (c.layers_per_block - 1)]
            counts = [heads] * len(inputs) if HAS_ATTENTION[kind] else []
            down.append(Block(make, c, inputs, width, counts, only_cross, "" if last else "halve"))
            skips += [width] * (c.layers_per_block + (not last))
        self.down_blocks = ModuleList(down)
        widest = widths[-1]
        self.mid_block = Block(make, c, [widest] * 2, widest, c.heads[-1:], c.mid_only_cross)
        up: list[Block] = []
        reverse = (column[::-1] for column in (widths, c.heads, c.only_cross))
        for kind, width, heads, only_cross in zip(c.up_block_types, *reverse, strict=True):
            inputs = []
            for _ in range(c.layers_per_block + 1):
                inputs.append(widest + skips.pop())
                widest = width  # of the input from the layer before
            counts = [heads] * len(inputs) if HAS_ATTENTION[kind] else []
            last = len(up) == len(widths) - 1
            up.append(Block(make, c, inputs, width, counts, only_cross, "" if last else "double"))
        self.up_blocks = ModuleList(up)
        self.conv_norm_out = make.group_norm(widths[0], c.norm_num_groups, c.norm_eps)
        self.conv_out = make.conv(widths[0], c.out_channels)

    def __call__(self, latents: Array, timesteps: Array, encoder_hidden_states: Array) -> Array:
        """Predict the noise, or the velocity, whichever the model learned.

        Args:
            latents: `(batch, channels, height, width)`, noisy.
            timesteps: `(batch,)` integers.
            encoder_hidden_states: `(batch, tokens, hidden)`, the text encoder's output for the prompts.

        Returns:
            The shape of `latents`, in the U-Net's dtype.

        Raises:
            InputError: a shape that this U-Net cannot take.
        """
        self._check(latents, encoder_hidden_states)
        context = encoder_hidden_states.astype(self.dtype)
        x = self.conv_in(latents.astype(self.dtype).transpose(0, 2, 3, 1))
        time = self.time_embedding(self._waves(timesteps))
        skips = [x]
        for block in self.down_blocks:
            for layer in block.layers():
                x = self._run(layer, x, time, context)
                skips.append(x)
            if block.resizing:
                x = block.resize(x)
                skips.append(x)
        for layer in self.mid_block.layers():
            x = self._run(layer, x, time, context)
        for block in self.up_blocks:
            for layer in block.layers():
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self._run(layer, x, time, context)
            x = block.resize(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).transpose(0, 3, 1, 2)

    def _run(
        self, layer: tuple[Resnet, Transformer | None], x: Array, time: Array, context: Array
    ) -> Array:
        """A resnet and its transformer, if it has one."""
        resnet, transformer = layer
        keep = jax.checkpoint if self.gradient_checkpointing else lambda function: function
        x = keep(lambda x, time: resnet(x, time))(x, time)
        if transformer is not None:
            x = keep(lambda x, context: transformer(x, context))(x, context)
        return x

    def _waves(self, timesteps: Array) -> Array:
        """Sinusoidal embedding of the timesteps, `(batch, channels)` (Vaswani et al. 2017, section 3.5)."""
        half = self.time_channels // 2
        rates = jnp.exp(-math.log(10000) * jnp.arange(half) / (half - self.freq_shift))
        angles = timesteps.astype(jnp.float32)[:, None] * rates
        waves = [jnp.sin(angles), jnp.cos(angles)]
        waves = waves[::-1] if self.flip_sin_to_cos else waves
        return jnp.concatenate(waves, axis=-1).astype(self.dtype)

    def _check(self, latents: Array, context: Array) -> None:
        factor = 2**self.halvings
        if (
            latents.ndim != 4
            or latents.shape[1] != self.in_channels
            or any(side % factor for side in latents.shape[2:])
        ):
            raise InputError(
                f"the latents are {latents.shape}; expected (batch, {self.in_channels}, height, width) "
                f"with height and width multiples of {factor}"
            )
        expected = (latents.shape[0], "tokens", self.context_width)
        if context.ndim != 3 or context.shape[::2] != expected[::2]:
            raise InputError(
                f"the encoder hidden states are {context.shape}; expected "
                f"({expected[0]}, tokens, {expected[2]})"
            )


class TimeEmbedding(nnx.Module):
    """Two linear layers that turn the sinusoidal embedding into the timestep embedding of the resnets."""

    def __init__(self, make: LayerFactory, inputs: int, width: int):
        self.linear_1 = make.linear(inputs, width)
        self.linear_2 = make.linear(width, width)

    def __call__(self, waves: Array) -> Array:
        """`(batch, inputs)` to `(batch, width)`."""
        return self.linear_2(nnx.silu(self.linear_1(waves)))


class Block(ResizingBlock):
    """Layers at one resolution, each a resnet and perhaps a transformer, then a change of resolution."""

    def __init__(
        self,
        make: LayerFactory,
        c: Any,
        inputs: list[int],
        width: int,
        heads: list[int],
        only_cross: bool,
        resizing: str = "",
    ):
        norm = {"groups": c.norm_num_groups, "epsilon": c.norm_eps}
        self.resnets = ModuleList(
            [Resnet(make, n, width, time_width=c.time_width, **norm) for n in inputs]
        )
        self.has_attention = bool(heads)
        if heads:
            self.attentions = ModuleList(
                [Transformer(make, c, width, count, only_cross) for count in heads]
            )
        super().__init__(make, width, resizing)

    def layers(self) -> list[tuple[Resnet, Transformer | None]]:
        """Each resnet with the transformer that follows it."""
        attentions = self.attentions if self.has_attention else ()
        return list(itertools.zip_longest(self.resnets, attentions))


class Transformer(nnx.Module):
    """Positions attend to each other and to the prompt; with `only_cross`, to the prompt twice."""

    def __init__(self, make: LayerFactory, c: Any, channels: int, heads: int, only_cross: bool):
        self.norm = make.group_norm(channels, c.norm_num_groups, 1e-6)
        self.proj_in = make.linear(channels, channels)  # in SD 1.x a 1×1 convolution: the same
        self.transformer_blocks = ModuleList(
            [
                TransformerBlock(make, channels, heads, c.cross_attention_dim, only_cross)
                for _ in range(c.transformer_layers_per_block)
            ]
        )
        self.proj_out = make.linear(channels, channels)

    def __call__(self, x: Array, context: Array) -> Array:
        """`x` is `(b, h, w, channels)`, `context` `(b, tokens, hidden)`; returns the shape of `x`."""
        batch, height, width, channels = x.shape
        tokens = self.proj_in(self.norm(x)).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).reshape(x.shape)


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and a gated feed-forward layer, each with a skip connection."""

    def __init__(
        self, make: LayerFactory, channels: int, heads: int, context_width: int, only_cross: bool
    ):
        self.only_cross = only_cross
        self.norm1, self.norm2, self.norm3 = (make.layer_norm(channels) for _ in range(3))
        own_width = context_width if only_cross else None
        self.attn1 = Attention(make, channels, heads, context_width=own_width)
        self.attn2 = Attention(make, channels, heads, context_width=context_width)
        self.ff = FeedForward(make, channels)

    def __call__(self, x: Array, context: Array) -> Array:
        """`(b, positions, channels)` to the same."""
        x = x + self.attn1(self.norm1(x), context if self.only_cross else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class FeedForward(nnx.Module):
    """Expands four times and back, gated by GELU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, make: LayerFactory, channels: int):
        self.net = ModuleList(
            [Gate(make, channels, 4 * channels), None, make.linear(4 * channels, channels)]
        )

    def __call__(self, x: Array) -> Array:
        """`(b, positions, channels)` to the same."""
        for part in self.net:
            x = part(x)
        return x


class Gate(nnx.Module):
    """One half of the linear layer's output, gated by the other."""

    def __init__(self, make: LayerFactory, channels: int, outputs: int):
        self.proj = make.linear(channels, 2 * outputs)

    def __call__(self, x: Array) -> Array:
        """`(b, positions, channels)` to `(b, positions, outputs)`."""
        hidden, gate = jnp.split(self.proj(x), 2, axis=-1)
        return hidden * jax.nn.gelu(gate, approximate=False)


def _options(config: Mapping[str, Any]) -> Any:
    """The checked options, with `heads` and `only_cross` of each downsampling block.

    diffusers calls the number of heads `attention_head_dim` (its issue 2011); Stable Diffusion 1.x has one number
    for all blocks, 2.x a list.
    """
    heads = config.get("attention_head_dim", 8)
    only_cross = config.get("only_cross_attention", False)
    apart = ("attention_head_dim", "only_cross_attention", "mid_block_only_cross_attention")
    rest = {name: value for name, value in config.items() if name not in apart}
    c = read_options(rest, "U-Net", OPTIONS, FIXED)
    c.time_width = 4 * c.block_out_channels[0]
    kinds = [*c.down_block_types, *c.up_block_types]
    stages = len(c.block_out_channels)
    c.only_cross = [only_cross] * stages if isinstance(only_cross, bool) else only_cross
    is_list = isinstance(c.only_cross, (list, tuple)) and len(c.only_cross) == stages
    if not is_list or not all(isinstance(flag, bool) for flag in c.only_cross):
        raise InputError(
            f"the U-Net's option only_cross_attention is {only_cross!r}, expected true, false or a list "
            f"of {stages} of them"
        )
    middle = config.get("mid_block_only_cross_attention")
    c.mid_only_cross = bool(only_cross is True if middle is None else middle)
    c.heads = [heads] * stages if type(heads) is int else heads
    if not isinstance(c.heads, list) or not all(type(n) is int and n > 0 for n in c.heads):
        raise InputError(
            f"the U-Net's option attention_head_dim is {heads!r}, expected a number from 1 or a list of them"
        )
    for kind in kinds:
        if kind not in HAS_ATTENTION:
            raise InputError(
                f"the U-Net has a block {kind}, supported in JAX are {', '.join(HAS_ATTENTION)}: "
                "use PyTorch for this model"
            )
    if {len(c.down_block_types), len(c.up_block_types), len(c.heads)} != {stages}:
        raise InputError(
            f"the U-Net has {stages} block_out_channels, but {len(c.down_block_types)} down_block_types, "
            f"{len(c.up_block_types)} up_block_types and {len(c.heads)} attention_head_dim: config.json is damaged"
        )
    return c
