"""A convolution whose gradient is fast on a CPU as well.

The gradient with respect to a convolution's input is a convolution with the flipped kernel. JAX leaves the flip to XLA,
which fuses it into the convolution, and on a CPU XLA has no fast code for that: in a `lax.scan` it takes five times as
long as other convolutions (jax 0.10). Here the flipped kernel is an array of its own. As the kernels are frozen, XLA
flips each of them once, before the scan, at the cost of a second copy in memory: not worthwhile on a GPU or a TPU,
which are fast either way.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

Pads = tuple[tuple[int, int], ...]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution() -> Any:
    """The function for `nnx.Conv` to call: `convolve` on a CPU, JAX's own elsewhere."""
    return convolve if jax.default_backend() == "cpu" else lax.conv_general_dilated


def convolve(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pads, **_: Any) -> Array:
    """`lax.conv_general_dilated` of `(b, h, w, inputs)` and `(k, k, inputs, outputs)`, without dilation or groups."""
    return _convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pads) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def _forward(x: Array, kernel: Array, strides: tuple[int, ...], padding: Pads) -> Any:
    return _convolve(x, kernel, strides, padding), (x, kernel)


def _backward(strides: tuple[int, ...], padding: Pads, kept: Any, gradient: Array) -> Any:
    """Gradients with respect to input and kernel; XLA drops the second where it is not used."""
    x, kernel = kept
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # (k, k, outputs, inputs)
    between = [(0, 0, stride - 1) for stride in strides]  # zeros where a stride skips
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), [(0, 0, 0), *between, (0, 0, 0)])
    pads = []
    for axis, (before, _) in enumerate(padding, start=1):
        size = kernel.shape[axis - 1]
        start = size - 1 - before
        pads.append((start, x.shape[axis] + size - 1 - spread.shape[axis] - start))
    by_input = lax.conv_general_dilated(spread, flipped, (1, 1), pads, dimension_numbers=LAYOUT)
    plain = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=LAYOUT
    )
    _, by_kernel = jax.vjp(lambda kernel: plain(x, kernel), kernel)
    return by_input, by_kernel(gradient)[0]


_convolve.defvjp(_forward, _backward)
