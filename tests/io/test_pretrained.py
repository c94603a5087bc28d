"""Locating and downloading models; their kinds, configurations and tokenizers."""

from __future__ import annotations

import fnmatch
import inspect
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from tiutils import models
from tiutils.cli.main import main
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


def has_accelerator(monkeypatch, there):
    found = torch.device("cuda") if there else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)


def test_default_model(monkeypatch):
    has_accelerator(monkeypatch, False)
    assert models.default_model() == str(pretrained.BUNDLED_MODEL)
    has_accelerator(monkeypatch, True)
    assert models.default_model() == str(pretrained.BUNDLED_MODEL), "a GPU, but no Hub"
    monkeypatch.setattr(
        hub_client, "answers", lambda path: path == f"models/{pretrained.DEFAULT_MODEL}"
    )
    assert models.default_model() == pretrained.DEFAULT_MODEL
    monkeypatch.setattr(hub_client, "answers", lambda path: False)
    monkeypatch.setattr(hub_client, "cached_commit", lambda *_: "0a1b")
    assert models.default_model() == pretrained.DEFAULT_MODEL, "offline, but in the cache"


@pytest.mark.parametrize("gpu", [True, False])
def test_one_variable_overrides_what_the_device_decides(monkeypatch, small_model, gpu):
    has_accelerator(monkeypatch, gpu)
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
    """A Hub whose model `owner/name` has these files; returns the snapshot's folder and the requests."""
    folder, asked = tmp_path / "snapshot", []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        for file in files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).touch()
        return str(folder)

    monkeypatch.setattr(hub_client, "answers", lambda path: path == "models/owner/name")
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
    """Small files first; the weights of the chosen revision and variant only if needed."""
    everything = SMALL | WHOLE | HALF | PICKLES | OTHERS
    folder, asked = hub_with(monkeypatch, tmp_path, *everything)
    assert pretrained.locate("owner/name", revision="v1", weights=False) == folder
    assert files_in(folder) == SMALL
    assert pretrained.locate("owner/name", revision="v1", variant=variant) == folder
    assert files_in(folder) == SMALL | wanted
    assert set(asked) == {("owner/name", "v1")}


@pytest.mark.parametrize("others", [HALF, PICKLES], ids=["variant", "pickles"])
def test_a_word_encoder_comes_with_the_weights(monkeypatch, tmp_path, others):
    """Its sizes come with the small files, so that its absence is known before gigabytes are downloaded."""
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
    monkeypatch.setattr(hub_client, "answers", lambda path: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(small_model))
    assert models.load("owner/name").name == "owner/name"


