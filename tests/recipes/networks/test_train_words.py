"""The last training: word encoder, text encoder and denoiser together."""

from __future__ import annotations

import pytest
import torch
from small_world import TINY, compose_things

from data.recipes.networks import latents, presets, tokenizer, train_text, train_vae, train_words
from data.recipes.world import things
from tiutils.word_encoder import WordEncoder


@pytest.fixture
def sayings(stocked, monkeypatch):
    """Plain and built pictures of TINY as latents; this tokenizer spells."""
    monkeypatch.setattr(train_text, "LENGTH", 76)
    train_vae.train(TINY)
    latents.build(TINY)
    compose_things()
    return train_words.Sayings(TINY, tokenizer.load(TINY).get_vocab())


def road_for_tests(pixels: int = 16) -> train_words.Road:
    torch.manual_seed(0)
    words = WordEncoder(TINY.text_width, pixels, channels=(16, 32))
    return train_words.Road(presets.unet(TINY), presets.text_encoder(TINY), words, 5)


@pytest.mark.slow
def test_looks_show_the_thing_of_the_target_in_another_picture(sayings):
    dice = train_words.Dice(1)
    seen = {bytes(latent.numpy().tobytes()): n for n, latent in enumerate(sayings.built)}
    place = lambda latents: [seen[bytes(one.numpy().tobytes())] for one in latents]  # noqa: E731
    clean, looks, _, _, thing = sayings.built_batch(dice, 60)
    numbers = [place(column) for column in (clean, *looks)]
    for one, target, first, second in zip(thing.tolist(), *numbers, strict=True):
        assert {n // things.SCENES for n in (target, first, second)} == {one}
        assert target not in (first, second)
    assert thing.max() < TINY.things - sayings.unseen, "the last things are kept for the test"
    unseen = sayings.built_batch(dice, 60, unseen=True)[-1]
    assert unseen.min() == TINY.things - sayings.unseen
    again = train_words.Dice(1)
    assert torch.equal(sayings.built_batch(again, 60)[0], clean), "a step's number decides it all"


def test_a_row_takes_the_place_of_the_stand_in_and_of_nothing_else():
    road = road_for_tests()
    ids = torch.tensor([[9, 3, 5, 4, 9]])
    own = road.table.weight[5].detach()[None]
    plain = road.read(ids, None)
    assert torch.equal(road.read(ids, own), plain)
    other = road.read(ids, -own)
    assert torch.equal(other[:, :2], plain[:, :2]), "what stands before it"
    assert (other[:, 2] - plain[:, 2]).norm() > 0.1
    assert torch.equal(road.read(ids, None), plain), "and nothing is left behind"


def test_new_attention_begins_by_adding_nothing():
    torch.manual_seed(0)
    new = presets.unet(TINY)
    config = dict(new.config) | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "only_cross_attention": False,
    }
    old = type(new).from_config(config)
    train_words.graft(new, old.state_dict())
    asked = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 77, TINY.text_width)
    torch.testing.assert_close(new(*asked).sample, old(*asked).sample)
    with pytest.raises(ValueError, match="do not fit"):
        train_words.graft(new, {"strange": torch.zeros(1)})


def test_made_rows_have_a_words_length_and_agreement_rewards_the_same_thing():
    road, dice = road_for_tests(), train_words.Dice(0)
    looks = torch.randn(6, 4, 16, 16), torch.randn(6, 4, 16, 16)
    rows, one, two = train_words.make_rows(road, dice, looks, torch.tensor([3, 4, -1, 3, 4, -1]))
    assert rows.shape == (6, TINY.text_width)
    assert (rows.norm(dim=1) / road.length - 1).abs().max() < train_words.NOISE
    torch.testing.assert_close(one.norm(dim=1), torch.ones(6))
    thing = torch.arange(6)
    assert train_words.agreement(one, one, thing) < train_words.agreement(one, two, thing)
