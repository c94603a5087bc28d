"""The word encoder in JAX names the row that PyTorch's names, from the same file."""

import json
import shutil

import numpy as np
import pytest

from tiutils import concept, models, word_encoder
from tiutils.errors import InputError
from tiutils.flax import models as flax_models
from tiutils.flax import word_encoder as flax_word_encoder
from tiutils.flax.run import first_rows
from tiutils.io import pretrained

FOLDER = pretrained.BUNDLED_MODEL


@pytest.fixture(scope="module")
def parts():
    return flax_models.load(FOLDER)


def test_rows_are_pytorchs(parts):
    ours = models.load(FOLDER)
    for name in ("wood-toy", "rocking-horse"):
        thing = concept.load(FOLDER.parent / "concepts" / name)
        expected = word_encoder.row_from_photos(ours, thing).numpy()
        found = np.asarray(flax_word_encoder.row_from_photos(parts, thing))
        assert found.shape == (256,) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_run_starts_from_copies_of_the_row(parts, monkeypatch):
    from tiutils import TrainingConfig

    row = np.arange(256, dtype=np.float32)
    monkeypatch.setattr(flax_word_encoder, "row_from_photos", lambda models, concept: row)
    config = TrainingConfig(initializer_from_photos=True, num_vectors=2)
    np.testing.assert_array_equal(first_rows(config, None, parts), [row, row])


def test_a_model_without_one(parts, small_model):
    assert flax_word_encoder.load(small_model) is None
    parts.folder, folder = small_model, parts.folder
    with pytest.raises(InputError, match="needs a word encoder, but"):
        flax_word_encoder.row_from_photos(parts, None)
    parts.folder = folder


@pytest.mark.parametrize("changed", [{"hidden": 0}, {"channels": [96]}, {"strange": 1}])
def test_damaged_sizes(tmp_path, changed):
    shutil.copytree(FOLDER / "word_encoder", tmp_path / "word_encoder")
    path = tmp_path / "word_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError):
        flax_word_encoder.load(tmp_path)
