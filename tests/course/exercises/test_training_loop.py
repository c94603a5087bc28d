"""03_training_loop: what it builds by hand is what tiutils does; its exercises check themselves."""

import runpy

import numpy as np
import pages
import pytest
import torch

from tiutils import batches, concept, diffusion, models, token_embedding
from tiutils.config import TrainingConfig
from tiutils.course.exercises import training_loop as exercises
from tiutils.runs import early_stopping

CELLS = pages.sources("03_training_loop")


def silent(*_, **__):
    """In the place of print."""


@pytest.fixture(scope="module")
def page(small_model, photos):
    """The notebook's own definitions, executed on the small model and test photos."""
    parts = models.load(small_model)
    thing = concept.load(photos)
    names = {
        "parts": parts, "thing": thing, "device": parts.device, "np": np, "torch": torch, "BATCH": 4,
        "WORD": "<w>", "INITIALIZER": "toy", "token_embedding": token_embedding, "concept": concept, "print": silent,
    }  # fmt: skip
    for cell in ("moments-by-hand", "noise-by-hand", "word", "loss-by-hand", "loop-by-hand"):
        exec(compile(CELLS[cell], cell, "exec"), names)
    return names


def test_noise_by_hand(page):
    scheduler = page["parts"].noise_scheduler
    torch.testing.assert_close(page["alpha_bar"], scheduler.alphas_cumprod, atol=1e-6, rtol=0)
    z0, noise = torch.randn(2, 5, 4, 8, 8)
    t = torch.tensor([0, 1, 250, 700, 999])
    expected = scheduler.add_noise(z0, noise, t)
    torch.testing.assert_close(page["add_noise"](z0, noise, t), expected, atol=1e-5, rtol=0)


def test_moments_by_hand(page):
    views = [v for v in concept.views(page["thing"], center_crop=True) if not v.flip]
    parts = page["parts"]
    expected = diffusion.encode_views(parts, page["thing"], views, parts.resolution)
    found = page["moments_by_hand"](parts, [photo.image for photo in page["thing"].photos])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-2, rtol=0)  # crops round differently


def test_loss_by_hand(page):
    parts = page["parts"]
    config = TrainingConfig(seed=3, train_batch_size=5)
    dataset = diffusion.encode_dataset(parts, page["thing"], "<w>", config)
    batch = batches.batch_at(dataset.plan, 2)
    view, sentence, t, sample, noise = map(
        torch.from_numpy,
        (batch.views, batch.prompts, batch.timesteps, batch.latent_noise, batch.noise),
    )
    with torch.no_grad():
        z0 = dataset.mean[view] + dataset.std[view] * sample
        found = page["loss_by_hand"](parts, z0, noise, t, dataset.prompt_ids[sentence])
        expected = diffusion.losses_at(parts, dataset, 2, 0, 5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_loop_by_hand_moves_the_row_and_nothing_else(page):
    parts, row = page["parts"], page["row"]
    before = {n: p.detach().clone() for n, p in parts.unet.named_parameters()}
    table = parts.text_encoder.get_input_embeddings().table.weight.detach().clone()
    start = row.detach().clone()
    losses = page["train_by_hand"](3)
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert not torch.equal(row, start)
    assert torch.equal(parts.text_encoder.get_input_embeddings().table.weight, table)
    assert all(torch.equal(p, before[n]) for n, p in parts.unet.named_parameters())


def test_solutions_are_right_and_stubs_are_not_yet():
    solutions = runpy.run_path(str(pages.ROOT / "notebooks" / "solutions" / "training_loop.py"))
    assert exercises.check_adam_bytes(solutions["adam_bytes"]).startswith("right")
    assert exercises.check_variance_ratio(solutions["variance_ratio"]).startswith("right")
    assert exercises.check_variance_ratio(early_stopping.variance_ratio).startswith("right")
    assert exercises.check_adam_bytes(lambda shape: ...).startswith("not yet")
    assert exercises.check_variance_ratio(lambda losses, window: ...).startswith("not yet")


@pytest.mark.parametrize(
    "function",
    [
        lambda shape: shape[0] * shape[1],
        lambda shape: 4 * shape[0] * shape[1],
        lambda shape: 8 * shape[1],
        lambda shape: "6144",
        lambda shape: 1 / 0,
        7,
    ],
)
def test_wrong_bytes_are_refused(function):
    assert exercises.check_adam_bytes(function).startswith("not quite")


@pytest.mark.parametrize(
    "function",
    [
        lambda losses, window: np.var(losses[-window:]),
        lambda losses, window: np.var(losses[:window]) / max(np.var(losses), 1e-9),
        lambda losses, window: np.var(losses[-window:]) / np.var(losses),  # nothing varies: NaN
        lambda losses, window: np.std(losses[-window:]) / max(np.std(losses), 1e-9),
        lambda losses, window: np.var(losses[-window:], ddof=1) / max(np.var(losses, ddof=1), 1e-9),
        lambda losses, window: "0",
        lambda losses: 0.0,
        7,
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_wrong_ratios_are_refused(function):
    assert exercises.check_variance_ratio(function).startswith("not quite")
