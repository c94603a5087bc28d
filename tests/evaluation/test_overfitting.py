"""Following and likeness over the steps: the warning by hand, the history across a resume, the curves."""

import logging
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import tiutils
from tiutils.concept import Concept
from tiutils.evaluation import clip as clip_model
from tiutils.evaluation import overfitting
from tiutils.figures import output
from tiutils.io import run_folder
from tiutils.runs import run


def history(*followings):
    return {
        100 * k: {"similarity": [0.5] * len(scores), "following": scores}
        for k, scores in enumerate(followings, start=1)
    }


@pytest.mark.parametrize("followings, best", [
    ([[0.3, 0.4]], None),
    ([[0.3, 0.4], [0.4, 0.5]], None),  # it rises
    ([[0.3, 0.4, 0.5], [0.2, 0.3, 0.41]], 100),  # by 0.1, 0.1 and 0.09
    ([[0.3, 0.4, 0.5], [0.2, 0.4, 0.5]], None),  # in one picture of three: 0.033 ± 0.033
    ([[0.1, 0.1], [0.5, 0.4], [0.3, 0.21]], 200),  # the best, not the first
    ([[0.9], [0.1]], None),  # one picture says nothing of the spread
])  # fmt: skip
def test_a_fall_is_more_than_two_standard_errors(followings, best):
    assert overfitting.has_fallen(history(*followings)) == best


class Clip:
    """Follows less at each look, and keeps what it was asked."""

    def __init__(self):
        self.level, self.sentences = 0.5, []

    def clip_i(self, images, photos):
        return torch.full((len(images),), 0.7)

    def clip_t(self, images, sentences):
        self.level -= 0.1
        self.sentences += sentences
        return torch.tensor([self.level + 0.01 * k for k in range(len(images))])


def config_of(folder, **flags):
    return tiutils.TrainingConfig("photos", "<t>", "toy", output_dir=str(folder), **flags)


def test_it_warns_and_goes_on_after_a_resume(tmp_path, caplog):
    pictures, clip = [Image.new("RGB", (8, 8))] * 2, Clip()
    words = "a toy on sand"
    first = overfitting.OverfittingMonitor(clip, pictures, words, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert first(10, pictures)["similarity"] == pytest.approx(0.7)
        assert not caplog.records
        first(20, pictures)
    assert "fell from 0.405 at step 10 to 0.305 at step 20" in caplog.text
    assert set(clip.sentences) == {words}
    resumed = overfitting.OverfittingMonitor(clip, pictures, words, tmp_path, resumed=True)
    assert resumed.history == first.history
    resumed(20, pictures)  # the checkpoint was of step 15
    assert list(run_folder.read_record(tmp_path)["validation"]) == ["10", "20"]
    assert overfitting.OverfittingMonitor(clip, pictures, words, tmp_path).history == {}


def test_who_judges(tmp_path, monkeypatch):
    parts = SimpleNamespace(name=str(tmp_path), device="cpu")
    loaded = []
    thing = Concept((), (), "thing")

    def load(name, **_):
        loaded.append(str(name))
        return Clip()

    monkeypatch.setattr(clip_model, "load", load)
    assert run.monitor_for(config_of(tmp_path, evaluator="mine"), thing, parts) is None
    assert not loaded, "nothing is drawn, nothing is judged"
    drawing = {"validation_prompt": "a <t>"}
    assert run.monitor_for(config_of(tmp_path, **drawing), thing, parts) is None
    assert not loaded, "no judge came with the model"
    monitor = run.monitor_for(config_of(tmp_path, evaluator="mine", **drawing), thing, parts)
    assert monitor.sentence == "a toy", "CLIP does not know the learned word"
    (tmp_path / "evaluator").mkdir()
    run.monitor_for(config_of(tmp_path, **drawing), thing, parts)
    assert loaded == ["mine", str(tmp_path / "evaluator")]


def test_the_curves_say_what_they_show():
    figure = overfitting.curves(history([0.3, 0.5], [0.2, 0.2]))
    assert "prompt goes from 0.400 at step 100 to 0.200 at step 200" in output.alt_text(figure)
    assert [len(axis.lines) for axis in figure.axes] == [3, 3]
