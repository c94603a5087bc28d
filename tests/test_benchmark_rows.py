"""The tables of the benchmarks that teach many words, without training anything."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiutils
from benchmarks import (
    ablation,
    diffusers_script,
    early_stopping,
    experiments,
    recommendations,
    stopping_rule,
)
from tiutils import token_embedding, training
from tiutils.diffusion import losses_at
from tiutils.figures import output
from tiutils.runs import run


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(early_stopping, "TABLE", tmp_path / "table.csv")
    return tmp_path / "table.csv"


def line(program, seed, steps, similarity):
    return {
        "concept": "wood-toy", "program": program, "seed": seed, "steps": steps,
        "kept_step": steps - 10, "seconds": "", "image_similarity": similarity,
    }  # fmt: skip


def test_lines_are_added_in_order_and_averaged_over_seeds(table):
    for row in (
        line("tiutils", 1, 200, 0.6), line("diffusers", 0, 3000, 0.5),
        line("tiutils", 0, 180, 0.5), line("diffusers", 0, 1250, 0.9),
    ):  # fmt: skip
        early_stopping.add_row(row)
    rows = early_stopping.read_table()
    assert [(r["program"], r["steps"]) for r in rows] == [
        ("diffusers", "1250"), ("diffusers", "3000"), ("tiutils", "180"), ("tiutils", "200"),
    ]  # fmt: skip
    assert [r["steps"] for r in early_stopping.rows_of("wood-toy", 0)] == [180]
    assert not early_stopping.rows_of("wood-toy", 2)
    page = early_stopping.as_markdown(rows).splitlines()
    assert page[0] == "| concept | program | runs | steps | similarity to photos ↑ |"
    assert page[2:] == [
        "| wood-toy | tiutils | 2 | 180–200 | 0.5500 |",
        "| wood-toy | diffusers | 1 | 3000 | 0.5000 |",
    ]


def test_the_newest_word_of_their_script(tmp_path, monkeypatch):
    monkeypatch.setattr(early_stopping, "RUNS", tmp_path)
    assert early_stopping.words_of_theirs("wood-toy") == []
    run = tmp_path / "diffusers-wood-toy" / "run"
    run.mkdir(parents=True)
    for steps in (250, 1000, 750):
        (run / f"learned_embeds-steps-{steps}.safetensors").touch()
    assert [row["steps"] for row in early_stopping.words_of_theirs("wood-toy")] == [1000]
    (run / "learned_embeds.safetensors").touch()
    assert [row["steps"] for row in early_stopping.words_of_theirs("wood-toy")] == [3000]


def words(*firsts, **others):
    """A variant's words of two things, all of whose measures but `first` are the same."""
    usual = {measure: 0.5 for measure, *_ in ablation.COLUMNS} | others
    return {thing: [usual | {"first": value}] for thing, value in zip("ab", firsts, strict=True)}


def test_the_ablation_by_hand():
    results = {
        "defaults": words(0.2, 0.4),
        "better": words(0.5, 0.7, loss=0.7),
        "mixed": words(0.9, 0.1),
        "worse": words(0.1, 0.31, length=9.0),
    }
    assert ablation.differences(results, "better", "first") == pytest.approx([0.3, 0.3])
    assert ablation.error(np.array([0.7, -0.3])) == pytest.approx(0.5)
    assert ablation.margin(np.array([0.7, -0.3])) == pytest.approx(12.706 * 0.5, rel=1e-4)
    head, _, *lines = ablation.as_markdown(results).splitlines()
    assert head.startswith("| setting | words | first of 60 | first five |")
    assert lines[0].startswith("| defaults | 2 | 0.30 | 0.50 |")
    assert lines[1].startswith("| better | 2 | **0.60** ↑ |") and "| **0.700** ↑ |" in lines[1]
    assert lines[2].startswith("| mixed | 2 | 0.50 |"), "differs by less than chance may"
    assert lines[3].startswith("| worse | 2 | **0.21** ↓ |") and lines[3].endswith("| 9.0 |")


def test_the_frontier_has_a_point_for_each_setting():
    results = {"defaults": words(0.2, 0.4), "other": words(0.5, 0.7, place=0.25)}
    alt = output.alt_text(ablation.frontier(results))
    assert alt.endswith("defaults 0.50, 0.50; other 0.50, 0.25.")


def test_an_experiment_is_put_in_place_for_its_words_alone():
    usual = training.make_optimizer
    with experiments.put_in_place({"prodigy": True}, "<t>", "toy"):
        assert training.make_optimizer is not usual
        rows = torch.nn.Parameter(torch.ones(1, 4))
        assert type(training.make_optimizer(rows, None)).__name__ == "Prodigy"
    with experiments.put_in_place({"norm_control": 0.0}, "<t>", "toy"):
        assert training.make_optimizer is usual
    assert "prodigy" not in ablation.settings_of("Prodigy").flags("<t>", "toy")


@pytest.mark.parametrize("name", ["several_nouns", "no_word"])
def test_other_starts_are_as_long_as_the_noun(small_model, name):
    models = tiutils.load(small_model)
    noun = token_embedding.vector_of(models, "toy")
    with experiments.put_in_place({name: True}, "<t>", "toy"):
        row = run.first_rows(tiutils.TrainingConfig(), None, models)
    assert row.shape == (1, len(noun)) and row.norm() == pytest.approx(noun.norm())
    assert 0.05 < torch.cosine_similarity(row[0], noun, dim=0) < 0.99 or name == "no_word"


