"""Building blocks of the networks; images are `(batch, height, width, channels)` inside.

Modules are named as in the weight files, so that a path in a module is the name of its weight: see `weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tiutils.errors import InputError
from tiutils.flax.networks.convolution import convolution


class LayerFactory:
    """Makes layers of one dtype. Their initial weights are zeros: `weights.load_into` fills them."""

    def __init__(self, dtype: Any):
        # no random weights: tracing their keys took most of the time of loading a model
        no_random_keys = SimpleNamespace(params=lambda: None)
        self.kinds = {"dtype": dtype, "param_dtype": dtype, "rngs": no_random_keys}
        self.zeros = {"kernel_init": nnx.initializers.zeros_init()}

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nnx.Linear:
        """A linear layer."""
        return nnx.Linear(inputs, outputs, use_bias=bias, **self.zeros, **self.kinds)

    def conv(
        self, inputs: int, outputs: int, size: int = 3, *, stride: int = 1, padding: Any = 1
    ) -> nnx.Conv:
        """A convolution; `padding` as `nnx.Conv` takes it."""
        return nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=padding,
            conv_general_dilated=convolution(),
            **self.zeros,
            **self.kinds,
        )

    def group_norm(self, channels: int, groups: int, epsilon: float) -> nnx.GroupNorm:
        """Group normalization; statistics are float32 whatever the dtype."""
        if channels % groups:
            raise InputError(
                f"{channels} channels cannot be normalized in {groups} groups: config.json is damaged"
            )
        # the variance as torch takes it: E[x²] − E[x]² loses digits where the mean is large
        return nnx.GroupNorm(
            channels, groups, epsilon=epsilon, use_fast_variance=False, **self.kinds
        )

    def embed(self, count: int, width: int) -> nnx.Embed:
        """An embedding table."""
        return nnx.Embed(count, width, embedding_init=nnx.initializers.zeros_init(), **self.kinds)

    def layer_norm(self, channels: int, epsilon: float = 1e-5) -> nnx.LayerNorm:
        """Layer normalization; statistics are float32 whatever the dtype."""
        return nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, **self.kinds)


class ModuleList(nnx.Module):
    """Modules named by number, as in `resnets.0.conv1`; the number of a None is skipped."""

    def __init__(self, modules: Sequence[nnx.Module | None]):
        for number, module in enumerate(modules):
            if module is not None:
                setattr(self, str(number), module)
        self.numbers = tuple(i for i, module in enumerate(modules) if module is not None)

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, str(number)) for number in self.numbers)


class Resnet(nnx.Module):
    """Two convolutions with a skip connection; the timestep embedding, if any, is added in between."""

    def __init__(
        self,
        make: LayerFactory,
        inputs: int,
        outputs: int,
        *,
        groups: int,
        epsilon: float,
        time_width: int | None = None,
    ):
        self.norm1 = make.group_norm(inputs, groups, epsilon)
        self.conv1 = make.conv(inputs, outputs)
        if time_width is not None:
            self.time_emb_proj = make.linear(time_width, outputs)
        self.norm2 = make.group_norm(outputs, groups, epsilon)
        self.conv2 = make.conv(outputs, outputs)
        self.has_shortcut = inputs != outputs
        if self.has_shortcut:
            self.conv_shortcut = make.linear(inputs, outputs)  # a 1×1 convolution

    def __call__(self, x: Array, time: Array | None = None) -> Array:
        """`x` is `(b, h, w, inputs)`, `time` `(b, time_width)`; returns `(b, h, w, outputs)`."""
        hidden = self.conv1(nnx.silu(self.norm1(x)))
        if time is not None:
            hidden += self.time_emb_proj(nnx.silu(time))[:, None, None]
        hidden = self.conv2(nnx.silu(self.norm2(hidden)))
        return (self.conv_shortcut(x) if self.has_shortcut else x) + hidden


class Attention(nnx.Module):
    """Multi-head attention of `x` to `context`, or to itself; scores and softmax are float32 whatever the dtype."""

    def __init__(
        self,
        make: LayerFactory,
        channels: int,
        heads: int,
        *,
        context_width: int | None = None,
        bias: bool = False,
        groups: int | None = None,
    ):
        if channels % heads:
            raise InputError(
                f"{channels} channels do not divide into {heads} attention heads: config.json is damaged"
            )
        self.heads = heads
        if groups is not None:
            self.group_norm = make.group_norm(channels, groups, 1e-6)
        context_width = context_width or channels
        self.to_q = make.linear(channels, channels, bias=bias)
        self.to_k = make.linear(context_width, channels, bias=bias)
        self.to_v = make.linear(context_width, channels, bias=bias)
        self.to_out = ModuleList([make.linear(channels, channels)])

    def __call__(self, x: Array, context: Array | None = None) -> Array:
        """`x` is `(b, n, channels)`, `context` `(b, m, context_width)`; returns the shape of `x`."""
        context = x if context is None else context
        attended = dot_product_attention(
            self.to_q(x), self.to_k(context), self.to_v(context), self.heads
        )
        (project,) = self.to_out
        return project(attended)


def dot_product_attention(
    queries: Array, keys: Array, values: Array, heads: int, *, causal: bool = False
) -> Array:
    """softmax(QKᵀ/√d)V for each head: `(b, n, channels)` and twice `(b, m, channels)` to `(b, n, channels)`."""
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (queries, keys, values))
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal).reshape(queries.shape)


class Downsample(nnx.Module):
    """Halves height and width."""

    def __init__(self, make: LayerFactory, channels: int, *, padding: Any):
        self.conv = make.conv(channels, channels, stride=2, padding=padding)

    def __call__(self, x: Array) -> Array:
        """`(b, h, w, c)` to `(b, h/2, w/2, c)`."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles height and width: each pixel four times, then a convolution."""

    def __init__(self, make: LayerFactory, channels: int):
        self.conv = make.conv(channels, channels)

    def __call__(self, x: Array) -> Array:
        """`(b, h, w, c)` to `(b, 2h, 2w, c)`."""
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        return self.conv(x.reshape(batch, 2 * height, 2 * width, channels))


