"""How the bundled model is made: the world's words, the pack, and every stage of training, stopped and gone on with."""

from __future__ import annotations

import gzip
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data.recipes import (
    carry,
    collect,
    compose,
    judge,
    latents,
    make,
    pack,
    places,
    plan,
    pool,
    presets,
    tokenizer,
    train_evaluator,
    train_text,
    train_unet,
    train_vae,
    training,
    wide,
    world,
)

TINY = replace(
    presets.CPU,
    name="tiny",
    world="wide",
    size=32,
    vae_channels=(8, 16),
    unet_channels=(16, 32),
    text_layers=1,
    text_width=64,
    text_side=32,
    vocabulary=516,
    pool=40,
    vae_pool=20,
    unet_cross=0,
    evaluator_width=16,
    **{f"{name}_{what}": n for name in make.TRAININGS for what, n in (("steps", 6), ("batch", 4))},
)


# the world's words


def test_the_wide_world_has_more_than_700_nouns_and_none_held_out():
    nouns = world.nouns("wide")
    words = [noun.word for noun in nouns]
    assert len(words) == len(set(words)) >= 700
    assert {noun.word for noun in world.nouns()} <= set(words), "the small world is part of it"
    assert {noun.word for noun in world.nouns()}.isdisjoint(wide.SINGLE)
    named = {thing for noun in nouns for thing in (*noun.emoji, *noun.models)}
    assert named.isdisjoint(world.HELD_OUT_MODELS + world.HELD_OUT_EMOJI)
    assert all(re.fullmatch(r"[a-z-]+( [a-z-]+)*", word) for word in set(words) - {"t-shirt"})
    assert len(places.PLACES) >= 12


def test_words_that_are_never_counted_are_words_of_the_world():
    assert wide.SINGLE | set(wide.IRREGULAR) <= {noun.word for noun in world.nouns("wide")}


@pytest.mark.parametrize(
    "word, many",
    [("fairy", "fairies"), ("toy", "toys"), ("christmas tree", "christmas trees"), ("fox", "foxes"),
     ("old man", "old men"), ("shelf", "shelves"), ("bus stop", "bus stops"), ("bison", "bison")],
)  # fmt: skip
def test_plurals(word, many):
    assert world.Noun(word, (), (), 1).plural == many


@pytest.mark.skipif(not collect.SOURCES.exists(), reason="the sources are not fetched here")
def test_every_thing_of_the_tables_exists():
    emoji, models = collect.emoji_files(), collect.catalogue()
    nouns = world.nouns("wide")
    assert [e for noun in nouns for e in noun.emoji if e not in emoji] == []
    assert [m for noun in nouns for m in noun.models if m not in models] == []
    assert set(world.HELD_OUT_MODELS) <= set(models), "held-out names are spelt as the catalogue's"


def thing(word: str) -> pack.Thing:
    cut = Image.new("RGBA", (8, 8), (200, 40, 40, 255))
    return pack.Thing((word,), word, [cut], [cut], True)


def test_a_calm_world_shows_the_usual_side_of_the_usual_thing_in_one_pose():
    def coloured(*fill: int, size: int = 16) -> Image.Image:
        return Image.new("RGBA", (size, 16), (*fill, 255))

    usual = pack.Thing(
        ("cat",), "usual", [coloured(250, 0, 0, size=12), coloured(0, 250, 0)], [], True
    )
    other = pack.Thing(("cat",), "other", [coloured(0, 0, 250)], [coloured(9, 9, 9)], True)
    cat = world.Noun("cat", (), (), 1)
    stage = compose.World({"cat": [usual, other]}, [cat], np.ones(1), name="wide", calm=True)
    shown = [compose.asked_scene(stage, n, "cat", "in space", 32) for n in range(300)]
    inside = np.stack(shown).astype(int)[:, 8:24, 10:22].mean(axis=(1, 2))
    often = np.bincount(inside.argmax(axis=1), minlength=3) / 300
    share = compose.USUAL + (1 - compose.USUAL) / 2  # of the thing, and of its side
    want = np.array([share * (1 - share), share * share, 1 - share])
    assert np.abs(often - want).max() < 0.08, "green: the larger side of the first thing"
    solid = [(one == one[16, 16]).all(axis=2) for one in shown]
    assert np.mean([same[12:20, 12:20].mean() for same in solid]) > 0.9, "always in the middle"
    unseen = replace(stage, held_out=True)
    dark = np.stack([compose.asked_scene(unseen, n, "cat", "in the snow", 32) for n in range(99)])
    share_dark = (dark[:, 12:20, 14:18].mean(axis=(1, 2, 3)) < 40).mean()
    assert 0.02 < share_dark < 0.3, "held-out worlds show the held-out side where there is one"


