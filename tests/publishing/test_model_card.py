"""The model card: what a reader needs, and nothing that a stranger's run could smuggle in."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiutils.errors import InputError
from tiutils.figures import output
from tiutils.io import embeddings
from tiutils.io.embeddings import LearnedEmbedding, write
from tiutils.io.pretrained import DEFAULT_MODEL
from tiutils.publishing import model_card

RECORD = {
    "model": "owner/model", "steps": 500, "photos": ["anna.jpg", "b.jpg"],
    "losses": [None, 0.5, 0.25], "versions": {"tiutils": "0.1.0", "torch": "2.13.0"},
    "flags": {"initializer_token": "toy", "learning_rate": 0.005, "train_batch_size": 4,
              "gradient_accumulation_steps": 1, "validation_prompt": "a <toy> on *sand*",
              "train_data_dir": "/home/anna/photos", "output_dir": "/home/anna/runs"},
    "scores": {"scores": {"image_similarity": {"value": 0.75, "better_by": 0.25}},
               "plain_scores": {"image_similarity": 0.5}},
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    word = LearnedEmbedding("<toy>", np.ones((2, 8)), {"base_model": "tiny-sd"})
    path = write(folder / "learned_embeds.safetensors", word)
    return {"learned_embeds.safetensors": path}


def parts_of(text):
    """Metadata and body."""
    empty, front, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    assert empty == ""
    return yaml.safe_load(front), body


def test_a_reader_finds_what_they_need(files):
    front, body = parts_of(model_card.model_card(files, "me/toy", RECORD, "cc-by-4.0"))
    assert front == {
        "license": "cc-by-4.0", "base_model": "owner/model", "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["textual-inversion", "stable-diffusion", "diffusers"],
    }  # fmt: skip
    assert body.startswith("\n# \\<toy\\>\n")
    for line in (
        'pipeline = StableDiffusionPipeline.from_pretrained("owner/model")',
        'pipeline.load_textual_inversion("me/toy", weight_name="learned_embeds.safetensors")',
        'pipeline("a photo of a <toy>").images[0].save("picture.png")',
        "| started from | toy |", "| photos | 2 |", "| steps | 500 |", "| batch | 4 × 1 |",
        "| learning rate | 0.005 |", "| loss, mean of the last steps | 0.3750 |",
        "| prompt of the pictures | a \\<toy\\> on \\*sand\\* |",
        "| image similarity | 0.7500 (plain word: 0.5000) |",
        "| software | tiutils 0.1.0, torch 2.13.0 |",
    ):  # fmt: skip
        assert line in body.splitlines(), line
    assert "2 vector(s) of width\n8" in body and "`cc-by-4.0`" in body


def test_the_code_on_it_is_python(files):
    for repo_files in (files, files | {"model_index.json": files["learned_embeds.safetensors"]}):
        code = re.search(
            r"```python\n(.*?)```", model_card.model_card(repo_files, "me/t", RECORD), re.S
        )
        compile(code[1], "card", "exec")


def test_photos_and_folders_are_nobodys_business(files):
    text = model_card.model_card(files, "me/toy", RECORD | {"model": "/home/anna/models/sd15"})
    assert "anna" not in text and "base_model" not in text and '"sd15"' in text


def test_a_folder_here_is_no_repository(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "tiny-sd").mkdir(parents=True)
    assert model_card.base_model("data/tiny-sd") == ("tiny-sd", False)
    assert model_card.base_model("owner/tiny-sd") == ("owner/tiny-sd", True)
    assert model_card.base_model("C:\\models\\sd15\\") == ("sd15", False)


def test_the_license(files, tmp_path):
    def license_of(record=RECORD, given=None, made=None):
        path = files["learned_embeds.safetensors"]
        if made:
            word = LearnedEmbedding("<toy>", np.ones((2, 8)), {"license": made})
            path = write(tmp_path / "word.safetensors", word)
        text = model_card.model_card(
            {path.name: path} | {embeddings.FILE_NAMES[0]: path}, "me/toy", record, given
        )
        front, body = parts_of(text)
        assert ("None was stated." in body) == ("license" not in front)
        return front.get("license")

    assert license_of() is None, "that of another's model is not ours to guess"
    assert license_of(RECORD | {"model": DEFAULT_MODEL}) == "creativeml-openrail-m"
    assert license_of(RECORD | {"model": DEFAULT_MODEL}, made="mit") == "mit"
    assert license_of(given="cc0-1.0", made="mit") == "cc0-1.0"
    with pytest.raises(InputError, match="--license"):
        license_of(given="MIT or so\nbase_model: x")


def test_a_picture_is_described_in_its_own_words(files, tmp_path):
    from PIL import Image

    for name, alt in (("a", "“a [toy]” drawn"), ("b", None)):
        path = tmp_path / f"{name}.png"
        if alt:
            output.save(Image.new("RGB", (8, 8)), path, alt=alt)
        else:
            Image.new("RGB", (8, 8)).save(path)
    pictures = {"picture-1.png": tmp_path / "a.png", "picture-2.png": tmp_path / "b.png"}
    text = model_card.model_card(files | pictures, "me/toy", RECORD)
    assert "![“a \\[toy\\]” drawn](picture-1.png)" in text
    assert "![A picture drawn with the word, b](picture-2.png)" in text


# What strangers send

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*RECORD, "more"]), VALUES), st.none() | st.just("mit"))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_record_at_all_gives_a_card(files, record, license):
    record = json.loads(json.dumps(record))
    front, body = parts_of(model_card.model_card(files, "me/toy", record, license))
    assert set(front) <= {"license", "base_model", "library_name", "pipeline_tag", "tags"}
    assert all(line[-2:] == " |" for line in body.splitlines() if line[:2] == "| ")


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_plain_text_means_only_itself(text):
    shown = model_card.plain(text)
    assert len(shown.splitlines()) <= 1
    assert not re.search(r"[\\`*_\[\]<>|&~$]", re.sub(r"\\[\\`*_\[\]<>|&~$]", "", shown))
    assert re.sub(r"\\(.)", r"\1", shown) == " ".join(text.split())
