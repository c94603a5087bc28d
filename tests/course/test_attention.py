"""Attention maps are exact, leave the image unchanged, and belong to the right words."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from small_model import save_small_model

from tiutils import inference, models, token_embedding
from tiutils.course import attention
from tiutils.errors import InputError
from tiutils.figures import output

FAST = {"num_inference_steps": 3, "seed": 4}


@pytest.fixture(scope="module")
def parts(small_model):
    loaded = models.load(small_model)
    token_embedding.add_placeholder(loaded, "<t>", initializer_token="toy", num_vectors=2)
    return loaded


def cross_attention_layers(unet):
    return {n: m for n, m in unet.named_modules() if getattr(m, "is_cross_attention", False)}


@pytest.mark.parametrize("processor", [AttnProcessor(), AttnProcessor2_0()])
def test_shares_times_values_are_the_layers_own_output(parts, processor):
    torch.manual_seed(0)
    for layer in cross_attention_layers(parts.unet).values():
        layer.set_processor(processor)
        places = torch.randn(2, 12, layer.to_q.in_features)
        text = torch.randn(2, 7, layer.to_k.in_features)
        shares = attention.attention_shares(layer, places, text)
        values = layer.to_v(text).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        by_hand = layer.to_out[0]((shares @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(by_hand, layer(places, text))
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(2, layer.heads, 12))


def test_softmax_by_hand_with_one_head_of_one_number():
    layer = torch.nn.Module()
    layer.heads, layer.scale = 1, 2.0
    layer.to_q = layer.to_k = torch.nn.Identity()
    places, text = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[0.0], [0.5]]])
    e = math.exp(1.0)
    expected = [[0.5, 0.5], [1 / (1 + e), e / (1 + e)]]
    torch.testing.assert_close(
        attention.attention_shares(layer, places, text)[0, 0], torch.tensor(expected)
    )


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_recording_leaves_the_picture_and_the_unet_as_they_were(parts, guidance_scale):
    drawing = {**FAST, "guidance_scale": guidance_scale}
    plain = inference.generate(parts, "a <t> on sand", **drawing)[0]
    processors = parts.unet.attn_processors
    drawn, _ = attention.draw_with_maps(parts, "a <t> on sand", ["<t>"], **drawing)
    assert np.array_equal(np.asarray(plain), np.asarray(drawn))
    assert parts.unet.attn_processors == processors
    assert not any(layer._forward_pre_hooks for layer in parts.unet.modules())


def test_hooks_are_taken_away_after_an_error(parts):
    with pytest.raises(ZeroDivisionError), attention.record(parts.unet):
        raise ZeroDivisionError
    assert not any(layer._forward_pre_hooks for layer in parts.unet.modules())


def test_the_sample_with_the_prompt_is_seen_not_the_empty_one(parts):
    """With guidance the batch is (empty, prompt): the first step's shares are those of the prompt alone."""
    one_step = {**FAST, "num_inference_steps": 1}
    _, alone = attention.draw_with_maps(parts, "a <t>", ["<t>"], guidance_scale=1.0, **one_step)
    _, guided = attention.draw_with_maps(parts, "a <t>", ["<t>"], guidance_scale=6.0, **one_step)
    torch.testing.assert_close(alone["<t>"], guided["<t>"])


def test_the_shares_of_all_tokens_sum_to_one(parts):
    with attention.record(parts.unet) as shares:
        picture = inference.generate(parts, "a <t> on sand", **FAST)[0]
    maps = shares.maps(*picture.size)
    assert set(shares.calls.values()) == {3} and len(maps) == 77
    assert set(shares.sums) == set(cross_attention_layers(parts.unet))
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(maps.shape[1:]))


def test_maps_lie_as_the_picture_does():
    """The left column of a 2 × 4 picture looks at token 0, all others at token 1."""
    wide = torch.tensor([[1.0, 0.0], *[[0.0, 1.0]] * 3] * 2)
    coarse = torch.tensor([[0.0, 1.0]] * 2)  # 1 × 2
    shares = attention.Shares({"a": 2 * wide}, {"a": 2})
    assert shares.maps(width=40, height=20)[0].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    both = attention.Shares({"a": wide, "b": 3 * coarse}, {"a": 1, "b": 3})
    assert both.maps(width=40, height=20)[0].tolist() == [[0.5, 0, 0, 0], [0.5, 0, 0, 0]]


def test_a_picture_that_is_not_square(parts):
    picture, maps = attention.draw_with_maps(
        parts, "a toy", ["toy"], height=32, width=64, num_inference_steps=1
    )
    height, width = maps["toy"].shape
    assert picture.size == (64, 32) and width == 2 * height


def test_positions(parts):
    assert attention.positions(parts, "a cat on sand", "cat") == [2]
    assert attention.positions(parts, "a <t> on sand", "<t>") == [2, 3]
    assert attention.positions(parts, "cat on a cat", "cat") == [1, 4]
    assert attention.positions(parts, "a dog on a cat", "a cat") == [4, 5]


@pytest.mark.parametrize(
    "prompt, word", [("a cat", "dog"), ("a cat", ""), ("sand " * 90 + "cat", "cat")]
)
def test_a_word_that_is_not_there_is_named(parts, prompt, word):
    with pytest.raises(InputError, match="does not occur"):
        attention.positions(parts, prompt, word)


def test_nothing_recorded_says_what_to_do():
    with pytest.raises(InputError, match="generate an image"):
        attention.Shares().maps(8, 8)


def squares(count):
    return [Image.new("RGB", (16, 16), (40 * i, 90, 30)) for i in range(count)]


def shown_in(figure):
    return [axis for axis in figure.axes if axis.images]


def test_attention_figure_names_words_and_places():
    heat = torch.zeros(8, 8)
    heat[7, 0] = 1.0
    figure = attention.attention_figure(squares(1), [{"<a>": heat, "sand": heat.T}])
    alt = output.alt_text(figure)
    assert "<a>: most at the bottom left." in alt and "sand: most at the top right." in alt
    assert len(shown_in(figure)) == 3


def test_attention_figure_wants_maps_for_each_picture():
    with pytest.raises(InputError, match="2 images and 1 maps"):
        attention.attention_figure(squares(2), [{}])


def test_the_overlay_is_brightest_where_the_share_is():
    heat = torch.zeros(4, 4)
    heat[0, 3] = 0.2
    shown = np.asarray(attention.heat_overlay(Image.new("RGB", (64, 32), "gray"), heat)).astype(int)
    assert shown.shape == (32, 64, 3)
    assert shown[2, -4].sum() > shown[-4, 2].sum() + 100


def test_the_overlay_of_a_flat_map_is_one_color():
    shown = attention.heat_overlay(Image.new("RGB", (8, 8)), torch.full((2, 2), 0.1))
    assert len(shown.getcolors()) == 1


def test_a_block_that_sees_the_prompt_alone_is_recorded_twice(tmp_path):
    """With `only_cross_attention`, as in the bundled model's first stage, both its attentions read the prompt."""
    only = save_small_model(tmp_path / "model", unet={"only_cross_attention": [True, False]})
    loaded = models.load(only)
    with attention.record(loaded.unet) as shares:
        inference.generate(loaded, "a toy on sand", **FAST)
    assert {name.split(".")[-1] for name in shares.sums} == {"attn1", "attn2"}
    maps = shares.maps(32, 32)
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(maps.shape[1:]))