def test_how_high_a_calm_thing_stands():
    assert compose.calm_foot(20, 64, None) == pytest.approx(0.54 * 64 + 10)
    assert compose.calm_foot(8, 64, 0.7) == pytest.approx(0.82 * 64), (
        "on the floor, not before the wall"
    )
    assert compose.calm_foot(90, 64, 0.5) == 77, "a close-up has its middle in the picture's"


def small_stage(held_out: bool = False) -> compose.World:
    """Forty nouns of the wide world with one picture each."""
    nouns = world.nouns("wide")[::22][:40]
    by_word = {noun.word: [thing(noun.word)] for noun in nouns}
    return compose.World(by_word, nouns, np.full(len(nouns), 1 / len(nouns)), held_out, "wide")


def test_captions_say_what_was_drawn_and_leave_out_the_pairs_kept_apart():
    stage, templates, found = small_stage(), set(), set()
    for index in range(600):
        picture, caption = compose.scene(stage, 3, index, 16)
        assert picture.shape == (16, 16, 3)
        if not caption:
            continue
        place = next((p for p in places.PLACES if caption.endswith(" " + p)), "")
        rest = caption.removesuffix(place).strip()
        rest = re.sub(r" on an? \w+ background$", "", rest)
        noun = [n.word for n in stage.words if rest.endswith((n.word, n.plural))]
        assert noun, caption
        word = max(noun, key=len)
        assert not place or place != compose.place_never_seen(word), caption
        templates.add(rest.removesuffix(word))
        found.add((word, place))
    assert len(found) > 200, "nouns and places are drawn freely"
    assert {"a photo of a ", "a photo of my ", "a close-up photo of the "} & templates


def test_every_noun_has_a_place_left_to_ask_for():
    pairs = {noun.word: compose.place_never_seen(noun.word) for noun in world.nouns("wide")}
    assert set(pairs.values()) == set(places.PLACES), "no place is left out"
    stage = small_stage(held_out=True)
    drawn = [compose.scene(stage, 4, i, 8)[1] for i in range(900)]
    kept = [c for c in drawn for n in stage.words if c.endswith(f"{n.word} {pairs[n.word]}")]
    assert kept, "held-out compositions do show them"


def test_the_small_world_draws_what_it_always_drew():
    """Its compositions, to the bit, are what the 64 px model's figures were measured on."""
    nouns = world.nouns()[:30]
    stage = compose.World({n.word: [thing(n.word)] for n in nouns}, nouns, np.full(30, 1 / 30))
    rng = np.random.default_rng([3, 5])
    again = np.random.default_rng([3, 5])
    assert compose.backdrop(rng, 8)[0] == compose.backdrop(again, 8, stage.without("cat"))[0]
    assert rng.bit_generator.state == again.bit_generator.state


