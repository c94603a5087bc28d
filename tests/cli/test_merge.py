"""`tiutils merge`: a whole model with words in it, for programs that load none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiutils import models, token_embedding
from tiutils.cli.main import main
from tiutils.io.embeddings import LearnedEmbedding, write


@pytest.fixture
def words(tmp_path):
    one = LearnedEmbedding("<my-toy>", np.full((2, 32), 0.5, np.float32))
    other = LearnedEmbedding("<my-cat>", np.full((1, 32), 0.25, np.float32))
    return [
        str(write(tmp_path / "toy.safetensors", one)),
        str(write(tmp_path / "cat.pt", other, safe_serialization=False)),
    ]


def test_stock_diffusers_opens_it_and_knows_the_words(words, small_model, tmp_path, capsys):
    from diffusers import StableDiffusionPipeline

    folder = tmp_path / "merged"
    model = ["--pretrained_model_name_or_path", str(small_model)]
    assert main(["merge", *words, "--output_dir", str(folder), *model]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(folder),
        "in the prompt write: <my-toy>, <my-cat>",
    ]
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    prompt = pipeline.maybe_convert_prompt("a <my-toy> on <my-cat>", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt, add_special_tokens=False).input_ids
    rows = pipeline.text_encoder.get_input_embeddings().weight[ids].detach()
    assert len(ids) == 5
    assert rows[1].tolist() == rows[2].tolist() == [0.5] * 32 and rows[4].tolist() == [0.25] * 32
    assert pipeline(prompt, num_inference_steps=2).images[0].size == (32, 32)
    before, after = models.load(small_model), models.load(folder)
    old = token_embedding.table_of(before)
    assert torch.equal(token_embedding.table_of(after)[: len(old)], old)
    for part in ("vae", "unet"):
        there = getattr(after, part).state_dict()
        assert all(torch.equal(v, there[n]) for n, v in getattr(before, part).state_dict().items())


def test_what_cannot_be_merged_is_refused_before_weights_are_loaded(
    words, small_model, tmp_path, capsys, monkeypatch
):
    def no_loading(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(models, "load", no_loading)
    wide = LearnedEmbedding("<wide>", np.ones((1, 48), np.float32))
    wide = str(write(tmp_path / "wide.safetensors", wide))
    model = ["--pretrained_model_name_or_path", str(small_model)]
    for arguments, said in (
        ([*words, "--output_dir", str(tmp_path)], "already exists: give a new folder"),
        ([wide, "--output_dir", str(tmp_path / "new")], "48"),
        ([words[0], words[0], "--output_dir", str(tmp_path / "new")], "<my-toy>"),
        ([str(tmp_path / "none.pt"), "--output_dir", str(tmp_path / "new")], "none.pt"),
    ):
        assert main(["merge", *arguments, *model]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
