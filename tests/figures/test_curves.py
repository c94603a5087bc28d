"""Loss curves: their alt text, and gaps for unknown losses."""

import io

import numpy as np
import pytest
from PIL import Image

from tiutils.errors import InputError
from tiutils.figures import curves, output


def drawn(figure):
    """Pixels of the figure, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(output.to_png(figure))).convert("RGB"))


def test_loss_curve_says_in_words_what_it_shows():
    figure = curves.loss_curve([0.5] * 30 + [0.25] * 30, evaluation={0: 0.4, 60: 0.2}, kept_step=50)
    text = output.alt_text(figure)
    assert "from 0.500 to 0.250" in text
    assert "from 0.4000 at step 0 to 0.2000 at step 60" in text
    assert "step 50 were kept" in text
    drawn(figure)


def test_loss_curve_leaves_gaps_for_losses_that_are_not_known():
    text = output.alt_text(curves.loss_curve([None, 0.5, float("nan"), 0.25]))
    assert "from 0.500 to 0.375" in text


def test_loss_curve_with_one_evaluation():
    assert "0.4000 at step 0" in output.alt_text(curves.loss_curve([1.0], evaluation={0: 0.4}))


def test_sensitivity_curve_says_in_words_what_it_shows():
    figure = curves.sensitivity_curve({10: 1.02, 600: 0.444})
    assert "from 1.02 at step 10 to 0.44 at step 600" in output.alt_text(figure)
    drawn(figure)
    with pytest.raises(InputError, match="no prompt sensitivity"):
        curves.sensitivity_curve({})


@pytest.mark.parametrize("losses", [[], [None, None]])
def test_loss_curve_without_losses_is_refused(losses):
    with pytest.raises(InputError, match="no loss"):
        curves.loss_curve(losses)


def test_running_mean_by_hand():
    np.testing.assert_allclose(curves.running_mean(np.array([1.0, 2, 3, 4]), 2), [1, 1.5, 2.5, 3.5])
