"""Whole models in one file: the same weights as in a folder; other files are refused with their kind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from single_files import save_single_file
from small_model import save_small_model, save_small_sdxl

import tiutils
from tiutils import models
from tiutils.cli.main import main
from tiutils.errors import InputError
from tiutils.io import embeddings, pretrained, run_folder, single_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("wide"), hidden=768)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return save_single_file(folder, tmp_path_factory.mktemp("file") / "model.safetensors")


@pytest.fixture(autouse=True)
def its_small_files(folder, monkeypatch):
    monkeypatch.setitem(single_file.LAYOUTS, (1, 768), str(folder))


def test_the_weights_are_those_of_the_folder(folder, whole, caplog):
    assert pretrained.locate(whole, weights=False) == folder
    one, other = models.load(whole), models.load(folder)
    for part in pretrained.weights_of(folder):
        expected, found = (getattr(m, part).state_dict() for m in (other, one))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert one.name == str(whole) and not any(p.requires_grad for p in one.unet.parameters())
    half = models.load(whole, dtype=torch.float16)
    assert (half.dtype, half.text_encoder.dtype) == (torch.float16, torch.float32)
    assert not caplog.records


def learn_from_both(folder, whole, photos, tmp_path):
    """The rows learned with the model in a folder, and with that in one file; the runs lie in 0/ and 1/."""
    for number, name in enumerate((folder, whole)):
        config = tiutils.TrainingConfig(
            pretrained_model_name_or_path=str(name), train_data_dir=str(photos), max_train_steps=2,
            placeholder_token="<my-toy>", initializer_token="toy", output_dir=str(tmp_path / str(number)),
        )  # fmt: skip
        yield embeddings.read(tiutils.train(config).embedding_path).rows


def test_the_same_word_is_learned_and_drawn(folder, whole, tmp_path, photos):
    first, second = learn_from_both(folder, whole, photos, tmp_path)
    assert (first == second).all() and first.shape == (1, 768)
    assert run_folder.model_of(tmp_path / "1")["name"] == str(whole)
    drawn = [
        "generate",
        "--embedding",
        str(tmp_path / "1"),
        "--prompt",
        "a <my-toy>",
        "--num_images",
        "1",
    ]
    assert main([*drawn, "--num_inference_steps", "2", "--output_dir", str(tmp_path / "p")]) == 0
    assert len(list((tmp_path / "p").glob("*.png"))) == 1


@pytest.fixture(scope="module")
def folder_xl(tmp_path_factory):
    return save_small_sdxl(tmp_path_factory.mktemp("models") / "sdxl")


@pytest.fixture
def whole_xl(folder_xl, tmp_path, monkeypatch):
    monkeypatch.setitem(single_file.LAYOUTS, (2, 32 + 48), str(folder_xl))
    return save_single_file(folder_xl, tmp_path / "sdxl.safetensors")


def test_sdxl_in_one_file_is_the_folder(folder_xl, whole_xl):
    one, other = models.load(whole_xl), models.load(folder_xl)
    pairs = [(one.unet, other.unet), (one.vae, other.vae)]
    for found, expected in [*pairs, *zip(one.text_encoders, other.text_encoders, strict=True)]:
        found, expected = found.state_dict(), expected.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    half = models.load(whole_xl, dtype=torch.float16)
    assert [e.dtype for e in half.text_encoders] == [torch.float32] * 2
    assert (half.dtype, half.vae_dtype) == (torch.float16, torch.float32)


def test_a_word_is_learned_for_sdxl_in_one_file(folder_xl, whole_xl, tmp_path, photos, capsys):
    first, second = learn_from_both(folder_xl, whole_xl, photos, tmp_path)
    assert (first == second).all() and first.shape == (1, 32 + 48)
    merge = ["merge", str(tmp_path / "1"), "--output_dir", str(tmp_path / "whole")]
    assert main(merge) == 0, capsys.readouterr().err
    assert len(models.load(tmp_path / "whole").text_encoders) == 2


def test_a_folder_is_made_of_it(folder, whole, tmp_path, capsys):
    made = ["merge", "--pretrained_model_name_or_path", str(whole), "--output_dir"]
    assert main([*made, str(tmp_path / "folder")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'folder'}\n"
    found = models.load(tmp_path / "folder").unet.state_dict()
    expected = models.load(folder).unet.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_jax_says_how_to_make_a_folder(whole):
    from tiutils.flax import models as flax_models

    with pytest.raises(InputError, match=r"JAX reads folders: `tiutils merge .*model.safetensors"):
        flax_models.load(whole)


U, V, T = "model.diffusion_model.", "first_stage_model.x", "cond_stage_model.x"
FIRST, TEXT = f"{U}input_blocks.0.0.weight", f"{U}input_blocks.1.1.attn2.to_k.weight"
XL = {FIRST: (8, 4, 3, 3), TEXT: (8, 2048), V: (1,)}
XL |= {f"conditioner.embedders.{end}.x": (1,) for end in ("0.transformer", "1.model")}
SD = {FIRST: (8, 4, 3, 3), TEXT: (8, 768), V: (1,), T: (1,)}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({**XL, "conditioner.embedders.0.model.x": (1,)}, "is the refiner of Stable Diffusion XL"),
        ({**SD, "conditioner.embedders.1.model.x": (1,)}, "lacks the first text encoder"),
        ({**XL, TEXT: (8, 768)}, "takes text embeddings 768 wide"),
        ({**SD, TEXT: (8, 2048)}, "takes text embeddings 2048 wide"),
        ({f"{U}joint_blocks.0.x": (1,)}, "is Stable Diffusion 3"),
        ({"double_blocks.0.x": (1,)}, "is Flux"),
        ({"lora_unet_x": (1,)}, "is a LoRA"),
        ({"emb_params": (1, 768)}, "is a learned word"),
        ({"weight": (1,)}, "has none of the parts of Stable Diffusion"),
        ({FIRST: SD[FIRST], TEXT: SD[TEXT]}, "lacks the VAE and the text encoder"),
        ({**SD, FIRST: (8, 9, 3, 3)}, "has a U-Net with 9 input channels"),
        ({**SD, TEXT: (8, 640)}, "takes text embeddings 640 wide"),
    ],
)
def test_other_files_are_refused_by_what_they_are(tmp_path, capsys, shapes, said):
    path = tmp_path / "x.safetensors"
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path)
    command = ["generate", "--prompt", "a toy", "--pretrained_model_name_or_path", str(path)]
    assert main([*command, "--output_dir", str(tmp_path / "p")]) == 2
    error = capsys.readouterr().err
    assert said in error and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_without_the_hub_it_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(single_file.LAYOUTS, (1, 768), "owner/not-in-the-cache")
    path = tmp_path / "x.safetensors"
    save_file({name: np.zeros(shape, np.float16) for name, shape in SD.items()}, path)
    with pytest.raises(InputError, match=r"needs the configuration and the tokenizer of owner/not"):
        pretrained.locate(path)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200)
    | st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=9), max_size=3).map(
        lambda header: len(json.dumps(header)).to_bytes(8, "little") + json.dumps(header).encode()
    )
)
def test_any_bytes_are_a_model_or_one_clear_line(data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.safetensors"
        path.write_bytes(data)
        with pytest.raises(InputError) as error:
            single_file.layout_of(path)
        assert "\n" not in str(error.value)
