"""Model parts: found, loaded frozen, refused in one line when damaged, and written for old and new readers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from small_model import save_small_model, save_tokenizer_files

from tiutils import models, token_embedding
from tiutils.errors import InputError
from tiutils.io import pretrained


@pytest.fixture
def copy(small_model, tmp_path):
    """A copy of the small model that a test may damage."""
    return shutil.copytree(small_model, tmp_path / "copy")


def refused(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


# Loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_parts_are_frozen(small_model, dtype):
    parts = models.load(small_model, dtype=dtype)
    for part in (parts.text_encoder, parts.vae, parts.unet):
        assert not part.training and not any(p.requires_grad for p in part.parameters())
    assert {p.dtype for p in parts.text_encoder.parameters()} == {torch.float32}
    assert {p.dtype for part in (parts.vae, parts.unet) for p in part.parameters()} == {dtype}
    assert (parts.name, parts.dtype, parts.device.type) == (str(small_model), dtype, "cpu")


def test_sizes(small_model):
    parts = models.load(small_model)
    assert (parts.vae_factor, parts.resolution, parts.hidden_size) == (2, 32, 32)
    assert parts.latent_shape() == (4, 16, 16) and parts.latent_shape(64) == (4, 32, 32)
    assert pretrained.vae_factor({"block_out_channels": [128, 256, 512, 512]}) == 8, "SD 1.5"


def test_weights_are_those_of_stock_diffusers(small_model):
    parts = models.load(small_model)
    stock = StableDiffusionPipeline.from_pretrained(small_model)
    for part in ("text_encoder", "vae", "unet"):
        ours, theirs = (getattr(owner, part).state_dict() for owner in (parts, stock))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), part
    assert torch.equal(parts.noise_scheduler.betas, stock.scheduler.betas)


def test_a_variant(copy):
    for part, name in (
        ("text_encoder", "model"),
        ("vae", "diffusion_pytorch_model"),
        ("unet", "diffusion_pytorch_model"),
    ):
        tensors = load_file(copy / part / f"{name}.safetensors")
        half = {key: tensor.half() for key, tensor in tensors.items()}
        save_file(half, copy / part / f"{name}.fp16.safetensors", metadata={"format": "pt"})
        (copy / part / f"{name}.safetensors").unlink()
    parts = models.load(copy, variant="fp16")
    assert parts.text_encoder.dtype == torch.float32 and parts.unet.dtype == torch.float32
    assert "copy" in refused(models.load, copy), "without the variant there are no weights"


def test_another_tokenizer(small_model, tmp_path):
    other = save_tokenizer_files(tmp_path / "other")
    vocabulary = json.loads((other / "vocab.json").read_text())
    vocabulary["zebra</w>"] = len(vocabulary)
    (other / "vocab.json").write_text(json.dumps(vocabulary))
    parts = models.load(small_model, tokenizer_name=str(other))
    assert "zebra</w>" in parts.tokenizer.get_vocab()


# Damage: whatever is wrong with a folder, it is one line and never random weights


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


DAMAGE = {
    "text encoder cut": ("text_encoder/model.safetensors", cut),
    "text encoder gone": ("text_encoder/model.safetensors", lambda path: path.unlink()),
    "text encoder of another size": (
        "text_encoder/config.json", replace('"hidden_size": 32', '"hidden_size": 48'),
    ),
    "text encoder's configuration a list": (
        "text_encoder/config.json", lambda path: path.write_text("[]"),
    ),
    "text encoder's configuration gone": ("text_encoder/config.json", lambda path: path.unlink()),
    "VAE cut": ("vae/diffusion_pytorch_model.safetensors", cut),
    "VAE's configuration cut": ("vae/config.json", cut),
    "U-Net cut": ("unet/diffusion_pytorch_model.safetensors", cut),
    "U-Net gone": ("unet/diffusion_pytorch_model.safetensors", lambda path: path.unlink()),
    "U-Net of another size": (
        "unet/config.json", replace('"cross_attention_dim": 32', '"cross_attention_dim": 48'),
    ),
    "schedule gone": ("scheduler/scheduler_config.json", lambda path: path.unlink()),
    "tokenizer's words cut": ("tokenizer/vocab.json", cut),
    "tokenizer cut": ("tokenizer/tokenizer.json", cut),
    "tokenizer empty": ("tokenizer/tokenizer.json", lambda path: path.write_text("{}")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused(copy, damage):
    name, harm = DAMAGE[damage]
    if name == "tokenizer/vocab.json":  # then it is what is read
        (copy / "tokenizer" / "tokenizer.json").unlink()
    harm(copy / name)
    message = refused(models.load, copy)
    assert message.startswith(("cannot read ", "the model ")) and str(copy) in message


def test_weights_saved_for_another_version_are_refused(copy):
    """transformers would go on with random weights and a mere warning."""
    path = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if name.endswith("k_proj.weight"))
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    message = refused(models.load, copy)
    assert "lacks" in message and lost.removeprefix("text_model.") in message


# Writing


@pytest.fixture(scope="module")
def saved(small_model, tmp_path_factory):
    """A model with two learned words, written out, and what was learned."""
    parts = models.load(small_model)
    rows = {}
    for token, count in (("<one>", 1), ("<Two>", 2)):
        placeholder = token_embedding.add_placeholder(
            parts, token, initializer_token="toy", num_vectors=count
        )
        rows[token] = token_embedding.rows_of(parts, placeholder)
        torch.nn.init.normal_(rows[token])
    folder = models.save(token_embedding.merged(parts), tmp_path_factory.mktemp("saved") / "model")
    return folder, {token: value.detach() for token, value in rows.items()}


def test_a_saved_model_is_read_back_with_its_words(saved, small_model):
    folder, rows = saved
    before, after = models.load(small_model), models.load(folder)
    ids = after.tokenizer("<one> <Two> <Two>_1", add_special_tokens=False).input_ids
    table = after.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], torch.cat([rows["<one>"], rows["<Two>"]]))
    old = before.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[: len(old)], old), "and no other word has moved"
    for part in ("vae", "unet"):
        ours, theirs = (getattr(owner, part).state_dict() for owner in (before, after))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_saved_model_has_what_older_versions_read(saved):
    folder, _ = saved
    tensors = load_file(folder / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in tensors)
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary["toy</w>"] < len(vocabulary)
    merges = (folder / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version") and "t o" in merges


def test_a_saved_model_keeps_its_guidance_scale(saved, small_model, tmp_path):
    folder, _ = saved
    assert models.load(small_model).guidance_scale == models.load(folder).guidance_scale == 2.5
    usual = models.load(small_model)
    usual.guidance_scale = 7.5
    index = json.loads((models.save(usual, tmp_path / "model") / "model_index.json").read_text())
    assert "_guidance_scale" not in index, "diffusers' own default needs no saying"


def test_saving_shows_no_bars_of_its_own(small_model, tmp_path, capfd):
    models.save(models.load(small_model), tmp_path / "model")
    assert not capfd.readouterr().err


@pytest.mark.release
@pytest.mark.slow
def test_a_saved_model_under_transformers_4(saved, tmp_path):
    from overlays import run_under

    folder, rows = saved
    code = """if True:
        import sys, torch
        from safetensors.torch import save_file
        from diffusers import StableDiffusionPipeline
        pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
        ids = pipeline.tokenizer("<one> <Two> <Two>_1", add_special_tokens=False).input_ids
        table = pipeline.text_encoder.get_input_embeddings().weight
        states = pipeline.text_encoder(torch.arange(77)[None])[0]
        save_file({"rows": table[ids].contiguous(), "states": states.contiguous()}, sys.argv[2])"""
    run_under("transformers-4.57", code, str(folder), str(tmp_path / "seen"))
    seen = load_file(tmp_path / "seen")
    assert torch.equal(seen["rows"], torch.cat([rows["<one>"], rows["<Two>"]]))
    expected = models.load(folder).text_encoder(torch.arange(77)[None])[0]
    assert torch.allclose(seen["states"], expected, atol=1e-5), "not random weights"


def test_a_v_prediction_model(tmp_path):
    folder = save_small_model(tmp_path / "v", prediction_type="v_prediction")
    assert models.load(folder).noise_scheduler.config.prediction_type == "v_prediction"
