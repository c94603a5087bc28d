"""The switches that change what a step learns: each by hand, and in JAX as in PyTorch."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_model import draw_photo

import tiutils
from tiutils import batches, concept, dataset, diffusion, models, token_embedding, training
from tiutils.errors import InputError, OutOfMemory
from tiutils.io import checkpoints
from tiutils.runs import inputs, run

PLAN = batches.BatchPlan(0, 4, (2, 2), 27, (4, 2, 2))


# --- noise levels


def test_noisy_timesteps_have_their_density():
    plan = dataclasses.replace(
        PLAN, batch_size=4000, num_train_timesteps=4, timestep_sampling="noisy"
    )
    drawn = [batches._timestep(plan, 0, sample) for sample in range(4000)]
    edges = np.arange(5) / 4
    expected = np.diff(edges - np.sin(np.pi * edges) / (2 * np.pi))
    assert expected.sum() == pytest.approx(1)
    shares = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / np.sqrt(4000))  # four deviations
    assert shares[3] > 2 * shares[0]


def test_the_sampling_moves_no_other_draw():
    noisy = dataclasses.replace(PLAN, timestep_sampling="noisy")
    one, other = batches.batch_at(PLAN, 3), batches.batch_at(noisy, 3)
    assert not np.array_equal(one.timesteps, other.timesteps)
    for name in ("views", "prompts", "latent_noise", "noise"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_whole_range_draws_the_same_timesteps_as_none():
    for sampling in ("uniform", "noisy"):
        plan = dataclasses.replace(PLAN, timestep_sampling=sampling)
        whole = dataclasses.replace(plan, timestep_range=(0, 1000))
        for step in range(50):
            np.testing.assert_array_equal(
                batches.batch_at(plan, step).timesteps, batches.batch_at(whole, step).timesteps
            )


@pytest.mark.parametrize("sampling", ["uniform", "noisy"])
def test_timesteps_of_a_range_have_the_density_within_it(sampling):
    plan = dataclasses.replace(
        PLAN, num_train_timesteps=8, timestep_sampling=sampling, timestep_range=(2, 5)
    )
    drawn = [batches._timestep(plan, 0, sample) for sample in range(4000)]
    edges = np.arange(2, 6) / 8
    bent = edges - np.sin(np.pi * edges) / (2 * np.pi)
    mass = np.diff(edges if sampling == "uniform" else bent)
    shares = np.bincount(drawn, minlength=8) / 4000
    assert shares[[0, 1, 5, 6, 7]].sum() == 0
    np.testing.assert_allclose(shares[2:5], mass / mass.sum(), atol=4 * 0.5 / np.sqrt(4000))


# --- places


@pytest.fixture
def cut_out(tmp_path):
    """Two photos, 48 pixels: one opaque, one of which only the left third is there."""
    draw_photo(0).save(tmp_path / "1.png")
    image = draw_photo(1).convert("RGBA")
    alpha = Image.new("L", (48, 48), 0)
    alpha.paste(255, (0, 0, 16, 48))
    image.putalpha(alpha)
    image.save(tmp_path / "2.png")
    return tmp_path


def test_masks_by_hand(cut_out):
    photos = concept.load(cut_out)
    assert photos.photos[0].alpha is None, "opaque"
    plain, mirrored = (v for v in concept.views(photos) if v.photo == 1)
    expected = np.tile(np.float32([3, 0, 0]), (3, 1))
    np.testing.assert_array_equal(dataset.loss_mask(photos, plain, (3, 3)), expected)
    np.testing.assert_array_equal(dataset.loss_mask(photos, mirrored, (3, 3)), expected[:, ::-1])
    masks = dataset.loss_masks(photos, concept.views(photos), (3, 3))
    assert masks.shape == (4, 1, 3, 3) and (masks[:2] == 1).all()
    np.testing.assert_allclose(masks.mean(axis=(1, 2, 3)), 1)


def test_a_photo_that_is_not_there_at_all_counts_evenly():
    image = Image.new("RGB", (8, 8))
    photo = concept.Photo("x.png", image, Image.new("L", (8, 8), 0))
    thing = concept.Concept((photo,), (), "x")
    assert (dataset.loss_mask(thing, concept.views(thing)[0], (2, 2)) == 1).all()


def test_photos_without_alpha_have_no_masks(photos):
    thing = concept.load(photos)
    assert dataset.loss_masks(thing, concept.views(thing), (4, 4)) is None


def dataset_of(parts, thing, **switches):
    config = tiutils.TrainingConfig(train_batch_size=8, timestep_sampling="uniform", **switches)
    return diffusion.encode_dataset(parts, thing, "toy", config)


def test_losses_are_weighed_by_place(small_model, cut_out):
    parts, thing = models.load(small_model), concept.load(cut_out)
    plain = dataset_of(parts, thing)
    masked = dataset_of(parts, thing, masked_loss=True)
    batch = batches.batch_at(plain.plan, 0)
    with torch.no_grad():
        expected = diffusion.losses_at(parts, plain, 0, 0, 8).numpy()
        got = diffusion.losses_at(parts, masked, 0, 0, 8).numpy()
    opaque = batch.views < 2
    assert 0 < opaque.sum() < 8
    np.testing.assert_allclose(got[opaque], expected[opaque], rtol=1e-5)
    assert not np.isclose(got[~opaque], expected[~opaque], rtol=1e-3).any()


# --- the mean of the rows


def mean_by_hand(rows, count):
    """The mean after each step, in float64: that of all rows so far, and from `count` steps on one that forgets."""
    mean, means = rows[0], []
    for step, row in enumerate(rows, start=1):
        mean = np.mean(rows[:step], axis=0) if step <= count else mean + (row - mean) / count
        means.append(mean)
    return means


def watched(config):
    """A run; and after each step its run state, what it has learned, and the rows in the model."""
    seen = []

    def look(progress):
        begun = progress.training
        in_model = token_embedding.rows_of(begun.models, begun.placeholder).detach().numpy().copy()
        seen.append((begun.capture(progress.step).tensors, begun.vectors(), in_model))

    return tiutils.train(config, [look]), seen


def test_the_mean_is_learned_and_the_steps_are_the_same(small_model, photos, tmp_path):
    plain, without = watched(config_of(small_model, photos, tmp_path / "plain", max_train_steps=7))
    flags = {"max_train_steps": 7, "average_rows": 3}
    result, seen = watched(config_of(small_model, photos, tmp_path / "mean", **flags))
    assert result.losses == plain.losses
    raw = [tensors["rows"] for tensors, *_ in seen]
    np.testing.assert_array_equal(raw, [tensors["rows"] for tensors, *_ in without])
    expected = mean_by_hand(np.float64(raw), 3)
    assert np.abs(expected[-1] - raw[-1]).max() > 1e-3
    for (tensors, vectors, in_model), mean in zip(seen, expected, strict=True):
        np.testing.assert_allclose(tensors["mean_rows"], mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(tensors["mean_rows"], vectors)
        np.testing.assert_array_equal(tensors["mean_rows"], in_model)
    saved = tiutils.io.embeddings.read(result.embedding_path).vectors
    np.testing.assert_array_equal(saved, seen[-1][1])
    assert all("mean_rows" not in tensors for tensors, *_ in without)


def test_the_mean_of_one_step_is_that_step(small_model, photos, tmp_path):
    results = [
        tiutils.train(config_of(small_model, photos, tmp_path / str(n), average_rows=n))
        for n in (0, 1)
    ]
    rows = [tiutils.io.embeddings.read(r.embedding_path).vectors for r in results]
    np.testing.assert_array_equal(*rows)


def test_early_stopping_judges_the_mean(small_model, photos, tmp_path):
    """Its losses are those of the means, and it keeps one of them."""
    flags = {"average_rows": 3, "learning_rate": 0.05, "max_train_steps": 6, "early_stopping": True}
    flags |= {"early_stopping_steps": 1, "early_stopping_window": 5}
    config, seen = config_of(small_model, photos, tmp_path / "run", **flags), {}

    def look(progress):
        seen[progress.step] = progress.training.vectors()

    result = tiutils.train(config, [look])
    begun = begin(config_of(small_model, photos, tmp_path / "again"))
    for step, loss in result.stopping.losses.items():
        begun.set_vectors(seen[step])
        assert loss == pytest.approx(begun.fixed_loss(16), rel=1e-6)
    saved = tiutils.io.embeddings.read(result.embedding_path).vectors
    np.testing.assert_array_equal(saved, seen[result.best_step])


@pytest.mark.parametrize("killed_after", [2, 5])
def test_a_run_with_a_mean_is_resumed_bit_for_bit(small_model, photos, tmp_path, killed_after):
    def kill(progress):
        if progress.step == killed_after:
            raise KeyboardInterrupt  # no last checkpoint: as far as the run knows, it was killed

    flags = {"average_rows": 4, "max_train_steps": 8, "checkpointing_steps": 1}
    whole = tiutils.train(config_of(small_model, photos, tmp_path / "whole", **flags))
    killed = config_of(small_model, photos, tmp_path / "killed", **flags)
    killed = dataclasses.replace(killed, resume_from_checkpoint="latest")
    with pytest.raises(KeyboardInterrupt):
        tiutils.train(killed, [kill])
    resumed = tiutils.train(killed)
    assert resumed.losses == whole.losses[killed_after:]
    states = [checkpoints.load_latest(tmp_path / name) for name in ("whole", "killed")]
    assert states[0].tensors.keys() == states[1].tensors.keys() and states[0].step == 8
    for name, tensor in states[0].tensors.items():
        assert tensor.tobytes() == states[1].tensors[name].tobytes(), name
    rows = [tiutils.io.embeddings.read(r.embedding_path).vectors for r in (whole, resumed)]
    assert rows[0].tobytes() == rows[1].tobytes()


def test_a_mean_begun_or_ended_in_the_middle(small_model, photos, tmp_path):
    """A run state without a mean begins one at its rows; one with a mean goes on from the newest rows."""
    plain = begin(config_of(small_model, photos, tmp_path))
    mean = begin(config_of(small_model, photos, tmp_path, average_rows=3))
    for begun in (plain, mean):
        training.train_rows(begun)
    rows, state = plain.vectors(), mean.capture(4)
    training.restore(mean, plain.capture(4))
    np.testing.assert_array_equal(mean.vectors(), rows)
    np.testing.assert_array_equal(mean.newest_rows, rows)
    training.restore(plain, state)
    np.testing.assert_array_equal(plain.vectors(), rows)


def test_without_memory_the_state_is_that_before_the_step(small_model, photos, tmp_path):
    begun = begin(config_of(small_model, photos, tmp_path, average_rows=3))
    states = {}

    def take_step(begun, step):
        if step == 2:
            begun.rows.data += 1  # whatever a step that fails has done
            raise OutOfMemory("out of memory")
        return training.training_step(begun, step)

    def keep(progress):
        states[progress.step] = begun.capture(progress.step)

    assert training.train_rows(begun, 0, [keep], take_step=take_step).out_of_memory
    for name, tensor in begun.capture(2).tensors.items():
        np.testing.assert_array_equal(tensor, states[2].tensors[name])


# --- sentences


def test_a_photo_with_a_caption_is_learned_from_it(small_model, cut_out):
    (cut_out / "2.txt").write_text("a red {} on sand\n")
    parts, thing = models.load(small_model), concept.load(cut_out)
    assert dataset.captions(thing, "toy") == (None, "a red toy on sand")
    plain, own = dataset_of(parts, thing), dataset_of(parts, thing, captions=True)
    assert own.captions.tolist() == [-1, -1, 27, 27] and len(own.prompt_ids) == 28
    assert torch.equal(
        own.prompt_ids[27:], token_embedding.tokenize(parts.tokenizer, ["a red toy on sand"])
    )
    with torch.no_grad():
        before = diffusion.losses_at(parts, plain, 0, 0, 8)
        after = diffusion.losses_at(parts, own, 0, 0, 8)
    has_none = torch.from_numpy(batches.batch_at(plain.plan, 0).views < 2)
    assert torch.equal(before[has_none], after[has_none]), "the others keep theirs"
    assert (before[~has_none] != after[~has_none]).all()


@pytest.mark.parametrize("text", ["a red toy", "", "a {}\nb", "a \x1b[31m{}"])
def test_captions_that_cannot_teach_the_word_are_refused(cut_out, text):
    (cut_out / "1.txt").write_text(text)
    with pytest.raises(InputError, match=r"caption '1.txt' must be one line that holds <t>"):
        dataset.captions(concept.load(cut_out), "<t>")


@given(content=st.binary(max_size=200))
def test_any_caption_is_read_or_refused(content, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    (folder / "x.txt").write_bytes(content)
    thing = concept.Concept((concept.Photo(folder / "x.png", Image.new("RGB", (8, 8))),), (), "x")
    try:
        (caption,) = dataset.captions(thing, "<t>")
    except InputError as error:
        assert "x.txt" in str(error) and str(error).isprintable()
    else:
        assert "<t>" in caption and caption.isprintable() and "\n" not in caption


# --- steps


def config_of(small_model, photos, folder, **flags):
    return tiutils.TrainingConfig(
        pretrained_model_name_or_path=str(small_model), train_data_dir=str(photos),
        placeholder_token="<t>", initializer_token="toy", output_dir=str(folder),
        train_batch_size=2, **{"max_train_steps": 4, **flags},
    )  # fmt: skip


def begin(config):
    parts = models.load(config.pretrained_model_name_or_path)
    word = token_embedding.insert_placeholder(
        parts,
        [f"<t>_{i}" if i else "<t>" for i in range(config.num_vectors)],
        run.first_rows(config, None, parts),
        config.initializer_phrase or config.initializer_token,
    )
    thing = concept.load(config.train_data_dir)
    return training.prepare(parts, word, thing, config, Accelerator(cpu=True))


def test_rows_are_pulled_to_the_length_of_the_word_they_started_from(small_model, photos, tmp_path):
    begun = begin(config_of(small_model, photos, tmp_path, norm_control=1.0, num_vectors=2))
    parts = models.load(small_model)
    usual = token_embedding.vector_of(parts, "toy").norm().item()
    assert begun.usual_norms == pytest.approx((usual,))
    begun.rows.data[1] *= 50
    training.training_step(begun, 0)
    np.testing.assert_allclose(begun.rows.detach().norm(dim=1), usual, rtol=1e-5)
    half = begin(config_of(small_model, photos, tmp_path, norm_control=0.5, learning_rate=1e-9))
    half.rows.data *= 3 * usual / half.rows.norm()
    training.training_step(half, 0)
    assert half.rows.norm().item() == pytest.approx(2 * usual, rel=1e-4)


@pytest.mark.parametrize("framework", ["pytorch", "flax"])
def test_the_usual_length_of_a_word(small_model, framework):
    flax = pytest.importorskip("tiutils.flax.models") if framework == "flax" else None
    if flax:
        from tiutils.flax import token_embedding as surgery

        parts = flax.load(small_model)
    else:
        surgery, parts = token_embedding, models.load(small_model)
    table = models.load(small_model).text_encoder.get_input_embeddings().weight.detach()
    ids = [parts.tokenizer.encode(w, add_special_tokens=False)[0] for w in ("red", "toy")]
    lengths = table[ids].norm(dim=1).tolist()
    vectors = np.ones((1, table.shape[1]), np.float32)
    phrase = surgery.insert_placeholder(parts, ["<a>"], as_rows(vectors, framework), "red toy")
    assert surgery.usual_norms(parts, phrase) == pytest.approx((sum(lengths) / 2,), rel=1e-5)
    learned = surgery.insert_placeholder(parts, ["<b>"], as_rows(vectors, framework), "<a>")
    assert surgery.usual_norms(parts, learned) == pytest.approx((table.shape[1] ** 0.5,), rel=1e-5)
    median = float(np.median(table.norm(dim=1)))
    nothing = surgery.insert_placeholder(parts, ["<c>"], as_rows(vectors, framework))
    assert surgery.usual_norms(parts, nothing) == pytest.approx((median,), rel=1e-5)


def as_rows(vectors, framework):
    return torch.from_numpy(vectors) if framework == "pytorch" else vectors


def test_long_gradients_are_shortened(small_model, photos, tmp_path):
    plain, clipped = (
        begin(config_of(small_model, photos, tmp_path, max_grad_norm=norm)) for norm in (None, 1e-4)
    )
    for begun in (plain, clipped):
        training.training_step(begun, 0)
    moments = [b.optimizer.state[b.rows]["exp_avg"] for b in (plain, clipped)]  # 0.1 × gradient
    assert moments[0].norm() > 1e-4 * 0.1 * 1.01, "long enough to be shortened"
    np.testing.assert_allclose(
        moments[1], moments[0] * (1e-5 / moments[0].norm()), rtol=1e-3, atol=1e-9
    )


def test_a_phrase_gives_a_vector_for_each_token(small_model, photos, tmp_path):
    config = config_of(small_model, photos, tmp_path, initializer_phrase="small red toy")
    parts = models.load(small_model)
    table = parts.text_encoder.get_input_embeddings().weight
    ids = parts.tokenizer.encode("small red toy", add_special_tokens=False)
    assert len(ids) == 3
    assert torch.equal(run.first_rows(config, None, parts), table[ids])
    result = tiutils.train(dataclasses.replace(config, initializer_token=""))
    assert result.placeholder.num_vectors == 3
    assert result.placeholder.initializer_token == "small red toy"


@pytest.mark.parametrize("flags, said", [
    ({"initializer_phrase": "small red toy", "num_vectors": 2}, "is 3 tokens"),
    ({"initializer_phrase": ""}, "is 0 tokens"),
    ({"initializer_phrase": " ".join(["toy"] * 80)}, "80 vectors, too many"),
    ({"norm_control": 2.5}, "norm_control"),
    ({"max_grad_norm": float("nan")}, "max_grad_norm"), ({"timestep_sampling": "late"}, "noisy"),
    ({"timestep_range": (500, 500)}, "is 500 500"), ({"timestep_range": [900, 500]}, "is 900 500"),
    ({"timestep_range": (0, 1001)}, "from 0 to 1000"), ({"timestep_range": (1.0, 9)}, "whole"),
    ({"timestep_range": (-1, 9)}, "is -1 9"), ({"timestep_range": (5,)}, "two"),
    ({"average_rows": -1}, "at least 0"), ({"average_rows": 5}, "is 5, but the run has only 4 steps"),
])  # fmt: skip
def test_impossible_switches_are_refused(small_model, photos, tmp_path, flags, said):
    config = config_of(small_model, photos, tmp_path / "run", **flags)
    with pytest.raises(InputError, match=said):
        inputs.read_inputs(config, device="cpu")


SWITCHES = [
    {"norm_control": 0.5}, {"average_rows": 3}, {"max_grad_norm": 1e-4},
    {"timestep_sampling": "noisy", "timestep_range": (300, 950)}, {"masked_loss": True}, {"captions": True},
    {"initializer_phrase": "small toy"},
]  # fmt: skip


@pytest.mark.slow
def test_each_switch_is_the_same_in_jax(small_model, cut_out, tmp_path):
    from tiutils.flax import run as in_jax

    (cut_out / "2.txt").write_text("a red {} on sand\n")
    together = {name: value for switch in SWITCHES for name, value in switch.items()}
    config = config_of(small_model, cut_out, tmp_path / "torch", **together)
    plain = config_of(small_model, cut_out, tmp_path / "plain")
    ours, others = tiutils.train(config), tiutils.train(plain)
    theirs = in_jax.train(dataclasses.replace(config, output_dir=str(tmp_path / "jax")))
    np.testing.assert_allclose(theirs.losses, ours.losses, rtol=1e-4)
    rows = [tiutils.io.embeddings.read(r.embedding_path).vectors for r in (ours, theirs)]
    np.testing.assert_allclose(*rows, rtol=1e-3, atol=1e-4)
    assert not np.allclose(ours.losses, others.losses, rtol=1e-2), "they do something"
