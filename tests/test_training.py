"""The three sentences: only the new rows train; a step is a pure function; frozen work is done once."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from accelerate import Accelerator
from small_model import save_small_model
from torch.utils._python_dispatch import TorchDispatchMode

from tiutils import concept, diffusion, models, token_embedding, training
from tiutils.config import TrainingConfig
from tiutils.errors import InputError, OutOfMemory
from tiutils.runs import inputs


def make_training(small_model, photos, scaler=None, **flags):
    flags = {"train_batch_size": 2, "max_train_steps": 6, "learning_rate": 5e-3} | flags
    config = TrainingConfig(str(photos), "<my-toy>", "toy", **flags)
    parts = models.load(small_model)
    placeholder = token_embedding.add_placeholder(
        parts, "<my-toy>", initializer_token="toy", num_vectors=config.num_vectors
    )
    loaded = concept.load(photos)
    return training.prepare(parts, placeholder, loaded, config, Accelerator(cpu=True), scaler)


def learn(small_model, photos, **flags):
    session = make_training(small_model, photos, **flags)
    start = session.rows.detach().clone()
    result = training.train_rows(session)
    return session, result, start


def fingerprints(parts, without=()):
    named = {
        f"{part}.{name}": tensor
        for part in ("text_encoder", "vae", "unet")
        for name, tensor in getattr(parts, part).state_dict().items()
    }
    return {
        name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for name, tensor in named.items()
        if not name.endswith(without)
    }


def test_only_running_out_of_memory_ends_the_loop_quietly(small_model, photos):
    session = make_training(small_model, photos)

    def fail(error):
        raise error

    kept = training.train_rows(session, take_step=lambda *_: fail(OutOfMemory("out of memory")))
    assert kept.out_of_memory and kept.stopped == "out of memory" and kept.losses == []
    with pytest.raises(InputError, match="another mistake"):
        training.train_rows(session, take_step=lambda *_: fail(InputError("another mistake")))


@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_only_the_new_rows_train(small_model, photos, use_8bit_adam):
    session = make_training(small_model, photos, num_vectors=2, use_8bit_adam=use_8bit_adam)
    before = fingerprints(session.models)
    training.train_rows(session)
    after = fingerprints(session.models)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {next(name for name in before if name.endswith(".rows"))}
    held = [p for group in session.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in held) == 2 * 32, "num_vectors × hidden"
    for value in session.optimizer.state[session.rows].values():
        assert not isinstance(value, torch.Tensor) or value.numel() <= max(2 * 32, 256)
    assert [p for p in session.models.text_encoder.parameters() if p.requires_grad] == held
    assert not any(p.requires_grad for p in session.models.unet.parameters())
    assert not any(p.requires_grad for p in session.models.vae.parameters())


def test_gradient_equals_that_of_a_whole_trainable_table(small_model, photos):
    """Against the plain way: a resized table that trains as a whole, in stock transformers."""
    session = make_training(small_model, photos, num_vectors=2)
    diffusion.losses_at(session.models, session.dataset, 0, 0, 2).mean().backward()

    plain = copy.copy(session.models)
    plain.text_encoders = token_embedding.merged(session.models).text_encoders
    table = plain.text_encoder.get_input_embeddings().weight
    table.requires_grad_(True)
    diffusion.losses_at(plain, session.dataset, 0, 0, 2).mean().backward()
    assert torch.allclose(session.rows.grad, table.grad[-2:], rtol=1e-4, atol=1e-7)
    assert table.grad[:-2].abs().sum() > 0, "the plain way moves words that stand in the prompts"


def test_loss_by_hand(small_model, photos):
    """The loss of one sample, with the formulas written out."""
    session = make_training(small_model, photos)
    dataset, parts = session.dataset, session.models
    from tiutils.batches import batch_at

    batch = batch_at(dataset.plan, 4, 1, 2)
    latent_noise, noise = torch.from_numpy(batch.latent_noise), torch.from_numpy(batch.noise)
    latents = dataset.mean[batch.views] + dataset.std[batch.views] * latent_noise
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)[batch.timesteps.item()]
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    states = parts.text_encoder(dataset.prompt_ids[batch.prompts])[0]
    predicted = parts.unet(noisy, torch.from_numpy(batch.timesteps), states).sample
    expected = ((predicted - noise) ** 2).mean()
    assert torch.allclose(diffusion.losses_at(parts, dataset, 4, 1, 2)[0], expected, rtol=1e-5)


def test_v_prediction_target(tmp_path, photos):
    folder = save_small_model(tmp_path / "v", prediction_type="v_prediction")
    session = make_training(folder, photos)
    latents, noise = torch.randn(2, 1, 4, 16, 16)
    timestep = torch.tensor([300])
    states = torch.zeros(1, 77, 32)
    loss = diffusion.diffusion_loss(session.models, latents, noise, timestep, states)
    alpha_bar = session.models.noise_scheduler.alphas_cumprod[300]
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    predicted = session.models.unet(noisy, timestep, states).sample
    assert torch.allclose(loss[0], ((predicted - velocity) ** 2).mean(), rtol=1e-5)


def test_a_model_that_predicts_the_sample_is_refused_before_it_is_loaded(
    tmp_path, photos, monkeypatch
):
    folder = save_small_model(tmp_path / "sample", prediction_type="sample")
    monkeypatch.setattr(models, "load", None)
    config = TrainingConfig(
        str(photos),
        "<my-toy>",
        "toy",
        pretrained_model_name_or_path=str(folder),
        output_dir=str(tmp_path / "out"),
    )
    with pytest.raises(
        InputError, match="predicts 'sample'; only models that predict epsilon or v_prediction"
    ):
        inputs.read_inputs(config, device="cpu")


def relative_difference(rows, other, start):
    return ((rows - other).norm() / (rows - start).norm()).item()


def test_four_at_once_equal_one_by_one(small_model, photos):
    flags = {"max_train_steps": 20}
    at_once, _, start = learn(small_model, photos, train_batch_size=4, **flags)
    by_one, _, _ = learn(
        small_model, photos, train_batch_size=1, gradient_accumulation_steps=4, **flags
    )
    assert relative_difference(at_once.rows, by_one.rows, start) <= 1e-3


def test_gradient_checkpointing_changes_no_number(small_model, photos):
    plain, _, start = learn(small_model, photos)
    lean, _, _ = learn(small_model, photos, gradient_checkpointing=True)
    assert relative_difference(plain.rows, lean.rows, start) <= 1e-4


@pytest.mark.parametrize(
    "flags", [{}, {"use_8bit_adam": True}, {"use_8bit_adam": True, "num_vectors": 4}]
)
def test_resume_is_exact(small_model, photos, tmp_path, flags):
    """In one process, through a file; tests/runs/test_resume.py does it with killed processes."""
    from tiutils.io import checkpoints

    whole, _, _ = learn(small_model, photos, **flags)
    first = make_training(small_model, photos, **flags)
    training.train_rows(first, callbacks=[lambda progress: progress.step == 3])
    checkpoints.save(tmp_path, first.capture(3))
    second = make_training(small_model, photos, **flags)
    training.restore(second, checkpoints.load_latest(tmp_path))
    training.train_rows(second, start=3)
    assert torch.equal(whole.rows, second.rows)


def test_the_loss_scaler_is_part_of_the_run_state(small_model, photos):
    """A scale that grows every other step, and steps that are skipped, survive a resume."""

    def scaler():
        return torch.amp.GradScaler(
            "cpu", init_scale=2.0**8, growth_interval=2, growth_factor=2.0**60
        )

    whole = make_training(small_model, photos, scaler())
    training.train_rows(whole)
    assert whole.scaler.get_scale() != 2.0**8, "the scale has moved"
    first = make_training(small_model, photos, scaler())
    training.train_rows(first, callbacks=[lambda progress: progress.step == 3])
    state = first.capture(3)
    second = make_training(small_model, photos, scaler())
    training.restore(second, state)
    training.train_rows(second, start=3)
    assert torch.equal(whole.rows, second.rows)
    assert whole.scaler.state_dict() == second.scaler.state_dict()


def test_a_scaled_gradient_makes_the_same_step(small_model, photos):
    plain, _, start = learn(small_model, photos)
    scaled = make_training(small_model, photos, torch.amp.GradScaler("cpu", init_scale=2.0**10))
    training.train_rows(scaled)
    assert relative_difference(plain.rows, scaled.rows, start) <= 1e-5


class CountReads(TorchDispatchMode):
    """How often a tensor's value was asked for: on a GPU, each time the host waits for it."""

    reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("flags", [{}, {"max_grad_norm": 1.0, "norm_control": 0.1}])