# the pack


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A working folder with a drawn world of twenty things, ten sides each, and a few merges."""
    cuts, found = tmp_path / "cuts", []
    cuts.mkdir()
    for number, noun in enumerate(world.nouns("wide")[::40][:20]):
        files = []
        for side in range(10):
            picture = Image.new("RGBA", (40, 40))
            colour = (10 * number, 255 - 12 * number, 20 * side, 255)
            ImageDraw.Draw(picture).ellipse((4, 2 + side, 36, 38), colour, "white", 3)
            files.append(cuts / f"{number}-{side}.png")
            picture.save(files[-1])
        found.append(([noun.word], {"name": noun.word, "licence": "CC0"}, files))
    monkeypatch.setattr(pack, "sources", lambda name: [(w, dict(c), f) for w, c, f in found])
    monkeypatch.setattr(
        pack, "PACKS", {name: tmp_path / f"{name}.npz" for name in ("small", "wide")}
    )
    monkeypatch.setattr(collect, "WORK", tmp_path)
    monkeypatch.setattr(collect, "MERGES", tmp_path / "merges.gz")
    collect.MERGES.write_bytes(gzip.compress(b"#version\nt h\no n</w>"))
    monkeypatch.setattr(pool, "CHUNK", 20)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    held_out = pool.held_out  # a few pictures to look at are enough here
    monkeypatch.setattr(pool, "held_out", lambda preset, count: held_out(preset, min(count, 20)))
    return tmp_path


def test_the_pack_is_the_same_file_each_time_and_holds_the_cut_outs(studio):
    for name, tolerance in (("small", 0), ("wide", 12)):
        pack.build(name)
        first = pack.PACKS[name].read_bytes()
        pack.build(name)
        assert pack.PACKS[name].read_bytes() == first
        things = pack.load(name)
        assert [len(thing.sides) for thing in things] == [9] * 20
        assert [len(thing.held_out) for thing in things] == [1] * 20
        wanted = pack.shrink(studio / "cuts" / "3-4.png", pack.LONGEST[name])
        got = np.asarray(things[3].sides[4])
        assert got.shape == wanted.shape
        solid = wanted[..., 3] == 255
        error = np.abs(got[solid].astype(float) - wanted[solid]).mean()
        assert error <= tolerance, "WebP loses a little, plain pixels nothing"
        assert ((got[..., 3] > 128) == (wanted[..., 3] > 128)).mean() > 0.98
    assert pack.PACKS["wide"].stat().st_size < pack.PACKS["small"].stat().st_size


@hypothesis.given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_a_cut_out_comes_back_in_its_size(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    plain = pack.decode(pixels.ravel(), height, width)
    assert (np.asarray(plain) == pixels).all()
    stored = pack.encode(pixels)
    if stored.size != pixels.size:
        assert pack.decode(stored, height, width).size == (width, height)
        with pytest.raises(ValueError, match="where the table says"):
            pack.decode(stored, height + 1, width)


@pytest.mark.skipif(not pack.PACKS["wide"].exists(), reason="the wide pack is not built here")
def test_the_wide_pack_is_small_enough_to_travel():
    assert pack.PACKS["wide"].stat().st_size <= 20_000_000
    things = pack.load("wide")
    assert len({word for thing in things for word in thing.words}) >= 700
    assert sum(len(thing.held_out) for thing in things) > 300
    names = {thing.name for thing in things}
    assert names.isdisjoint([*world.HELD_OUT_MODELS, *(f"emoji:{e}" for e in world.HELD_OUT_EMOJI)])


# the presets


def test_the_gpu_model_fits_its_folder(capsys):
    preset = presets.GPU
    with torch.device("meta"):
        parts = {
            "vae": presets.vae(preset),
            "text encoder": presets.text_encoder(preset),
            "unet": presets.unet(preset),
            "evaluator": presets.evaluator(preset, 3400),
        }
    sizes = {name: 2 * sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    sizes["tokenizers, card, sheet"] = 1_500_000
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items()))
    assert sum(sizes.values()) <= 32 * 2**20, "data/tiny-sd may hold 32 MiB"
    assert (preset.size, preset.latent_size, len(preset.vae_channels)) == (128, 16, 4)
    assert sizes["unet"] <= carry.PIECE * 1.1


def test_the_guessed_minutes_leave_room_for_the_rest():
    assert {name for name, _ in presets.GPU.minutes} == set(make.TRAININGS)
    assert sum(minutes for _, minutes in presets.GPU.minutes) <= 20, (
        "of 25: composing, plan, export"
    )


@pytest.mark.parametrize(
    "minutes, pace, guess, steps",
    [(1, 0.01, 6000, 6000), (2, 0.01, 6000, 12000), (1, 1e-6, 100, 300), (1, 60, 100, 20)],
)
def test_a_plan_fills_its_minutes_within_bounds(minutes, pace, guess, steps):
    assert plan.steps_for(minutes, pace, guess) == steps


def test_a_plan_is_read_and_the_presets_stay(monkeypatch, tmp_path):
    monkeypatch.setattr(collect, "WORK", tmp_path)
    assert presets.get("gpu") == presets.GPU
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "plan.json").write_text('{"unet_steps": 12}')
    assert presets.get("gpu") == replace(presets.GPU, unet_steps=12)


# the trainings


def test_crops_of_tensors_are_crops_of_arrays():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), np.uint8)
    of_array = train_vae.crops(pictures, np.random.default_rng(1))
    of_tensor = train_vae.crops(torch.from_numpy(pictures), np.random.default_rng(1))
    assert of_array.shape == (5, 6, 6, 3)
    assert (of_tensor.numpy() == of_array).all()


def test_noise_on_a_cpu_is_numpys():
    got = training.normal(np.random.default_rng(7), (2, 3))
    assert (got.numpy() == np.random.default_rng(7).standard_normal((2, 3), np.float32)).all()


@pytest.fixture
def stocked(studio):
    """The studio with a pack, a tokenizer and a pool for TINY."""
    pack.build("wide")
    folder = TINY.folder / "pool"
    folder.mkdir(parents=True)
    pool._start("wide", False)
    for number in range(2):
        pool.write_chunk(folder, number, pool.SEED, TINY.size)
    tokenizer.build(TINY)
    return studio


def stop_after(monkeypatch, steps: int) -> None:
    """Let the time be up once `steps` steps are done."""
    descend = training.Run.descend

    def counted(run, *arguments):
        descend(run, *arguments)
        if run.step == steps:
            monkeypatch.setattr(training, "UNTIL", -math.inf)

    monkeypatch.setattr(training.Run, "descend", counted)


def in_order(name: str):
    """The training called `name`; what it needs has run."""
    if name == "unet":
        latents.build(TINY)
    return {
        "vae": train_vae,
        "text": train_text,
        "evaluator": train_evaluator,
        "unet": train_unet,
    }[name].train(TINY)


@pytest.mark.slow
def test_each_training_stopped_and_gone_on_with_ends_in_the_same_bits(stocked, monkeypatch):
    for name in make.TRAININGS:
        path = TINY.folder / f"{name}.pt"
        in_order(name)
        straight = torch.load(path, weights_only=True)
        assert straight["step"] == 6
        assert make.done(name, TINY)
        path.unlink()
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            with pytest.raises(training.OutOfTime, match="stopped at step 2 of 6"):
                in_order(name)
        assert torch.load(path, weights_only=True)["step"] == 2
        assert not make.done(name, TINY)
        in_order(name)
        resumed = torch.load(path, weights_only=True)
        for part in ("module", "average"):
            for key, value in straight[part].items():
                assert torch.equal(resumed[part][key], value), (name, part, key)


@pytest.mark.slow
def test_what_suits_a_gpu_computes_the_same(stocked, monkeypatch):
    """The paths that only a GPU takes, taken on the CPU."""
    for name in ("vae", "text"):
        in_order(name)
    latents.build(TINY)
    pictures, words = pool.Pictures(TINY), train_unet.HiddenStates(TINY)
    chosen, dropped = np.array([3, 39, 0, 3]), np.array([False, False, True, False])
    remembered = words.take(chosen, dropped)
    monkeypatch.setattr(training, "on_gpu", lambda: True)
    monkeypatch.setattr(training, "speed_up", lambda module: None)
    monkeypatch.setattr(train_text, "LENGTH", 76)  # this tokenizer spells
    assert (pool.Pictures(TINY).take(chosen).numpy() == pictures.take(chosen)).all()
    again = train_unet.HiddenStates(TINY)
    whole = train_text.token_ids(TINY, list(again.numbers), 77)
    assert torch.equal(again.ids, whole[: len(again.ids)]), "padded as the tokenizer pads"
    torch.testing.assert_close(
        again.take(chosen, dropped).float(), remembered, atol=5e-3, rtol=5e-3
    )
    first, second = (training.normal(np.random.default_rng(1), (9,)) for _ in range(2))
    assert torch.equal(first, second), "noise depends on the step's seed alone"
    (TINY.folder / "vae.pt").unlink()
    for name in ("vae", "evaluator", "unet"):
        assert in_order(name).step == 6


def test_what_is_carried_goes_on_from_its_step(stocked, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(training.OutOfTime):
            train_vae.train(TINY)
    before = torch.load(TINY.folder / "vae.pt", weights_only=True)
    monkeypatch.setattr(carry, "PIECE", 5000)
    files = carry.split(carry.pack_up(TINY), tmp_path / "mail")
    assert len(files) > 10, "ten pieces and more: their order is of numbers, not of letters"
    assert max(file.stat().st_size for file in files) <= 5000
    (TINY.folder / "vae.pt").unlink()
    carry.put(TINY, tmp_path / "mail")
    after = training.load_average(TINY.folder / "vae.pt")
    for key, value in before["average"].items():
        assert torch.equal(after[key], value.half().float())
    run = train_vae.train(TINY)
    assert run.step == 6
    with pytest.raises(SystemExit, match="name the folder"):
        carry.put(TINY, tmp_path / "nothing")


def test_a_loss_that_is_not_a_number_is_never_saved(stocked):
    module = torch.nn.Linear(2, 1)
    run = training.Run(module, TINY.folder / "broken.pt", rate=1.0)
    broken = lambda step: module.weight.sum() * math.nan  # noqa: E731
    with pytest.raises(FloatingPointError, match="before step 1"):
        training.loop(run, 1, broken, lambda step: 1.0, keep=0.9)
    assert not (TINY.folder / "broken.pt").exists()


@pytest.mark.slow
def test_a_second_edition_goes_on_from_the_first(stocked, monkeypatch):
    """Tokens keep their rows, whatever their numbers; the VAE is taken over; Muon stops and goes on like AdamW."""
    first = replace(TINY, name="first")
    monkeypatch.setitem(presets.PRESETS, "first", first)
    for part in ("pool", "tokenizer", "tokenizer-plain", "evaluator-tokenizer"):
        shutil.copytree(TINY.folder / part, first.folder / part)
    train_vae.train(first)
    train_text.train(first)
    latents.build(first)
    train_unet.train(first)
    second = replace(TINY, begins="first", calm=True, unet_muon=True, unet_shapes=0.5)
    make.stage("vae", second, 1)
    assert make.done("vae", second)
    weights = training.load_average(first.folder / "text.pt")
    swapped = {"t": 1, "h": 0, **{str(n): n for n in range(2, 514)}, "new": 514, "end": 515}
    vocabulary = {"h": 1, "t": 0, **{str(n): n for n in range(2, 514)}, "old": 514, "end": 515}
    books = {"tiny": swapped, "first": vocabulary}
    with monkeypatch.context() as patch:
        book = lambda preset: SimpleNamespace(get_vocab=lambda: books[preset.name])  # noqa: E731
        patch.setattr(tokenizer, "load", book)
        torch.manual_seed(0)
        pair = train_text.Pair(second)
        begun = train_text.begin_with(second, first, pair)
    key = next(name for name in weights if name.endswith("token_embedding.weight"))
    before, after = weights[key], begun[key]
    assert torch.equal(after[1], before[0]) and torch.equal(after[0], before[1])
    assert torch.equal(after[515], before[515]) and torch.equal(after[2:514], before[2:514])
    assert torch.equal(after[514], pair.state_dict()[key][514]), "a new word begins as drawn"
    train_text.train(second)
    latents.build(second)
    straight = train_unet.train(second).module.state_dict()
    start = training.load_average(first.folder / "unet.pt")
    assert max((straight[k] - start[k]).abs().max() for k in start) < 0.1, "it began there"
    (second.folder / "unet.pt").unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(training.OutOfTime):
            train_unet.train(second)
    resumed = train_unet.train(second).module.state_dict()
    assert all(torch.equal(resumed[k], straight[k]) for k in straight)


def test_what_a_preset_goes_on_from_is_made_first():
    whole = make.in_order("wide", make.STAGES)
    assert whole[0] == ("cpu", "collect") and whole[-1] == ("wide", "pictures")
    assert whole.index(("cpu", "unet")) + 1 == whole.index(("wide", "collect"))
    assert ("cpu", "export") not in whole
    for alone in ("collect", "unet"):
        assert make.in_order("wide", [alone]) == [("wide", alone)]
    assert make.in_order("gpu", make.STAGES) == [("gpu", stage) for stage in make.STAGES]


def test_timesteps_dwell_on_shapes():
    rng = np.random.default_rng(0)
    evenly = train_unet.draw_times(rng, 20_000, 0.0)
    dwelling = train_unet.draw_times(rng, 20_000, 0.4)
    low, high = train_unet.SHAPES
    inside = lambda times: ((times >= low) & (times < high)).mean()  # noqa: E731
    assert inside(evenly) == pytest.approx(0.5, abs=0.02)
    assert inside(dwelling) == pytest.approx(0.4 + 0.6 * 0.5, abs=0.02)


# the judge


def test_questions_are_pairs_that_training_never_shows(monkeypatch):
    stage = small_stage(held_out=True)
    monkeypatch.setattr(compose.World, "load", lambda *_: stage)
    monkeypatch.setattr(judge, "COUNT", 40)
    monkeypatch.setattr(judge, "NOUNS", 10)
    questions = judge.Questions.of(TINY)
    assert sorted(questions.nouns) == sorted(noun.word for noun in stage.words)
    for noun, place in zip(questions.nouns, questions.places, strict=True):
        assert judge.PLACES[place] == compose.place_never_seen(noun)
    answers = questions.right(np.arange(40), questions.places)
    assert answers.all() and answers.shape == (40, 2)
    assert judge.group(9) == slice(0, 10) and judge.group(10) == slice(10, 20)


def test_a_witness_finds_the_nearest(monkeypatch):
    monkeypatch.setattr(judge, "COUNT", 4)
    monkeypatch.setattr(judge, "NOUNS", 2)
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 256, (4, 3, 32, 32, 3)).astype(np.uint8)
    questions = judge.Questions(list("abcd"), np.array([2, 0, 1, 1]))
    asked = gallery[np.arange(4), [2, 0, 1, 0]]  # the last shows another place
    asked[1] = gallery[0, 0]  # and the second another noun
    for look in (judge.pixels, judge.colours):
        right = judge.by_distance(look(asked), look(gallery), questions)
        assert right.tolist() == [[True, True], [False, True], [True, True], [True, False]], look
    assert judge.pixels(gallery).shape == (4, 3, 768)
    histogram = judge.colours(gallery)
    np.testing.assert_allclose((histogram**2).sum(-1), 1, rtol=1e-6)
    red = np.full((1, 32, 32, 3), (255, 0, 0), np.uint8)
    assert judge.colours(red)[0].argmax() == 7 * 64
