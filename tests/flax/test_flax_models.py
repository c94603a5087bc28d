"""Each network in JAX computes what it computes in PyTorch, on the bundled model and on SD 1.x's and 2.x's shapes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import save_tokenizer_files
from transformers import CLIPTextConfig, CLIPTextModel

from tiutils import models as torch_models
from tiutils.errors import InputError
from tiutils.flax import models
from tiutils.flax.networks import unet
from tiutils.flax.networks.text_encoder import TextEncoder
from tiutils.flax.networks.unet import UNet
from tiutils.flax.networks.vae import VAE
from tiutils.io import pretrained

# few channels, but every option as Stable Diffusion has it
UNETS = {
    "sd15": {"attention_head_dim": 8, "cross_attention_dim": 48},
    "sd2": {
        "attention_head_dim": [2, 4, 8, 8], "cross_attention_dim": 64, "use_linear_projection": True,
        "upcast_attention": True,
    },
}  # fmt: skip
TEXTS = {
    "sd15": {"hidden_size": 48, "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu"},
    "sd2": {"hidden_size": 64, "num_attention_heads": 16, "num_hidden_layers": 23, "hidden_act": "gelu"},
}  # fmt: skip


def save_shapes(folder, kind):
    """A random model with the configuration of Stable Diffusion 1.5 or 2.1, but few channels."""
    torch.manual_seed(0)
    save_tokenizer_files(folder / "tokenizer")
    UNet2DConditionModel(
        block_out_channels=(32, 64, 96, 96), layers_per_block=2, sample_size=8, **UNETS[kind]
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(32, 32, 64, 64), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, sample_size=64,
    ).save_pretrained(folder / "vae")  # fmt: skip
    CLIPTextModel(
        CLIPTextConfig(vocab_size=600, intermediate_size=96, **TEXTS[kind])
    ).save_pretrained(folder / "text_encoder")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in UNETS]  # to compile


@pytest.fixture(scope="module", params=["tiny-sd", *SLOW])
def pair(request, tmp_path_factory):
    """The same model in both frameworks."""
    if request.param == "tiny-sd":
        folder = pretrained.BUNDLED_MODEL
    else:
        folder = save_shapes(tmp_path_factory.mktemp(request.param), request.param)
    return models.load(folder), torch_models.load(folder)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@torch.no_grad()
def test_text_encoder(pair):
    ours, theirs = pair
    ids = np.random.default_rng(0).integers(0, 500, (2, 77))
    expected = theirs.text_encoder(torch.tensor(ids)).last_hidden_state.numpy()
    found = jax.jit(lambda part, ids: part(part.embed(ids)))(ours.text_encoder, ids)
    assert found.dtype == jnp.float32
    assert np.abs(found - expected).max() <= 1e-4


@torch.no_grad()
def test_unet(pair):
    ours, theirs = pair
    arguments = random(2, 4, 8, 16), np.array([3, 981]), random(2, 77, ours.hidden_size, seed=1)
    expected = theirs.unet(*map(torch.tensor, arguments)).sample.numpy()
    found = jax.jit(lambda part, *arguments: part(*arguments))(ours.unet, *arguments)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(expected).max() > 0.01


@torch.no_grad()
def test_vae(pair):
    ours, theirs = pair
    factor = ours.vae_factor
    images, latents = np.tanh(random(1, 3, 4 * factor, 8 * factor)), random(1, 4, 4, 8)
    expected = theirs.vae.encode(torch.tensor(images)).latent_dist
    mean, std = jax.jit(lambda part, x: part.encode(x))(ours.vae, images)
    assert np.abs(mean - expected.mean.numpy()).max() <= 1e-3
    assert np.abs(std - expected.std.numpy()).max() <= 1e-3
    expected = theirs.vae.decode(torch.tensor(latents)).sample.numpy()
    found = jax.jit(lambda part, x: part.decode(x))(ours.vae, latents)
    assert np.abs(found - expected).max() <= 1e-3


def test_facts_are_those_of_pytorch(pair):
    ours, theirs = pair
    for name in ("hidden_size", "vae_factor", "resolution", "guidance_scale", "name"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.latent_shape() == theirs.latent_shape()
    assert ours.vae_scaling == theirs.vae.config.scaling_factor
    assert ours.first_id == len(theirs.tokenizer) and ours.rows.shape == (0, ours.hidden_size)


@pytest.mark.slow
def test_gradients_are_pytorchs_whether_checkpointed_or_not(small_model):
    ours, theirs = models.load(small_model), torch_models.load(small_model)
    latents, timesteps, context = random(1, 4, 8, 8), np.array([500]), random(1, 77, 32, seed=1)
    probe = random(1, 4, 8, 8, seed=2)
    tensor = torch.tensor(context, requires_grad=True)
    said = theirs.unet(torch.tensor(latents), torch.tensor(timesteps), tensor).sample
    (said * torch.tensor(probe)).sum().backward()
    gradient = jax.grad(lambda c, part: (part(latents, timesteps, c) * probe).sum())
    for switch in (False, True):
        ours.unet.gradient_checkpointing = switch
        program = jax.jit(gradient)
        assert ("remat" in str(jax.make_jaxpr(gradient)(context, ours.unet))) == switch
        np.testing.assert_allclose(program(context, ours.unet), tensor.grad, atol=1e-5)


@pytest.mark.slow
def test_frozen_parts_in_bfloat16_and_the_text_encoder_in_float32(small_model):
    parts, exact = models.load(small_model, dtype=jnp.bfloat16), models.load(small_model)
    assert parts.dtype == jnp.bfloat16
    for part in (parts.unet, parts.vae):
        assert {leaf.dtype for leaf in jax.tree.leaves(part)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(parts.text_encoder)} == {np.dtype(np.float32)}
    arguments = random(1, 4, 8, 8), np.array([500]), random(1, 77, 32)
    program = jax.jit(lambda part, *arguments: part(*arguments))
    found, expected = program(parts.unet, *arguments), program(exact.unet, *arguments)
    assert found.dtype == jnp.bfloat16
    assert np.abs(found.astype(np.float32) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("latents", "context", "message"),
    [
        ((1, 4, 9, 8), (1, 77, 32), r"latents are \(1, 4, 9, 8\).*multiples of 2"),
        ((1, 8, 8, 4), (1, 77, 32), r"latents are \(1, 8, 8, 4\); expected \(batch, 4"),
        ((1, 4, 8, 8), (2, 77, 32), r"states are \(2, 77, 32\); expected \(1, tokens, 32\)"),
        ((1, 4, 8, 8), (1, 77, 64), r"states are \(1, 77, 64\); expected \(1, tokens, 32\)"),
    ],
)
def test_wrong_shapes_are_named(small_model, latents, context, message):
    config = pretrained.read_config(small_model, "unet")
    part = nnx.eval_shape(lambda: UNet(config))
    with pytest.raises(InputError, match=message):
        part(jnp.zeros(latents), jnp.zeros(1, jnp.int32), jnp.zeros(context))


@pytest.mark.parametrize(
    ("part", "option", "value", "message"),
    [
        ("unet", "class_embed_type", "timestep", "U-Net's option class_embed_type is 'timestep'"),
        ("unet", "act_fn", "gelu", "act_fn is 'gelu', supported only 'silu'"),
        ("unet", "mid_block_type", None, "mid_block_type is None"),
        ("unet", "something_new", 3, "something_new is 3, supported not at all"),
        ("unet", "only_cross_attention", "yes", "only_cross_attention is 'yes', expected true"),
        ("unet", "layers_per_block", [1, 2], r"layers_per_block is \[1, 2\], where a value like 2"),
        ("unet", "attention_head_dim", [5], "1 attention_head_dim"),
        ("unet", "attention_head_dim", 0, "attention_head_dim is 0"),
        ("unet", "attention_head_dim", 3, "16 channels do not divide into 3 attention heads"),
        ("unet", "norm_num_groups", 5, "cannot be normalized in 5 groups"),
        ("unet", "down_block_types", ["AttnDownBlock2D", "DownBlock2D"], "block AttnDownBlock2D"),
        ("unet", "up_block_types", ["UpBlock2D"], "1 up_block_types"),
        ("vae", "use_quant_conv", False, "VAE's option use_quant_conv is False"),
        ("vae", "shift_factor", 0.1, "shift_factor is 0.1"),
        ("vae", "down_block_types", ["AttnDownEncoderBlock2D"], "block AttnDownEncoderBlock2D"),
        ("text_encoder", "hidden_act", "relu", "hidden_act is 'relu', supported are quick_gelu"),
        ("text_encoder", "num_attention_heads", 5, "does not divide into 5 attention heads"),
    ],
)
def test_what_is_not_supported_is_named(small_model, part, option, value, message):
    config = pretrained.read_config(small_model, part) | {option: value}
    kind = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}[part]
    with pytest.raises(InputError, match=message):
        nnx.eval_shape(lambda: kind(config))


def test_parts_that_do_not_fit_are_refused(small_model, tmp_path):
    folder = tmp_path / "inpainting"
    torch_models.save(torch_models.load(small_model), folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config(config | {"in_channels": 9}).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match=r"inpainting model .*takes 9 channels"):
        models.load(folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 64) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*unet.OPTIONS, *unet.FIXED, "attention_head_dim", "new"]), VALUES)
def test_any_configuration_is_read_or_refused(option, value):
    try:
        options = unet._options({option: value})
    except InputError as error:
        assert option in str(error) or "block" in str(error)
    else:
        assert all(type(width) is int and width > 0 for width in options.block_out_channels)
