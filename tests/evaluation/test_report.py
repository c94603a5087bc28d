"""`tiutils evaluate`: the picture and the scores of a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiutils import inference, models
from tiutils.cli.main import main
from tiutils.config import SamplingConfig
from tiutils.evaluation import report
from tiutils.evaluation.comparison import Gallery

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
    page = (run_dir / report.PAGE).read_text(encoding="utf-8")
    assert str(run_dir / report.PAGE) in text and "a &lt;my-toy&gt; in snow" in page
    assert "Better by" in page and "Not computed" not in page


def test_the_picture_comes_before_the_scores_and_stays(run_dir, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(run_dir, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    first = (run / report.PICTURE).read_bytes() if (run / report.PICTURE).exists() else None
    monkeypatch.setattr(report, "_score_words", lambda *_: pytest.fail("scored"))
    names, pages = [], []
    for prompt in ("a {} in sand", "a {} on snow", "a {} on snow"):
        assert main(["evaluate", str(run), *DRAW, "--prompt", prompt, "--no-scores"]) == 0
        printed = capsys.readouterr()
        assert "2/2" in printed.err and json.loads((run / "run.json").read_text()) == record
        names += [line.split()[-1] for line in printed.out.splitlines() if ".png" in line]
        pages += [line.split()[-1] for line in printed.out.splitlines() if ".html" in line]
    assert len(set(names)) == 2 and names[1] == names[2], "the same picture is there already"
    assert len(set(pages)) == 2 and pages[1] == pages[2], "the same page is there already"
    assert "Not computed" in Path(pages[0]).read_text(encoding="utf-8")
    assert first is None or (run / report.PICTURE).read_bytes() == first


def test_each_picture_is_drawn_once(small_model):
    parts, count = models.load(small_model), []
    gallery = Gallery(
        parts, SamplingConfig(num_inference_steps=1), on_image=lambda: count.append(1)
    )
    few = gallery.pictures(["a toy", "a cat"], 1)
    many = gallery.pictures(["a cat", "a dog"], 2)
    assert len(count) == 5 and many[0] is few[1]
    alone = inference.generate(parts, "a cat", num_images_per_prompt=2, num_inference_steps=1)
    assert all(
        np.abs(np.subtract(a, b, dtype=int)).max() <= 1 for a, b in zip(many, alone, strict=False)
    )


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ("train_data_dir", "give --train_data_dir"),
        ("initializer_token", None),
        ("learnable_property", None),
        ("placeholder_token", None),
    ],
)
def test_a_record_that_lacks_an_entry(run_dir, tmp_path, lacks, message, capsys):
    run = shutil.copytree(run_dir, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    del record["flags"][lacks]
    (run / "run.json").write_text(json.dumps(record))
    arguments = ["evaluate", str(run), *DRAW, "--prompt", "a {}", "--no-scores"]
    assert main(arguments) == (2 if message else 0)
    assert (message or "") in capsys.readouterr().err


def test_braces_in_prompts_stand_for_themselves(run_dir, tmp_path, capsys):
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / report.PICTURE).unlink(missing_ok=True)
    prompts = ["a {} and a {}", "a {} in {red|blue} for $5 or $6", "a {} {"]
    flags = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert main(["evaluate", str(run), *DRAW, *flags, "--no-scores"]) == 0
    with Image.open(run / report.PICTURE) as picture:
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
    printed = capsys.readouterr().out
    assert str(out / "comparison.png") in printed
    assert f"open in a browser:        {out / 'comparison.html'}" in printed
    page = (out / "comparison.html").read_text(encoding="utf-8")
    for word in ("toy", "cat", "&lt;my-toy&gt;", "&lt;other&gt;", "&lt;my-toy-2&gt;"):
        assert f'<th scope="row"><code>{word}</code>' in page
    for verdict in verdicts:
        assert f"{verdict['scores']['evaluation_loss']['value']:.4f}" in page
    assert "--learning_<wbr>rate" in page and "--max_<wbr>train" not in page, "what differs"
    assert str(tmp_path) not in page, "a page is for sharing"


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
        (["nowhere"], "contains no finished run"),
        (["{run_dir}", "--prompt", "a toy"], "has no {}"),
        (["{run_dir}", "--evaluator", "no/such-clip"], "no CLIP model 'no/such-clip'"),
    ],
)
def test_refusals(run_dir, arguments, message, capsys):
    filled = [argument.replace("{run_dir}", str(run_dir)) for argument in arguments]
    assert main(["evaluate", *filled]) == 2
    assert message in capsys.readouterr().err


def test_prompts_that_are_cut_are_said_before_weights_are_loaded(run_dir, capsys, monkeypatch):
    monkeypatch.setattr(models, "load", lambda **_: pytest.fail("loaded"))
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        main(["evaluate", str(run_dir), *DRAW, "--prompt", "a {} " + "red " * 80])
    said = capsys.readouterr().err
    assert "is cut after 75 of its" in said and "<my-toy>" in said and "a toy red" in said


def test_the_page_shows_what_the_run_has_recorded(run_dir, tmp_path, capsys):
    run = shutil.copytree(run_dir, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    scores = {"similarity": [0.5, 0.6], "following": [0.3, 0.4]}
    damaged = {"3": {"similarity": "much"}, "x": scores, "4": {"similarity": [], "following": []}}
    record |= {"validation": {"1": scores, "2": scores, **damaged}, "losses": [0.1, "?", None, 0.2]}
    (run / "run.json").write_text(json.dumps(record))
    (run / report.PAGE).unlink(missing_ok=True)
    Image.new("RGB", (64, 32)).save(run / "validation-steps-2.png")
    assert main(["evaluate", str(run), *DRAW, "--prompt", "a {} in snow", "--no-scores"]) == 0
    assert f"open in a browser:        {run / report.PAGE}" in capsys.readouterr().out
    page = (run / report.PAGE).read_text()
    for said in ("<h2>Loss</h2>", "<h2>Overfitting</h2>", "Step 2", "a &lt;my-toy&gt; in snow",
                 "at step 1 to", "Not computed", "--initializer_<wbr>token"):  # fmt: skip
        assert said in page, said
    assert str(tmp_path) not in page, "a page is for sharing"
