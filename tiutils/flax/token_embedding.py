"""New words and their vectors: as in `tiutils.token_embedding`, the table is neither resized nor copied.

All learned rows are in one array, `models.rows`, in the order in which the words were added; their ids start at
`models.first_id`, the length of the tokenizer before the first word.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tiutils.errors import InputError
from tiutils.flax.models import FlaxModels
from tiutils.flax.networks.text_encoder import TextEncoder
from tiutils.tokenizer import (
    Placeholder,
    check_new_word,
    check_width,
    median_norm,
    with_tokens,
)


def look_up(
    text_encoder: TextEncoder, input_ids: jax.Array, rows: jax.Array, first_id: int
) -> jax.Array:
    """Vectors of ids `(batch, tokens)`, from `rows` for those from `first_id` on: `(batch, tokens, hidden)`."""
    if not len(rows):
        return text_encoder.embed(input_ids)
    is_new = input_ids >= first_id
    vectors = text_encoder.embed(jnp.where(is_new, 0, input_ids))
    new_vectors = rows[jnp.clip(input_ids - first_id, 0, len(rows) - 1)]
    return jnp.where(is_new[..., None], new_vectors.astype(vectors.dtype), vectors)


def add_placeholder(
    models: FlaxModels,
    token: str,
    *,
    initializer_token: str | None = None,
    vectors: np.ndarray | jax.Array | None = None,
    num_vectors: int = 1,
) -> Placeholder:
    """Add a new word to the model; the arguments are those of `tiutils.token_embedding.add_placeholder`.

    Raises:
        InputError: see `tokenizer.check_new_word` and `tokenizer.check_width`.
    """
    tokens, start = check_new_word(models, token, initializer_token, num_vectors, vectors)
    if vectors is None:
        vectors = models.text_encoder.embed(jnp.array([start]))[0]
    return insert_placeholder(models, tokens, vectors, initializer_token)


def insert_placeholder(
    models: FlaxModels,
    tokens: Sequence[str],
    vectors: np.ndarray | jax.Array,
    initializer_token: str | None = None,
) -> Placeholder:
    """Add a word whose tokens are checked already; see `tiutils.token_embedding.insert_placeholder`.

    Raises:
        InputError: the vectors have another width than the model.
    """
    check_width(tokens[0], vectors.shape[1], models.name, models.hidden_size)
    models.tokenizer, ids = with_tokens(models.tokenizer, tokens)
    if not len(models.rows):
        models.first_id = ids[0]
    models.rows = jnp.concatenate([models.rows, jnp.asarray(vectors, jnp.float32)])
    return Placeholder(tokens[0], tuple(tokens), ids, initializer_token)


def start_vectors(models: FlaxModels, ids: Sequence[int]) -> jax.Array:
    """The vectors that a run's rows start from; see `tiutils.token_embedding.start_vectors`."""
    return models.text_encoder.embed(jnp.array([ids]))[0].astype(jnp.float32)


def table_of(models: FlaxModels) -> jax.Array:
    """The model's own rows, frozen, `(tokens, hidden)`."""
    return models.text_encoder.embeddings.token_embedding.embedding[...]


def usual_norms(models: FlaxModels, placeholder: Placeholder) -> tuple[float]:
    """The norm that norm control pulls a word's rows toward; see `tiutils.token_embedding.usual_norms`."""
    if not placeholder.initializer_token:
        return (median_norm(np.asarray(table_of(models))),)
    ids = models.tokenizer.encode(placeholder.initializer_token, add_special_tokens=False)
    rows = look_up(models.text_encoder, jnp.array([ids]), models.rows, models.first_id)[0]
    return (float(jnp.linalg.norm(rows.astype(jnp.float32), axis=1).mean()),)


def place_of(models: FlaxModels, placeholder: Placeholder) -> slice:
    """The place of the word's rows in `models.rows`.

    Raises:
        InputError: the model has no such word.
    """
    start = placeholder.ids[0] - models.first_id
    known = models.tokenizer.get_added_vocab()
    if known.get(placeholder.token) != placeholder.ids[0] or not 0 <= start < len(models.rows):
        raise InputError(f"the model has no word {placeholder.token!r}")
    return slice(start, start + placeholder.num_vectors)


def rows_of(models: FlaxModels, placeholder: Placeholder) -> jax.Array:
    """The word's rows, float32 `(num_vectors, hidden)`."""
    return models.rows[place_of(models, placeholder)]


def set_rows(models: FlaxModels, placeholder: Placeholder, rows: np.ndarray | jax.Array) -> None:
    """Replace the word's rows, float32 `(num_vectors, hidden)`."""
    models.rows = models.rows.at[place_of(models, placeholder)].set(jnp.asarray(rows))
