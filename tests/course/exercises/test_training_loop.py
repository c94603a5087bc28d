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


SOLUTIONS = runpy.run_path(str(pages.ROOT / "notebooks" / "solutions" / "training_loop.py"))


@pytest.mark.parametrize("name", ["noise_loss", "accumulated_step", "variance_ratio"])
def test_solutions_are_right_and_stubs_are_not_yet(name):
    check = getattr(exercises, f"check_{name}")
    assert check(SOLUTIONS[name]).startswith("right")
    assert check(lambda *_: ...).startswith("not yet")
    assert check(lambda *_: 1 / 0).startswith("not quite")
    assert check(7).startswith("not quite")


def test_the_module_passes_the_last_exercise():
    assert exercises.check_variance_ratio(early_stopping.variance_ratio).startswith("right")


def test_the_loss_of_exercise_1_is_that_of_the_notebook(page):
    parts, ids = page["parts"], page["prompt_ids"][:2]
    z0, noise = torch.randn(2, 2, *parts.latent_shape())
    t = torch.tensor([100, 700])
    with torch.no_grad():
        states = parts.text_encoder(ids)[0]
        found = SOLUTIONS["noise_loss"](
            lambda z, t: parts.unet(z, t, states).sample, z0, noise, t, page["alpha_bar"]
        )
        expected = page["loss_by_hand"](parts, z0, noise, t, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def mixed(z0, noise, share):
    return share.sqrt() * z0 + (1 - share).sqrt() * noise


def shares(t, alpha_bar):
    return alpha_bar[t].view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda guess, z0, noise, t, a: (
            (guess(mixed(z0, noise, shares(t, a)), t) - noise) ** 2
        ).mean(),
        lambda guess, z0, noise, t, a: ((guess(mixed(z0, noise, shares(t, a)), t) - z0) ** 2).mean(
            dim=(1, 2, 3)
        ),
        lambda guess, z0, noise, t, a: (
            (guess(mixed(z0, noise, shares(t, a)), t) - noise).abs().mean(dim=(1, 2, 3))
        ),
        lambda guess, z0, noise, t, a: (
            (guess(mixed(z0, noise, shares(t, a) ** 2), t) - noise) ** 2
        ).mean(dim=(1, 2, 3)),
        lambda guess, z0, noise, t, a: (
            (guess(mixed(z0, noise, shares(t[:1], a)), t) - noise) ** 2
        ).mean(dim=(1, 2, 3)),
        lambda guess, z0, noise, t, a: 0.1,
    ],
)
def test_wrong_losses_are_refused(function):
    assert exercises.check_noise_loss(function).startswith("not quite")


def without_a_share(optimizer, pieces):
    optimizer.zero_grad()
    losses = []
    for piece in pieces:
        losses.append(piece())
        losses[-1].backward()
    optimizer.step()
    return sum(loss.item() for loss in losses) / len(losses)


def with_old_gradients(optimizer, pieces):
    losses = []
    for piece in pieces:
        losses.append(piece() / len(pieces))
        losses[-1].backward()
    optimizer.step()
    return sum(loss.item() for loss in losses)


def a_step_each(optimizer, pieces):
    return sum(SOLUTIONS["accumulated_step"](optimizer, [piece]) for piece in pieces) / len(pieces)


def all_at_once(optimizer, pieces):
    optimizer.zero_grad()
    loss = sum(piece() for piece in pieces) / len(pieces)
    loss.backward()
    optimizer.step()
    return loss.item()


def the_sum(optimizer, pieces):
    return len(pieces) * SOLUTIONS["accumulated_step"](optimizer, pieces)


def nothing(optimizer, pieces):
    return sum(piece().item() for piece in pieces[:1])


@pytest.mark.parametrize(
    "function", [without_a_share, with_old_gradients, a_step_each, all_at_once, the_sum, nothing]
)
def test_wrong_steps_are_refused(function):
    assert exercises.check_accumulated_step(function).startswith("not quite")


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