class ResizingBlock(nnx.Module):
    """A block that may end by halving or doubling height and width; its parts are named as in the weight files."""

    def __init__(self, make: LayerFactory, channels: int, resizing: str, padding: Any = 1):
        """`resizing` is "halve", "double" or ""; `padding` that of a halving convolution."""
        self.resizing = resizing
        if resizing == "halve":
            self.downsamplers = ModuleList([Downsample(make, channels, padding=padding)])
        if resizing == "double":
            self.upsamplers = ModuleList([Upsample(make, channels)])

    def resize(self, x: Array) -> Array:
        """`(b, h, w, c)` to half or twice the height and width, or the same."""
        samplers = {"halve": "downsamplers", "double": "upsamplers"}.get(self.resizing)
        for sampler in getattr(self, samplers) if samplers else ():
            x = sampler(x)
        return x


def read_options(
    config: Mapping[str, Any], part: str, free: Mapping[str, Any], fixed: Mapping[str, Any]
) -> SimpleNamespace:
    """The options of a config.json that shape a network; refuses what this network cannot do.

    Args:
        config: the file's content.
        part: `"unet"` or another part's name, for messages.
        free: options that may vary, with their defaults; a value must be of its default's kind.
        fixed: options that may have one value only.

    Raises:
        InputError: an option has a value that is not supported, or not of its kind. Unknown options are
            refused, too, unless they are off: a network that ignored one would compute something else.
    """
    for name, value in config.items():
        if name.startswith("_") or name in free:
            continue
        if value != fixed[name] if name in fixed else value not in (None, False):
            only = f"only {fixed[name]!r}" if name in fixed else "not at all"
            raise InputError(
                f"the {part}'s option {name} is {value!r}, supported {only} in JAX: use PyTorch for this model"
            )
    values = {}
    for name, default in free.items():
        value = config.get(name, default)
        if not _same_kind(value, default):
            raise InputError(
                f"the {part}'s option {name} is {value!r}, where a value like {default!r} is expected: "
                "config.json is damaged, or made for another kind of model"
            )
        values[name] = tuple(value) if isinstance(value, list) else value
    return SimpleNamespace(**values)


def _same_kind(value: Any, default: Any) -> bool:
    """A list of the same kind for a tuple, a whole number from 1 for a whole number, and so on."""
    if isinstance(default, tuple):
        is_list = isinstance(value, (list, tuple)) and len(value) > 0
        return is_list and all(_same_kind(item, default[0]) for item in value)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, int) and not isinstance(default, bool):
        return type(value) is int and value > 0
    return isinstance(value, type(default))
