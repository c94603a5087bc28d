"""From a picture's latents to the direction of a row: the network of `tiutils.word_encoder`, from the same file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from tiutils.flax.networks.layers import LayerFactory, ModuleList, Resnet, read_options

OPTIONS = {"hidden": 256, "side": 16, "latent_channels": 4, "channels": (96, 160, 224)}
GROUPS, EPSILON = 16, 1e-5


class WordEncoder(nnx.Module):
    """Always float32: it runs once per training."""

    def __init__(self, config: Mapping[str, Any]):
        c = read_options(config, "word encoder", OPTIONS, {})
        make, channels = LayerFactory(jnp.float32), c.channels
        self.side = c.side
        self.first = make.conv(c.latent_channels, channels[0])
        layers: list[nnx.Module] = [_resnet(make, channels[0])]
        for before, after in itertools.pairwise(channels):
            layers += [make.conv(before, after, stride=2), _resnet(make, after)]
        self.layers = ModuleList(layers)
        self.norm = make.group_norm(channels[-1], GROUPS, EPSILON)
        cells = (c.side // 2 ** (len(channels) - 1)) ** 2
        self.last = make.linear(channels[-1] * cells, c.hidden)

    def __call__(self, latents: Array) -> Array:
        """Scaled latents `(batch, latent_channels, side, side)` to unit vectors `(batch, hidden)`."""
        x = self.first(latents.transpose(0, 2, 3, 1))
        for layer in self.layers:
            x = layer(x)
        seen = nnx.silu(self.norm(x)).transpose(0, 3, 1, 2)  # as the weights in the file expect
        rows = self.last(seen.reshape(len(seen), -1))
        return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def _resnet(make: LayerFactory, channels: int) -> Resnet:
    return Resnet(make, channels, channels, groups=GROUPS, epsilon=EPSILON)
