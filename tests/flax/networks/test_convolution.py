"""The convolution for CPUs is JAX's own, and so are both of its gradients."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from tiutils.flax.networks import convolution, layers

sides = st.integers(3, 7)
pads = st.tuples(st.integers(0, 2), st.integers(0, 2))


@settings(max_examples=25, deadline=None)
@given(sides, sides, st.sampled_from([1, 3]), st.sampled_from([1, 2]), pads, pads)
def test_values_and_gradients(height, width, size, stride, vertical, horizontal):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, height, width, 3)).astype(np.float32)
    kernel = generator.normal(size=(size, size, 3, 5)).astype(np.float32)
    rest = ((stride, stride), tuple(min(p, (size - 1, size - 1)) for p in (vertical, horizontal)))
    expected, pull = jax.vjp(
        lambda x, k: lax.conv_general_dilated(x, k, *rest, dimension_numbers=convolution.LAYOUT),
        x,
        kernel,
    )
    found, pull_found = jax.vjp(lambda x, k: convolution.convolve(x, k, *rest), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    probe = generator.normal(size=expected.shape).astype(np.float32)
    for ours, theirs in zip(pull_found(probe), pull(probe), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "tpu", "gpu"])
def test_only_a_cpu_needs_it(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    conv = jax.eval_shape(lambda: layers.LayerFactory(np.float32).conv(3, 5))
    used = conv.conv_general_dilated
    assert (used is convolution.convolve) == (backend == "cpu")
    assert (used is lax.conv_general_dilated) == (backend != "cpu")