def test_a_step_reads_nothing_back(small_model, photos, flags):
    """With the optimizer that a GPU gets, and a loss scaler, whose verdict it asks by itself."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    session = make_training(small_model, photos, scaler, gradient_accumulation_steps=2, **flags)
    session.optimizer = torch.optim.AdamW([session.rows], lr=5e-3, fused=True)
    training.training_step(session, 0)  # makes what is made once
    with CountReads() as count:
        training.training_step(session, 1)
    assert count.reads == 0


def test_resume_is_exact_with_the_optimizer_that_a_gpu_gets(small_model, photos):
    def fused():
        session = make_training(
            small_model, photos, torch.amp.GradScaler("cpu", init_scale=2.0**10)
        )
        session.optimizer = torch.optim.AdamW([session.rows], lr=5e-3, fused=True)
        return session

    whole, first, second = fused(), fused(), fused()
    training.train_rows(whole)
    training.train_rows(first, callbacks=[lambda progress: progress.step == 3])
    training.restore(second, first.capture(3))
    training.train_rows(second, start=3)
    assert torch.equal(whole.rows, second.rows)


def test_photos_pass_through_the_vae_once_per_view(small_model, photos, monkeypatch):
    session = make_training(small_model, photos)
    assert session.dataset.mean.shape == (10, 4, 16, 16), "five square photos, each also mirrored"
    monkeypatch.setattr(session.models.vae, "encode", None)  # may not be called any more
    training.train_rows(session)


def test_each_step_draws_a_fresh_latent_sample(small_model, photos, monkeypatch):
    session = make_training(small_model, photos, max_train_steps=4)
    seen = []
    original = diffusion.diffusion_loss
    monkeypatch.setattr(
        diffusion,
        "diffusion_loss",
        lambda m, latents, *rest: (seen.append(latents), original(m, latents, *rest))[1],
    )
    training.train_rows(session)
    latents = torch.cat(seen)
    assert len(torch.unique(latents.flatten(1), dim=0)) == len(latents)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_rows(small_model, photos):
    session = make_training(small_model, photos, max_train_steps=50)

    def poison(progress):
        if progress.step == 2:
            poison.good = session.rows.detach().clone()
        if progress.step == 3:
            session.models.unet.conv_out.bias.data.fill_(float("nan"))

    result = training.train_rows(session, callbacks=[poison])
    assert (
        result.diverged and result.step == 3 and "at step 4; the rows of step 2" in result.stopped
    )
    assert torch.equal(session.rows, poison.good)


def test_a_callback_can_stop_the_run(small_model, photos):
    session = make_training(small_model, photos)
    result = training.train_rows(session, callbacks=[lambda progress: progress.step == 2])
    assert (result.step, len(result.losses), result.diverged) == (2, 2, False)


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_learning_lowers_the_loss(small_model, photos, mixed_precision):
    session = make_training(
        small_model, photos, max_train_steps=40, mixed_precision=mixed_precision, learning_rate=0.05
    )

    def fixed_loss():
        with torch.no_grad():
            return diffusion.losses_at(session.models, session.dataset, 10_000, 0, 2).mean().item()

    before = fixed_loss()
    training.train_rows(session)
    assert fixed_loss() < before
