"""From photos to a row in JAX: the twin of `tiutils.word_encoder`, with the same network from the same file."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tiutils import concept as concepts
from tiutils.concept import Concept
from tiutils.errors import InputError
from tiutils.flax.diffusion import encode_views
from tiutils.flax.models import FlaxModels
from tiutils.flax.networks import weights
from tiutils.flax.networks.word_encoder import WordEncoder
from tiutils.flax.token_embedding import table_of
from tiutils.io import pretrained
from tiutils.tokenizer import median_norm


def load(folder: str | Path) -> WordEncoder | None:
    """The word encoder of a model's folder, float32; None if the model has none.

    Raises:
        InputError: its files are damaged, or do not match.
    """
    if not pretrained.has_word_encoder(folder):
        return None
    config = pretrained.read_config(folder, pretrained.WORD_ENCODER)
    return weights.load_into(lambda: WordEncoder(config), Path(folder) / pretrained.WORD_ENCODER)


def row_from_photos(models: FlaxModels, concept: Concept) -> jax.Array:
    """The row that the model's word encoder predicts from the photos: float32 `(hidden,)`.

    See `tiutils.word_encoder.row_from_photos`; both give the same row.

    Raises:
        InputError: the model has no word encoder, or that of another model.
    """
    encoder = None if models.folder is None else load(models.folder)
    if encoder is None:
        raise InputError(pretrained.no_word_encoder(models.name))
    views = [view for view in concepts.views(concept, center_crop=True) if not view.flip]
    latents, _ = encode_views(models, concept, views, encoder.side * models.vae_factor)
    with jax.default_matmul_precision("float32"):  # by default, accelerators use less
        mean = jax.jit(lambda encoder, x: encoder(x))(encoder, latents).mean(axis=0)
    return mean / jnp.linalg.norm(mean) * median_norm(np.asarray(table_of(models)))