@pytest.mark.parametrize("weights", [True, False])
def test_a_hub_that_fails_half_way(monkeypatch, weights):
    def fail(*arguments, **options):
        raise RuntimeError("the connection broke\nwith a long story")

    monkeypatch.setattr(hub_client, "answers", lambda path: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = refused(pretrained.locate, "owner/name", weights=weights)
    assert message == "the Hub did not give the model 'owner/name': the connection broke"


def test_a_tokenizer_without_files_is_refused(copy):
    """transformers 5 would make an empty one."""
    for path in (copy / "tokenizer").iterdir():
        path.unlink()
    assert "it is empty" in refused(pretrained.load_tokenizer, copy)


@pytest.mark.parametrize("part", ["vae", "unet", "scheduler"])
def test_configuration_of_a_part(small_model, copy, part):
    assert pretrained.read_config(small_model, part)["_class_name"]
    for path in (copy / part).glob("*.json"):
        cut(path)
    assert "cannot read" in refused(pretrained.read_config, copy, part)
    shutil.rmtree(copy / part)
    assert "cannot read" in refused(pretrained.read_config, copy, part)


# Models of another kind


def with_config(folder, part, **options):
    path = folder / part / "config.json" if part else folder / "model_index.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | options))


OTHER_KINDS = {
    "SDXL's second encoder, too wide": (
        [("unet", {"addition_embed_type": "text_time"}), ("text_encoder_2", {"hidden_size": 1280})],
        r"32 wide.*gives 32 \+ 1280",
    ),
    "SDXL by its index": (
        [
            (
                "",
                {
                    "_class_name": "StableDiffusionXLPipeline",
                    "text_encoder_2": ["transformers", "C"],
                },
            )
        ],
        "Stable Diffusion XL in part .it has a second text encoder",
    ),
    "half of SDXL": (
        [("unet", {"addition_embed_type": "text_time"})],
        "Stable Diffusion XL in part .no second text encoder",
    ),
    "inpainting": (
        [("unet", {"in_channels": 9})],
        "an inpainting model .*takes 9 channels.*gives 4",
    ),
    "instruct": ([("unet", {"in_channels": 8})], "an image-editing model"),
    "depth": ([("unet", {"in_channels": 5})], "a depth model"),
    "upscaler": ([("unet", {"in_channels": 7, "num_class_embeds": 1000})], "an upscaling model"),
    "odd channels": ([("unet", {"in_channels": "9"})], "another model"),
    "unclip": ([("unet", {"class_embed_type": "projection"})], "needs more than text"),
    "IF": ([("text_encoder", {"model_type": "t5"})], "text encoder is 't5'"),
    "video": ([("unet", {"_class_name": "UNet3DConditionModel"})], "UNet3DConditionModel"),
    "latent diffusion": ([("vae", {"_class_name": "VQModel"})], "VQModel"),
    "cascade": (
        [("", {"prior": ["diffusers", "X"], "_class_name": "P"})],
        r"another architecture \(P\)",
    ),
    "parts of two": ([("unet", {"cross_attention_dim": 768})], "768 wide.*gives 32"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_model_of_another_kind_is_named_before_its_weights_are_read(copy, kind, capsys):
    changes, expected = OTHER_KINDS[kind]
    for part, options in changes:
        with_config(copy, part, **options)
    for weights in copy.rglob("*.safetensors"):
        weights.write_bytes(b"never read")
    base = ["--pretrained_model_name_or_path", str(copy)]
    for framework in ("pytorch", "flax"):
        if framework == "flax":
            pytest.importorskip("jax")
        assert main(["generate", "--prompt", "x", "--framework", framework, *base]) == 2
        error = capsys.readouterr().err
        assert re.search(expected, error) and error.count("\n") == 1, error
        assert "Stable Diffusion 1.x, 2.x and XL" in error


@pytest.mark.parametrize("framework", ["pytorch", "flax"])
def test_training_leaves_nothing_behind_where_the_model_is_of_another_kind(
    copy, photos, tmp_path, capsys, framework
):
    if framework == "flax":
        pytest.importorskip("jax")
    with_config(copy, "unet", in_channels=9)
    flags = [
        "--train_data_dir",
        str(photos),
        "--placeholder_token",
        "<n>",
        "--initializer_token",
        "toy",
    ]
    flags += ["--pretrained_model_name_or_path", str(copy), "--framework", framework]
    assert main(["train", *flags, "--output_dir", str(tmp_path / "out")]) == 2
    assert "an inpainting model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_transformer_model_is_named(tmp_path):
    for part in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler"):
        (tmp_path / part).mkdir()
    assert "built on a transformer" in refused(pretrained.locate, tmp_path)
    (tmp_path / "text_encoder_2").mkdir()
    assert "SD 3 or Flux" in refused(pretrained.locate, tmp_path)


def test_a_model_of_another_kind_on_the_hub_is_refused_before_gigabytes_are_downloaded(
    monkeypatch, tmp_path
):
    folder, _ = hub_with(monkeypatch, tmp_path, *SMALL, *WHOLE)
    (folder / "unet").mkdir(parents=True)
    with_config(folder, "unet", in_channels=9)
    with_config(folder, "vae", latent_channels=4)
    message = refused(pretrained.locate, "owner/name")
    assert "the model 'owner/name' is an inpainting model" in message
    assert not files_in(folder) & WHOLE


def test_stable_diffusion_in_all_its_spellings_is_taken(copy):
    with_config(copy, "", _class_name="StableDiffusionImg2ImgPipeline", image_encoder=[None, None])
    with_config(copy, "unet", _class_name="FlaxUNet2DConditionModel", class_embed_type=None)
    assert pretrained.locate(copy) == copy


values = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4)
values |= st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=2)
OPTIONS = ["in_channels", "latent_channels", "_class_name", "addition_embed_type", "class_embed_type",
           "num_class_embeds", "cross_attention_dim", "hidden_size", "model_type", "text_encoder_2",
           "transformer", "unet", "prior"]  # fmt: skip
configs = st.dictionaries(st.sampled_from(OPTIONS), values, max_size=4).map(json.dumps)


@settings(max_examples=150, deadline=None)
@given(st.lists(configs | st.text(max_size=8), min_size=4, max_size=4))
def test_any_configuration_is_a_kind_or_one_clear_line(texts):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, text in zip(("", "unet", "vae", "text_encoder"), texts, strict=True):
            path = folder / part / "config.json" if part else folder / "model_index.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        try:
            pretrained.check_kind(folder, "owner/name")
        except InputError as error:
            assert "'owner/name'" in str(error) and "\n" not in str(error)


SIZES = {"unet": {"sample_size": 16, "block_out_channels": [16, 32]}, "scheduler": {},
         "vae": {"block_out_channels": [8, 16]}, "text_encoder": {"hidden_size": 32},
         "word_encoder": {"hidden": 32, "latent_channels": 4}}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(SIZES)), st.none() | st.text(max_size=9) | configs | st.just("[" * 9**5)
)
def test_what_a_configuration_lacks_is_one_clear_line(part, text):
    """One part's configuration is empty (None), no JSON, or of other entries."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each, sizes in SIZES.items():
            file = "scheduler_config.json" if each == "scheduler" else "config.json"
            (folder / each).mkdir()
            content = json.dumps(sizes) if each != part else text or "{}"
            (folder / each / file).write_text(content, encoding="utf-8")
        for call in (
            lambda: pretrained.resolution(folder),
            lambda: pretrained.check_resolution(32, folder),
            lambda: pretrained.check_prediction_type(folder),
            lambda: pretrained.check_word_encoder(folder, "owner/name"),
        ):
            try:
                call()
            except InputError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("pipeline", "parts"),
    [(StableDiffusionPipeline, 1), (StableDiffusionXLPipeline, 2)],
)
def test_a_model_that_names_no_guidance_scale_has_its_pipelines_default(tmp_path, pipeline, parts):
    for part in pretrained.TEXT_ENCODERS[:parts]:
        (tmp_path / part).mkdir()
    expected = inspect.signature(pipeline.__call__).parameters["guidance_scale"].default
    assert pretrained.guidance_scale(tmp_path) == expected
    (tmp_path / "model_index.json").write_text("{}")
    assert pretrained.guidance_scale(tmp_path) == expected
    (tmp_path / "model_index.json").write_text('{"_guidance_scale": 3}')
    assert pretrained.guidance_scale(tmp_path) == 3


@pytest.mark.parametrize("scale", ['"much"', "NaN", "Infinity", "null", "true", "[2.5]"])
def test_a_guidance_scale_that_is_no_number_is_refused(tmp_path, scale):
    (tmp_path / "model_index.json").write_text(f'{{"_guidance_scale": {scale}}}')
    assert re.search(
        r"model_index\.json has _guidance_scale .*; expected a number",
        refused(pretrained.guidance_scale, tmp_path),
    )


# Models in one file, and web addresses


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sd15.ckpt", "may contain code: get the model as .safetensors"),
        ("SD15.PT", "may contain code"),
        ("sd15.gguf", "single file"),
    ],
)
def test_a_single_file_of_another_form_is_refused_with_advice(tmp_path, name, expected):
    (tmp_path / name).touch()
    for weights in (True, False):
        assert re.search(expected, refused(pretrained.locate, tmp_path / name, weights=weights))
    assert re.search(expected, refused(pretrained.locate, tmp_path)), "a folder with nothing else"
    message = refused(pretrained.locate, f"no/such/{name}")
    assert "no file of that name" in message and "network" not in message


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://huggingface.co/owner/name", "the Hub id alone: owner/name"),
        ("https://huggingface.co/owner/name/resolve/main/x.safetensors", "id alone: owner/name"),
        ("hf.co/owner/name", "id alone: owner/name"),
        ("https://example.org/models/x.safetensors", "a web address"),
        ("s3://bucket/model", "a web address"),
    ],
)
def test_a_web_address_is_told_what_to_give(address, expected):
    message = refused(pretrained.locate, address)
    assert expected in message and "spelling" not in message


def test_a_folder_that_holds_a_single_file_says_to_name_the_file(tmp_path):
    (tmp_path / "sd15.safetensors").touch()
    assert re.search(
        r"give the file itself, .*sd15.safetensors", refused(pretrained.locate, tmp_path)
    )
