"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020): token vectors to encoder hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from tiutils.errors import InputError
from tiutils.flax.networks.layers import (
    LayerFactory,
    ModuleList,
    dot_product_attention,
    read_options,
)

OPTIONS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class TextEncoder(nnx.Module):
    """Called in two steps, `embed` and the transformer, so that learned rows can be inserted in between."""

    def __init__(self, config: Mapping[str, Any], *, dtype: Any = jnp.float32):
        known = {name: config[name] for name in OPTIONS if name in config}
        c = read_options(known, "text encoder", OPTIONS, {})
        if c.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"the text encoder's option hidden_act is {c.hidden_act!r}, supported are "
                f"{', '.join(ACTIVATIONS)}: use PyTorch for this model"
            )
        make = LayerFactory(dtype)
        self.hidden_size = c.hidden_size
        self.embeddings = Embeddings(make, c)
        self.encoder = Encoder(make, c)
        self.final_layer_norm = make.layer_norm(c.hidden_size, c.layer_norm_eps)

    def embed(self, input_ids: Array) -> Array:
        """Vectors of the token table: int `(batch, tokens)` to `(batch, tokens, hidden)`."""
        return self.embeddings.token_embedding(input_ids)

    def __call__(self, vectors: Array) -> Array:
        """Vectors `(batch, tokens, hidden)` to the last hidden state, of the same shape."""
        positions = self.embeddings.position_embedding(jnp.arange(vectors.shape[1]))
        x = vectors + positions
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class Embeddings(nnx.Module):
    """The token and position embeddings."""

    def __init__(self, make: LayerFactory, c: Any):
        self.token_embedding = make.embed(c.vocab_size, c.hidden_size)
        self.position_embedding = make.embed(c.max_position_embeddings, c.hidden_size)


class Encoder(nnx.Module):
    """The layers, under their name in the weight files."""

    def __init__(self, make: LayerFactory, c: Any):
        self.layers = ModuleList([Layer(make, c) for _ in range(c.num_hidden_layers)])


class Layer(nnx.Module):
    """Causal self-attention, then an MLP, each with a skip connection."""

    def __init__(self, make: LayerFactory, c: Any):
        self.layer_norm1 = make.layer_norm(c.hidden_size, c.layer_norm_eps)
        self.self_attn = SelfAttention(make, c)
        self.layer_norm2 = make.layer_norm(c.hidden_size, c.layer_norm_eps)
        self.mlp = MLP(make, c)

    def __call__(self, x: Array) -> Array:
        """`(batch, tokens, hidden)` to the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SelfAttention(nnx.Module):
    """Causal: a token attends to itself and those before it."""

    def __init__(self, make: LayerFactory, c: Any):
        if c.hidden_size % c.num_attention_heads:
            raise InputError(
                f"the text encoder's hidden_size {c.hidden_size} does not divide into "
                f"{c.num_attention_heads} attention heads: config.json is damaged"
            )
        self.heads = c.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            make.linear(c.hidden_size, c.hidden_size) for _ in range(4)
        )

    def __call__(self, x: Array) -> Array:
        """`(batch, tokens, hidden)` to the same."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(dot_product_attention(q, k, v, self.heads, causal=True))


class MLP(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, make: LayerFactory, c: Any):
        self.activation = c.hidden_act
        self.fc1 = make.linear(c.hidden_size, c.intermediate_size)
        self.fc2 = make.linear(c.intermediate_size, c.hidden_size)

    def __call__(self, x: Array) -> Array:
        """`(batch, tokens, hidden)` to the same."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
