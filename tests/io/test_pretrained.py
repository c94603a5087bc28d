"""A model's folder: where it is, fetched from a Hub if it must be; its tokenizer and its configurations."""

from __future__ import annotations

import fnmatch
import shutil

import pytest
import torch

from tiutils import models
from tiutils.errors import InputError
from tiutils.io import hub as hub_client
from tiutils.io import pretrained


@pytest.fixture
def copy(small_model, tmp_path):
    """A copy of the small model that a test may damage."""
    return shutil.copytree(small_model, tmp_path / "copy")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refused(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def test_default_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.default_model() == str(pretrained.BUNDLED_MODEL)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.default_model() == str(pretrained.BUNDLED_MODEL), "a GPU, but no Hub"
    monkeypatch.setattr(
        hub_client, "hub_answers", lambda path: path == f"models/{pretrained.DEFAULT_MODEL}"
    )
    assert models.default_model() == pretrained.DEFAULT_MODEL
    monkeypatch.setattr(hub_client, "hub_answers", lambda path: False)
    monkeypatch.setattr(hub_client, "cached", lambda name: True)
    assert models.default_model() == pretrained.DEFAULT_MODEL, "offline, but in the cache"


@pytest.mark.parametrize("gpu", [True, False])
def test_one_variable_overrides_what_the_device_decides(monkeypatch, small_model, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("TIUTILS_MODEL", str(small_model))
    assert models.default_model() == models.load().name == str(small_model)
    monkeypatch.setenv("TIUTILS_MODEL", "")
    assert models.default_model() == str(pretrained.BUNDLED_MODEL)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "vae", "unet", "scheduler"])
def test_a_folder_that_lacks_a_part(copy, part):
    shutil.rmtree(copy / part)
    assert f"lacks {part};" in refused(pretrained.locate, copy)


@pytest.mark.parametrize("name", ["nobody/nothing", "a b", "../up", "/etc/hostname", "x" * 300])
def test_a_name_that_is_no_model(name):
    for weights in (True, False):
        message = refused(pretrained.locate, name, weights=weights)
        assert f"no model {name!r}" in message and str(pretrained.BUNDLED_MODEL) in message


def hub_with(monkeypatch, tmp_path, *files):
    """A Hub whose model `owner/name` has these files; returns the snapshot's folder and what was asked for."""
    folder, asked = tmp_path / "snapshot", []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        for file in files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).touch()
        return str(folder)

    monkeypatch.setattr(hub_client, "hub_answers", lambda path: path == "models/owner/name")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folder, asked


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


SMALL = {"model_index.json", "unet/config.json", "tokenizer/merges.txt"}


UNET, VAE, TEXT = (
    "unet/diffusion_pytorch_model",
    "vae/diffusion_pytorch_model",
    "text_encoder/model",
)


WHOLE = {f"{stem}.safetensors" for stem in (UNET, VAE, TEXT)}


HALF = {f"{stem}.fp16.safetensors" for stem in (UNET, VAE, TEXT)}


PICKLES = {f"{UNET}.bin", f"{VAE}.bin", "text_encoder/pytorch_model.bin"}


OTHERS = {f"{UNET}.non_ema.safetensors", "safety_checker/model.safetensors", "v1-5-pruned.ckpt"}


@pytest.mark.parametrize(
    "variant, wanted", [(None, WHOLE), ("fp16", HALF)], ids=["whole", "variant"]
)
def test_a_model_of_the_hub(monkeypatch, tmp_path, variant, wanted):
    """Small files first; the weights, of the wanted revision and variant, only when they are needed."""
    everything = SMALL | WHOLE | HALF | PICKLES | OTHERS
    folder, asked = hub_with(monkeypatch, tmp_path, *everything)
    assert pretrained.locate("owner/name", revision="v1", weights=False) == folder
    assert files_in(folder) == SMALL
    assert pretrained.locate("owner/name", revision="v1", variant=variant) == folder
    assert files_in(folder) == SMALL | wanted
    assert set(asked) == {("owner/name", "v1")}


@pytest.mark.parametrize("others", [HALF, PICKLES], ids=["variant", "pickles"])
def test_a_word_encoder_comes_with_the_weights(monkeypatch, tmp_path, others):
    """Its sizes with the small files, so that a model without one is known before gigabytes travel."""
    sizes, encoder = "word_encoder/config.json", "word_encoder/model.safetensors"
    folder, _ = hub_with(monkeypatch, tmp_path, *SMALL, *others, sizes, encoder)
    variant = "fp16" if others is HALF else None
    pretrained.locate("owner/name", variant=variant, weights=False)
    assert files_in(folder) == SMALL | {sizes} and pretrained.has_word_encoder(folder)
    pretrained.locate("owner/name", variant=variant)
    assert files_in(folder) == SMALL | others | {sizes, encoder}


def test_weights_in_shards(monkeypatch, tmp_path):
    """Numbered after the variant, as now, or before it, as in older folders."""
    rest = {f"{VAE}.fp16.safetensors", f"{TEXT}.fp16.safetensors"}
    shards = {f"{UNET}.fp16-00001-of-00002.safetensors", f"{UNET}-00002-of-00002.fp16.safetensors"}
    others = {f"{UNET}-00001-of-00002.safetensors", f"{UNET}.fp32-00001-of-00002.safetensors"}
    folder, _ = hub_with(monkeypatch, tmp_path, *SMALL, *rest, *shards, *others)
    pretrained.locate("owner/name", variant="fp16")
    assert files_in(folder) == SMALL | rest | shards


def test_weights_that_are_pickles_only(monkeypatch, tmp_path):
    folder, _ = hub_with(monkeypatch, tmp_path, *SMALL, *PICKLES)
    pretrained.locate("owner/name")
    assert files_in(folder) == SMALL | PICKLES


def test_a_model_from_the_hub_has_its_id_as_its_name(small_model, monkeypatch):
    monkeypatch.setattr(hub_client, "hub_answers", lambda path: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(small_model))
    assert models.load("owner/name").name == "owner/name"


@pytest.mark.parametrize("weights", [True, False])
def test_a_hub_that_fails_half_way(monkeypatch, weights):
    def fail(*arguments, **options):
        raise RuntimeError("the connection broke\nwith a long story")

    monkeypatch.setattr(hub_client, "hub_answers", lambda path: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = refused(pretrained.locate, "owner/name", weights=weights)
    assert message == "the Hub did not give the model 'owner/name': the connection broke"


def test_a_tokenizer_without_files_is_refused(copy):
    """transformers 5 would make an empty one."""
    for path in (copy / "tokenizer").iterdir():
        path.unlink()
    assert "it holds no words" in refused(pretrained.load_tokenizer, copy)


@pytest.mark.parametrize("part", ["vae", "unet", "scheduler"])
def test_configuration_of_a_part(small_model, copy, part):
    assert pretrained.read_config(small_model, part)["_class_name"]
    for path in (copy / part).glob("*.json"):
        cut(path)
    assert "cannot read" in refused(pretrained.read_config, copy, part)
    shutil.rmtree(copy / part)
    assert "cannot read" in refused(pretrained.read_config, copy, part)
