"""`tiutils evaluate`: the picture and the scores of a finished run."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from tiutils.cli.main import main
from tiutils.evaluation import report

DRAW = ["--num_images", "1", "--num_inference_steps", "2"]
MEASURES = {"evaluation_loss", "image_similarity", "histogram_distance"}


def trained(folder, small_model, photos, **flags):
    """The folder of a run of three steps."""
    flags = {
        "pretrained_model_name_or_path": str(small_model), "train_data_dir": str(photos),
        "placeholder_token": "<my-toy>", "initializer_token": "toy", "max_train_steps": "3",
        "output_dir": str(folder), **flags,
    }  # fmt: skip
    assert main(["train", *(part for k, v in flags.items() for part in (f"--{k}", v))]) == 0
    return folder


@pytest.fixture(scope="module")
def run_dir(small_model, photos, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "toy", small_model, photos)


def test_evaluate_draws_scores_and_says_where(run_dir, photos, capsys):
    before = json.loads((run_dir / "run.json").read_text())
    assert main(["evaluate", str(run_dir), *DRAW, "--prompt", "a {} in snow"]) == 0
    text = capsys.readouterr().out
    assert "<my-toy>" in text and "before_after.png" in text and str(photos) in text
    with Image.open(run_dir / report.PICTURE) as picture:
        assert "a <my-toy> in snow" in picture.text["Description"]
    after = json.loads((run_dir / "run.json").read_text())
    assert after.items() >= before.items(), "what the run wrote is kept"
    assert set(after["scores"]["scores"]) == set(after["scores"]["plain_scores"]) == MEASURES


def test_braces_in_prompts_stand_for_themselves(run_dir, capsys):
    prompts = ["a {} and a {}", "a {} in {red|blue} for $5 or $6", "a {} {"]
    flags = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert main(["evaluate", str(run_dir), *DRAW, *flags]) == 0
    with Image.open(run_dir / report.PICTURE) as picture:
        assert (
            "a <my-toy> and a <my-toy>; a <my-toy> in {red|blue} for $5 or $6; a <my-toy> {"
            in (picture.text["Description"])
        )


def test_several_runs_side_by_side(run_dir, small_model, photos, tmp_path, capsys):
    flags = {"placeholder_token": "<other>", "initializer_token": "cat", "learning_rate": "1e-2"}
    other = trained(tmp_path / "other", small_model, photos, **flags)
    same_name = trained(tmp_path / "again", small_model, photos, seed="5")
    runs, out = [str(run_dir), str(other), str(same_name)], tmp_path / "side by side"
    arguments = [*DRAW, "--prompt", "a {}", "--output_dir", str(out)]
    before = (run_dir / "run.json").read_bytes()
    assert main(["evaluate", *runs, *arguments]) == 0
    assert (run_dir / "run.json").read_bytes() == before, "a comparison changes no run"
    verdicts = json.loads((out / "comparison.json").read_text())
    # the second run that taught <my-toy> gets a name of its own
    assert [v["word"] for v in verdicts] == ["<my-toy>", "<other>", "<my-toy-2>"]
    assert [v["plain_word"] for v in verdicts] == ["toy", "cat", "toy"]
    assert verdicts[0]["plain_scores"] == verdicts[2]["plain_scores"], "the same questions"
    assert verdicts[0]["scores"] != verdicts[2]["scores"]
    with Image.open(out / "comparison.png") as picture:
        described = picture.text["Description"]
    for word in ("toy", "cat", "<my-toy>", "<other>", "<my-toy-2>"):
        assert word in described
    assert str(out / "comparison.png") in capsys.readouterr().out


def test_runs_on_different_models_are_not_compared(run_dir, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(run_dir, elsewhere)
    record = json.loads((elsewhere / "run.json").read_text()) | {"model": "another"}
    (elsewhere / "run.json").write_text(json.dumps(record))
    assert main(["evaluate", str(run_dir), str(elsewhere)]) == 2
    assert "different models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "holds no finished run"),
        (["{run_dir}", "--prompt", "a toy"], "has no {}"),
        (["{run_dir}", "--evaluator", "no/such-clip"], "no CLIP model 'no/such-clip'"),
    ],
)
def test_refusals(run_dir, arguments, message, capsys):
    filled = [argument.replace("{run_dir}", str(run_dir)) for argument in arguments]
    assert main(["evaluate", *filled]) == 2
    assert message in capsys.readouterr().err
