"""`tiutils evaluate`: the picture and the scores of a finished run."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tiutils import report
from tiutils.cli import main


@pytest.fixture(scope="module")
def run_dir(small_model, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    flags = {
        "pretrained_model_name_or_path": str(small_model), "train_data_dir": str(photos),
        "placeholder_token": "<my-toy>", "initializer_token": "toy", "max_train_steps": "3",
        "output_dir": str(folder),
    }  # fmt: skip
    assert main(["train", *(part for k, v in flags.items() for part in (f"--{k}", v))]) == 0
    return folder


def test_evaluate_draws_scores_and_says_where(run_dir, photos, capsys):
    before = json.loads((run_dir / "run.json").read_text())
    draw = ["--num_images", "1", "--num_inference_steps", "2"]
    assert main(["evaluate", str(run_dir), *draw, "--prompt", "a {} in snow"]) == 0
    text = capsys.readouterr().out
    assert "<my-toy>" in text and "before_after.png" in text and str(photos) in text
    with Image.open(run_dir / report.PICTURE) as picture:
        assert "a <my-toy> in snow" in picture.text["Description"]
    after = json.loads((run_dir / "run.json").read_text())
    assert after.items() >= before.items(), "what the run wrote is kept"
    names = ("evaluation_loss", "image_similarity", "histogram_distance")
    assert set(after["scores"]) == {p + n for p in ("", "initializer_") for n in names}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "holds no finished run"), (["{run_dir}", "--prompt", "a toy"], "has no {}")],
)
def test_refusals(run_dir, arguments, message, capsys):
    filled = [argument.replace("{run_dir}", str(run_dir)) for argument in arguments]
    assert main(["evaluate", *filled]) == 2
    assert message in capsys.readouterr().err
