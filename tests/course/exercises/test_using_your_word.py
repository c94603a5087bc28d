"""What 05 builds by hand is what tiutils has; its words fit the bundled model; its checks check."""

import functools
import json
import runpy

import numpy as np
import pages
import pytest
import torch

from data.recipes.results import embeddings as recipe
from tiutils import batches, diffusion, models
from tiutils.course import attention
from tiutils.course.exercises import using_your_word as exercises
from tiutils.evaluation import sensitivity
from tiutils.io import embeddings, pretrained

SOLUTIONS = runpy.run_path(str(pages.ROOT / "notebooks" / "solutions" / "using_your_word.py"))


def test_the_shares_by_hand_are_the_modules(small_model):
    parts = models.load(small_model)
    by_hand = pages.definitions("05_using_your_word", "shares-by-hand")
    torch.manual_seed(0)
    layers = [m for m in parts.unet.modules() if getattr(m, "is_cross_attention", False)]
    for layer in layers:
        places = torch.randn(2, 16, layer.to_q.in_features)
        text = torch.randn(2, 77, layer.to_k.in_features)
        torch.testing.assert_close(
            by_hand["shares_by_hand"](layer, places, text),
            attention.attention_shares(layer, places, text),
        )


def test_the_spread_by_hand_is_the_modules(small_model, monkeypatch):
    parts = models.load(small_model)
    plan = batches.BatchPlan(0, 1, (1,), 1, parts.latent_shape(), 1000)
    monkeypatch.setattr(sensitivity, "DRAWS", 1)
    (noise,) = batches.batch_at(batches.fixed_plan(plan, 1), 0).noise
    known = {
        "np": np,
        "parts": parts,
        "noise": noise,
        "diffusion": diffusion,
        "sensitivity": sensitivity,
    }
    spread = pages.definitions("05_using_your_word", "witness", **known)["spread"]
    predict = functools.partial(diffusion.predictions, parts)
    for word in ("toy", "cat"):
        assert spread(word) == pytest.approx(
            sensitivity.prompt_spread(predict, plan, word), rel=1e-4
        )


@pytest.mark.parametrize("name", recipe.NAMES)
def test_shipped_words_were_learned_with_the_bundled_model_as_it_is(name):
    paths = [
        recipe.WORDS / f"{name}.safetensors",
        *recipe.WORDS.glob(f"steps/{name}-*.safetensors"),
    ]
    width = pretrained.read_config(pretrained.BUNDLED_MODEL, "text_encoder")["hidden_size"]
    for path in paths:
        learned = embeddings.read(path)
        advice = "python -m data.recipes.results.embeddings"
        assert learned.metadata["model_digest"] == recipe.model_digest(), advice
        assert learned.token == f"<{name}>" and learned.vectors.shape == (1, width)


def test_the_stages_of_the_long_run_are_what_they_are_called():
    for path in recipe.WORDS.glob("steps/*.safetensors"):
        assert embeddings.read(path).metadata["steps"] == path.stem.rsplit("-", 1)[1]


def test_shipped_words_keep_their_length_and_the_long_run_does_not():
    """Section 7 of the notebook shows what becomes of a row that nothing pulls back."""
    short, long = (
        np.linalg.norm(embeddings.read(path).vectors)
        for path in (
            recipe.WORDS / f"{recipe.LONG_RUN}.safetensors",
            recipe.WORDS / "steps" / f"{recipe.LONG_RUN}-{recipe.LONG_RUN_STEPS[-1]}.safetensors",
        )
    )
    assert long > 3 * short


def test_the_card_is_that_of_the_words_that_are_here():
    assert (recipe.WORDS / "README.md").read_text(encoding="utf-8") == recipe.card(
        recipe.model_digest()
    )


def test_shipping_keeps_the_word_and_names_its_model(tmp_path):
    vectors = np.ones((2, 8), np.float32)
    source = embeddings.write(
        tmp_path / "a.safetensors",
        embeddings.LearnedEmbedding("<t>", vectors, {"steps": "5", "base_model": "/x"}),
    )
    recipe.ship(source, tmp_path / "steps" / "b.safetensors", "0123")
    shipped = embeddings.read(tmp_path / "steps" / "b.safetensors")
    assert shipped.metadata == {"steps": "5", "model_digest": "0123", "base_model": "tiny-sd"}
    assert shipped.token == "<t>" and np.array_equal(shipped.vectors, vectors)


CHECKS = {
    "heat_of": exercises.check_heat_of,
    "weaken": exercises.check_weaken,
    "diagnose": exercises.check_diagnose,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solutions_are_right(name):
    assert CHECKS[name](SOLUTIONS[name]).startswith("right")


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("answer", [..., None])
def test_stubs_are_not_yet(name, answer):
    assert CHECKS[name](lambda *_: answer).startswith("not yet")


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("function", [lambda: 1, 50, lambda *_: 1 / 0, lambda *_: "50", max])
def test_what_is_no_answer_is_refused(name, function):
    assert CHECKS[name](function).startswith("not quite")


@pytest.mark.parametrize(
    "name, function",
    [
        ("heat_of", lambda shares, k: shares.mean(0)[:, k]),
        ("heat_of", lambda shares, k: shares.mean(0)[:, k].reshape(12, 12).T),
        ("heat_of", lambda shares, k: shares.sum(0)[:, k].reshape(12, 12)),
        ("heat_of", lambda shares, k: shares[0, :, k].reshape(12, 12)),
        ("heat_of", lambda shares, k: shares.mean(0)[:, 0].reshape(12, 12)),
        ("weaken", lambda learned, start, strength: learned + strength * (start - learned)),
        ("weaken", lambda learned, start, strength: strength * learned),
        ("weaken", lambda learned, start, strength: start + strength * learned),
        ("weaken", lambda learned, start, strength: start.lerp(learned, min(1.0, strength))),
        ("weaken", lambda learned, start, strength: start.lerp(learned, strength)[0]),
    ],
)
def test_wrong_answers_are_refused(name, function):
    assert CHECKS[name](function).startswith("not quite")


@pytest.mark.parametrize("swapped, said", [
    ({"A": "one background"}, "run A has another fault than 'one background': its curves are healthy"),
    ({"B": "name taken"}, "run B has another fault than 'name taken': its loss hardly moves"),
    ({"C": "rate too small"}, "run C has another fault than 'rate too small': look at what stands"),
    ({"C": "bad luck"}, "run C has 'bad luck', which is none of rate too small, one background"),
])  # fmt: skip
def test_a_wrong_diagnosis_is_told_where_to_look(swapped, said):
    right = {run: SOLUTIONS["diagnose"](run) for run in "ABC"}
    assert exercises.check_diagnose((right | swapped).__getitem__).startswith(f"not quite: {said}")


def test_the_curves_say_what_the_faults_are():
    """B's loss hardly falls; A's and C's do, and C's word drowns out the sentence."""
    histories = json.loads((pages.ROOT / "docs" / "recommendations" / "broken.json").read_text())
    curves = {run: list(history["fixed_losses"].values()) for run, history in histories.items()}
    fallen = {run: losses[0] - min(losses) for run, losses in curves.items()}
    assert fallen["B"] < 0.2 * min(fallen["A"], fallen["C"])
    heard = {run: list(h["prompt_sensitivity"].values())[-1] for run, h in histories.items()}
    assert heard["C"] < 0.6 < 0.8 < min(heard["A"], heard["B"])