def test_the_nearest_word_by_hand(small_model):
    models = tiutils.load(small_model)
    axes = torch.eye(3)
    judge = SimpleNamespace(
        encode_images=lambda photos: axes[[1, 1, 0]],
        encode_text=lambda said: torch.stack([axes[int(s == "a photo of a toy")] for s in said]),
    )
    assert experiments.nearest_word(judge, models, []) == "toy", "two photos of three say so"
    judge.encode_images = lambda photos: axes[[1, 0, 0]]
    assert experiments.nearest_word(judge, models, []) != "toy"


def test_cross_initialization_starts_from_what_the_text_encoder_makes_of_the_noun(small_model):
    models = tiutils.load(small_model)
    with experiments.put_in_place({"cross_initialization": True}, "<t>", "toy"):
        row = run.first_rows(tiutils.TrainingConfig(), None, models)
    with torch.no_grad():
        hidden = models.text_encoder(token_embedding.tokenize(models.tokenizer, ["toy"]))[0]
    torch.testing.assert_close(row, hidden[0, 1:2])


def test_min_snr_by_hand(monkeypatch):
    # SNR = ᾱ / (1 - ᾱ): 9, 4 and 1/4
    scheduler = SimpleNamespace(alphas_cumprod=torch.tensor([0.9, 0.8, 0.2]))
    batch = SimpleNamespace(timesteps=np.array([2, 0, 0, 1]))
    monkeypatch.setattr(experiments, "batch_at", lambda plan, step, start, stop: batch)
    monkeypatch.setattr(training, "losses_at", lambda *_: torch.ones(4))
    with experiments.put_in_place({"snr_gamma": 5.0}, "<t>", "toy"):
        models, dataset = SimpleNamespace(noise_scheduler=scheduler), SimpleNamespace(plan=None)
        losses = training.losses_at(models, dataset, 0, 0, 4)
    assert losses.tolist() == pytest.approx([1, 5 / 9, 5 / 9, 1])


def test_the_term_that_keeps_the_sentence(small_model):
    """It is zero for the noun's own row, and its gradient reaches any other."""
    models = tiutils.load(small_model)
    noun = token_embedding.vector_of(models, "toy")
    placeholder = token_embedding.add_placeholder(models, "<t>", initializer_token="toy")
    rows = token_embedding.rows_of(models, placeholder)
    assert torch.equal(rows[0], noun)
    assert experiments.sentence_loss(models, 0, "<t>", "toy").item() == 0
    rows.data *= 3
    loss = experiments.sentence_loss(models, 4, "<t>", "toy")
    loss.backward()
    assert loss.item() > 0 and rows.grad.abs().sum() > 0
    with experiments.put_in_place({"keep_sentence": True}, "<t>", "toy"):
        assert training.losses_at is not losses_at


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_the_settings_are_those_of_a_training(variant):
    tiutils.TrainingConfig(**ablation.settings_of(variant).flags("<t>", "toy"))


def looks(**columns):
    """What was measured at steps 1, 2, …"""
    steps = range(1, 1 + len(next(iter(columns.values()))))
    return {n: {key: values[n - 1] for key, values in columns.items()} for n in steps}


def test_the_rules_by_hand():
    seen = looks(
        loss=[4, 3, 2, 1], sensitivity=[1.1, 0.9, 0.65, 0.5], following=[1, 2, 5, 1],
        among_five=[0.5, 0.75, 1, 1], place=[1, 1, 0.5, 0.25],
    )  # fmt: skip
    kept = {name: rule(seen) for name, rule in stopping_rule.RULES.items()}
    assert kept == {
        "the last step": 4, "lowest loss": 4, "lowest loss, sensitivity ≥ 0.6": 3,
        "lowest loss, sensitivity ≥ 0.7": 2, "lowest loss, sensitivity ≥ 0.8": 2,
        "lowest loss, sensitivity ≥ 0.9": 2, "lowest loss, sensitivity ≥ 1": 1,
        "CLIP follows the prompt best": 3, "the best of the six": 2,
    }  # fmt: skip
    page = stopping_rule.as_markdown({"some": {"toy": seen}}).splitlines()
    assert page[2] == "| the last step | 4 | 1.00 | 0.25 | 0.25 |"
    assert page[-1] == "| the best of the six | 2 | 0.75 | 1.00 | 0.75 |"


def test_rows_in_few_bits():
    rows = np.array([[-7.0, 0.4, 1.6, 7.0]], np.float32)
    np.testing.assert_allclose(recommendations.in_bits(rows, 4), [[-7, 0, 2, 7]])
    assert np.abs(recommendations.in_bits(rows, 8) - rows).max() <= 7 / 127 / 2


def test_their_script_finds_a_mirror(tmp_path, monkeypatch):
    script = tmp_path / diffusers_script.FOLDER / "textual_inversion.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys\nfrom torchvision import transforms\nsys.found = transforms\n")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--flag"])
    diffusers_script.main()
    found: SimpleNamespace = sys.found
    del sys.found
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    assert found.RandomHorizontalFlip(1.0)(image).getpixel((1, 0)) == (255, 0, 0)
    assert found.RandomHorizontalFlip(0.0)(image).getpixel((0, 0)) == (255, 0, 0)


def test_the_pages_have_the_markers():
    for page, name in (
        ("benchmarks/README.md", "early_stopping"),
        ("docs/better_rows.md", "ablation"),
        ("docs/better_rows.md", "stopping_rule"),
    ):
        text = (early_stopping.ROOT / page).read_text()
        for marker in ("begin", "end"):
            assert text.count(f"<!-- {name}:{marker} -->") == 1
