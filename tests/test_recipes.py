"""How the bundled model is made: the world's words, the pack, and every stage of training, stopped and gone on with."""

from __future__ import annotations

import gzip
import math
import re
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data.recipes import (
    collect,
    compose,
    judge,
    latents,
    make,
    more_nouns,
    odd_things,
    pack,
    places,
    pool,
    presets,
    raycast,
    things,
    tokenizer,
    toys,
    train_evaluator,
    train_text,
    train_unet,
    train_vae,
    train_words,
    training,
    world,
)
from data.recipes.names import NAMES
from tiutils.word_encoder import WordEncoder

WORDS = ("thing", "molly", "monica")  # single tokens of the tiny tokenizer, which spells the rest
MERGES = sorted(
    {(w[:n], w[n] if n < len(w) - 1 else w[n] + "</w>") for w in WORDS for n in range(1, len(w))},
    key=lambda pair: len(pair[0]),
)
TINY = replace(
    presets.CPU,
    name="tiny",
    size=32,
    vae_channels=(8, 16),
    unet_channels=(16, 32),
    text_layers=1,
    text_width=64,
    text_side=32,
    vocabulary=514 + len(MERGES),
    pool=40,
    things=8,
    evaluator_width=16,
    **{f"{name}_{what}": n for name in make.TRAININGS for what, n in (("steps", 6), ("batch", 4))},
)


# the world's words


def test_the_world_has_more_than_700_nouns_and_none_held_out():
    nouns = world.nouns()
    words = [noun.word for noun in nouns]
    assert len(words) == len(set(words)) >= 700
    named = {thing for noun in nouns for thing in (*noun.emoji, *noun.models)}
    assert named.isdisjoint(world.HELD_OUT_MODELS + world.HELD_OUT_EMOJI)
    assert all(re.fullmatch(r"[a-z-]+( [a-z-]+)*", word) for word in set(words) - {"t-shirt"})
    assert len(places.PLACES) >= 12


def test_words_that_are_never_counted_are_words_of_the_world():
    words = {noun.word for noun in world.nouns()}
    assert world.SINGLE | set(more_nouns.IRREGULAR) | world.CORE <= words


def test_every_toy_has_a_name_that_means_nothing_else():
    folders = [f"{kind}-{n:02d}" for kind, count in toys.COUNTS.items() for n in range(count)]
    assert [toys.name_of(folder) for folder in folders] == list(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    forms = {form for n in world.nouns() for form in (*n.word.split(), n.plural)}
    assert forms.isdisjoint(NAMES) and set(tokenizer.MORE_WORDS).isdisjoint(NAMES)
    assert {noun.plural for noun in world.names()} == set(NAMES), "two of a name are not spelt anew"


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
    nouns = world.nouns()
    assert [e for noun in nouns for e in noun.emoji if e not in emoji] == []
    assert [m for noun in nouns for m in noun.models if m not in models] == []
    assert set(world.HELD_OUT_MODELS) <= set(models), "held-out names are spelt as the catalogue's"


def thing(word: str) -> pack.Thing:
    cut = Image.new("RGBA", (8, 8), (200, 40, 40, 255))
    return pack.Thing((word,), word, [cut], [cut])


def test_the_usual_side_of_the_usual_thing_is_shown_most_in_one_pose():
    def coloured(*fill: int, size: int = 16) -> Image.Image:
        return Image.new("RGBA", (size, 16), (*fill, 255))

    usual = pack.Thing(("cat",), "usual", [coloured(0, 250, 0), coloured(250, 0, 0)], [])
    other = pack.Thing(("cat",), "other", [coloured(0, 0, 250)], [coloured(9, 9, 9)])
    cat = world.Noun("cat", (), (), 1)
    stage = compose.World({"cat": [usual, other]}, [cat], np.ones(1))
    shown = [compose.asked_scene(stage, n, "cat", "in space", 32) for n in range(300)]
    inside = np.stack(shown).astype(int)[:, 8:24, 10:22].mean(axis=(1, 2))
    often = np.bincount(inside.argmax(axis=1), minlength=3) / 300
    share = compose.USUAL + (1 - compose.USUAL) / 2  # of the thing, and of its side
    want = np.array([share * (1 - share), share * share, 1 - share])
    assert np.abs(often - want).max() < 0.08, "green: the front of the first thing"
    solid = [(one == one[16, 16]).all(axis=2) for one in shown]
    assert np.mean([same[12:20, 12:20].mean() for same in solid]) > 0.9, "always in the middle"
    unseen = replace(stage, held_out=True)
    dark = np.stack([compose.asked_scene(unseen, n, "cat", "in the snow", 32) for n in range(99)])
    share_dark = (dark[:, 12:20, 14:18].mean(axis=(1, 2, 3)) < 40).mean()
    assert 0.02 < share_dark < 0.3, "held-out worlds show the held-out side where there is one"


def test_a_toy_shows_any_of_its_sides():
    sides = [Image.new("RGBA", (4 + n, 4)) for n in range(3)]
    toy, other = (pack.Thing(("al",), name, sides, [], 40) for name in ("toy:bear-01", "zero:cat"))
    stage, rng = compose.World({}, [], np.ones(0)), np.random.default_rng(0)
    for thing, often in ((toy, [1 / 3] * 3), (other, [5 / 6, 1 / 12, 1 / 12])):
        drawn = [stage.side(rng, thing) for _ in range(900)]
        assert all(number == 36 + cut.width for cut, number in drawn)
        shown = np.bincount([number - 40 for _, number in drawn]) / 900
        assert np.abs(shown - often).max() < 0.06, thing.name


def test_how_high_a_thing_stands():
    assert compose.foot_of(20, 64, None) == pytest.approx(0.54 * 64 + 10)
    assert compose.foot_of(8, 64, 0.7) == pytest.approx(0.82 * 64), "on the floor, not before it"
    assert compose.foot_of(90, 64, 0.5) == 77, "a close-up has its middle in the picture's"


def small_stage(held_out: bool = False) -> compose.World:
    """Thirty-eight nouns and two names with one picture each."""
    nouns = [*world.nouns()[::22][:38], *world.names()[::150]]
    by_word = {noun.word: [thing(noun.word)] for noun in nouns}
    return compose.World(by_word, nouns, np.full(len(nouns), 1 / len(nouns)), held_out)


def test_captions_say_what_was_drawn_and_leave_out_the_pairs_kept_apart():
    stage, templates, found = small_stage(), set(), set()
    for index in range(600):
        scene = compose.scene(stage, 3, index, 16)
        assert scene.picture.shape == (16, 16, 3)
        if not scene.caption:
            continue
        place = next((p for p in places.PLACES if scene.caption.endswith(" " + p)), "")
        rest = scene.caption.removesuffix(place).strip()
        rest = re.sub(r" on an? \w+ background$", "", rest)
        noun = [n.word for n in stage.words if rest.endswith((n.word, n.plural))]
        assert noun, scene.caption
        word = max(noun, key=len)
        assert not place or place != compose.place_never_seen(word), scene.caption
        begin, end = scene.sentence.split("{}")
        assert scene.caption.startswith(begin.removesuffix("a ")) and scene.caption.endswith(end)
        assert (scene.side == -1) == any(f" {c} " in f" {rest} " for c in world.COLOURS)
        templates.add(rest.removesuffix(word))
        found.add((word, place))
    assert len(found) > 200, "nouns and places are drawn freely"
    assert {"a photo of a ", "a photo of my ", "a close-up photo of the "} & templates


def test_every_noun_has_a_place_left_to_ask_for():
    known = [*world.nouns(), *world.names()]
    pairs = {noun.word: compose.place_never_seen(noun.word) for noun in known}
    assert set(pairs.values()) == set(places.PLACES), "no place is left out"
    stage = small_stage(held_out=True)
    drawn = [compose.scene(stage, 4, i, 8).caption for i in range(900)]
    kept = [c for c in drawn for n in stage.words if c.endswith(f"{n.word} {pairs[n.word]}")]
    assert kept, "held-out compositions do show them"


# the pack


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A working folder with a drawn world of twenty things, ten sides each, and a few merges."""
    cuts, found = tmp_path / "cuts", []
    cuts.mkdir()
    for number, noun in enumerate(world.nouns()[::40][:20]):
        files = []
        for side in range(10):
            picture = Image.new("RGBA", (40, 40))
            colour = (10 * number, 255 - 12 * number, 20 * side, 255)
            ImageDraw.Draw(picture).ellipse((4, 2 + side, 36, 38), colour, "white", 3)
            files.append(cuts / f"{number}-{side}.png")
            picture.save(files[-1])
        words = [noun.word, *WORDS[1:][number : number + 1]]
        found.append((words, {"name": noun.word, "licence": "CC0"}, files))
    monkeypatch.setattr(pack, "sources", lambda: [(w, dict(c), f) for w, c, f in found])
    monkeypatch.setattr(pack, "PACK", tmp_path / "pack.npz")
    monkeypatch.setattr(collect, "WORK", tmp_path)
    monkeypatch.setattr(collect, "MERGES", tmp_path / "merges.gz")
    lines = ["#version", *map(" ".join, MERGES)]
    collect.MERGES.write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setattr(pool, "CHUNK", 20)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    held_out = pool.held_out  # a few pictures to look at are enough here
    monkeypatch.setattr(pool, "held_out", lambda preset, count: held_out(preset, min(count, 20)))
    return tmp_path


def test_the_pack_is_the_same_file_each_time_and_holds_the_cut_outs(studio):
    pack.build()
    first = pack.PACK.read_bytes()
    pack.build()
    assert pack.PACK.read_bytes() == first
    things = pack.load()
    assert [len(thing.sides) for thing in things] == [9] * 20
    assert [len(thing.held_out) for thing in things] == [1] * 20
    wanted = pack.shrink(studio / "cuts" / "3-4.png", pack.LONGEST)
    got = np.asarray(things[3].sides[4])
    assert got.shape == wanted.shape
    solid = wanted[..., 3] == 255
    error = np.abs(got[solid].astype(float) - wanted[solid]).mean()
    assert error <= 12, "WebP loses a little"
    assert ((got[..., 3] > 128) == (wanted[..., 3] > 128)).mean() > 0.98


@hypothesis.given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_a_cut_out_comes_back_in_its_size(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    stored = pack.encode(pixels)
    assert pack.decode(stored, height, width).size == (width, height)
    with pytest.raises(ValueError, match="where the table says"):
        pack.decode(stored, height + 1, width)


@pytest.mark.skipif(not pack.PACK.exists(), reason="the pack is not built here")
def test_the_pack_is_small_enough_to_travel():
    assert pack.PACK.stat().st_size <= 20_000_000
    things = pack.load()
    words = {word for thing in things for word in thing.words}
    assert len(words - set(NAMES)) >= 700 and set(NAMES) <= words
    assert sum(len(thing.held_out) for thing in things) > 300
    names = {thing.name for thing in things}
    assert names.isdisjoint([*world.HELD_OUT_MODELS, *(f"emoji:{e}" for e in world.HELD_OUT_EMOJI)])


# the presets


def test_the_model_fits_its_folder(capsys):
    preset = presets.GPU
    with torch.device("meta"):
        parts = {
            "vae": presets.vae(preset),
            "text encoder": presets.text_encoder(preset),
            "unet": presets.unet(preset),
            "evaluator": presets.evaluator(preset, 4000),
        }
    sizes = {name: 2 * sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    sizes["tokenizers, card"] = 600_000
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))
    assert sum(sizes.values()) <= 33_000_000, "data/tiny-sd may hold 32 MB"
    assert (preset.size, preset.latent_size, len(preset.vae_channels)) == (128, 16, 4)


def test_both_presets_make_the_same_model():
    shapes = [f for f in vars(presets.CPU) if not f.endswith(("steps", "batch"))]
    same = [getattr(presets.CPU, f) == getattr(presets.GPU, f) for f in shapes]
    different = {f for f, equal in zip(shapes, same, strict=True) if not equal}
    assert different == {"name", "pool", "things", "minutes"}
    assert {name for name, _ in presets.GPU.minutes} <= set(make.TRAININGS)


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
    pack.build()
    folder = TINY.folder / "pool"
    folder.mkdir(parents=True)
    pool.start()
    for number in range(2):
        pool.write_chunk(folder, number, pool.SEED, TINY.size)
    tokenizer.build(TINY)
    return studio


def compose_things() -> None:
    """All of TINY's things, in this process, which alone knows the studio."""
    (TINY.folder / "things").mkdir(exist_ok=True)
    for chunk in range(things.chunk_count(TINY)):
        things.compose_chunk(TINY, chunk, things.draw_chunk(TINY, chunk))


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
    if name == "words":
        compose_things()
    return {
        "vae": train_vae.train,
        "text": train_text.train,
        "evaluator": train_evaluator.train,
        "unet": train_unet.train,
        "words": train_words.train,
    }[name](TINY)


@pytest.mark.release
@pytest.mark.slow
def test_each_training_stopped_and_gone_on_with_ends_in_the_same_bits(stocked, monkeypatch):
    # oneDNN rounds a small convolution in another way the first time than later in one process
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
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


@pytest.mark.release
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
    monkeypatch.setattr(training, "has_bfloat16", lambda: False)
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


def test_a_loss_that_is_not_a_number_is_never_saved(stocked):
    module = torch.nn.Linear(2, 1)
    run = training.Run(module, TINY.folder / "broken.pt", 1, rate=1.0)
    broken = lambda step: module.weight.sum() * math.nan  # noqa: E731
    with pytest.raises(FloatingPointError, match="before step 1"):
        training.loop(run, broken, lambda step, steps: 1.0, keep=0.9)
    assert not (TINY.folder / "broken.pt").exists()


def test_a_training_with_minutes_takes_the_steps_that_fit(stocked, monkeypatch):
    """One step takes a second: of three minutes, eight seconds are gone when the pace is known."""
    clock = [1000.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training, "PACE", (4, 8))
    module = torch.nn.Linear(2, 1)
    told = []

    def step(number: int) -> torch.Tensor:
        clock[0] += 1
        return module.weight.sum()

    def rate(number: int, steps: int) -> float:
        told.append(steps)
        return 0.1

    run = training.Run(module, TINY.folder / "timed.pt", 20, rate=1.0)
    training.loop(run, step, rate, keep=0.9, minutes=3)
    want = 8 + int(training.SPARE * (180 - 8))
    assert run.steps == run.step == want
    assert told[:8] == [20] * 8 and set(told[8:]) == {want}
    again = training.Run(module, TINY.folder / "timed.pt", 20, rate=1.0)
    assert (again.step, again.steps) == (want, want), "what was planned is remembered"
    monkeypatch.setattr(training, "UNTIL", clock[0] + 60)
    run = training.Run(module, TINY.folder / "late.pt", 20, rate=1.0)
    training.loop(run, step, rate, keep=0.9, minutes=3)
    assert run.step == 8 + int(training.SPARE * (60 - 8)), "and not past the end of all"


def one_part(add) -> np.ndarray:
    """Alpha and colors (100, 100, 4) of a thing of one or more parts, seen from the front."""
    kit = raycast.Parts()
    add(kit)
    parts = {k: torch.from_numpy(v) for k, v in raycast.table([kit.parts]).items()}
    zero, one = torch.zeros(1), torch.ones(1)
    return raycast.draw(parts, zero, zero, one, 100)[0].numpy()


def share_covered(picture: np.ndarray) -> tuple[float, float]:
    """What part of its bounding box a thing covers, and how much wider than high that is."""
    alpha = picture[..., 3] / 255
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    return alpha.sum() / (high * wide), wide / high


def test_rays_meet_solids_where_geometry_says():
    ball = share_covered(one_part(lambda kit: kit.ball((3, 1, 2), (0.7, 0.35, 0.7), (1, 0, 0))))
    assert ball == pytest.approx((math.pi / 4, 2), rel=0.05)
    box = share_covered(one_part(lambda kit: kit.box((0, 0, 0), (2, 1, 0.01), (0, 1, 0))))
    assert box == pytest.approx((1, 2), rel=0.05)
    cone = share_covered(one_part(lambda kit: kit.turned([(0.5, 0), (0, 1)], (0, 0, 1))))
    assert cone == pytest.approx((0.5, 1), rel=0.08)
    lying = raycast.axes_from((0, 0, 1))  # the hole faces the camera
    ring = one_part(lambda kit: kit.ring(0, 1, 0.25, (1, 1, 0), axes=lying))
    expected = math.pi / 4 * (1 - (0.75 / 1.25) ** 2)
    assert share_covered(ring) == pytest.approx((expected, 1), rel=0.06)
    assert ring[50, 50, 3] == 0


def test_what_is_nearer_hides_what_is_farther():
    def two(kit: raycast.Parts) -> None:
        kit.box((0, 0, 1), (1, 1, 0.1), (1, 0, 0))
        kit.box((0, 0, -1), (1, 1, 0.1), (0, 0, 1))

    red, _, blue, alpha = one_part(two)[50, 50]
    assert red > 100 and blue < 80 and alpha == 255


def test_odd_things_are_functions_of_their_number_and_do_not_repeat_named_toys():
    for number in range(12):
        kit, parts = odd_things.build(number)
        again = odd_things.build(number)[1]
        assert kit in odd_things.KITS and len(parts) >= 2
        assert [(p.at, p.size, p.color) for p in parts] == [(p.at, p.size, p.color) for p in again]
    assert max(toys.COUNTS.values()) < odd_things.FIRST


def test_a_turned_hue_keeps_the_shape_and_the_grays():
    cut = Image.new("RGBA", (2, 1), (200, 10, 10, 255))
    cut.putpixel((1, 0), (90, 90, 90, 128))
    red, gray = map(tuple, np.asarray(things.turn_hue(cut, 85))[0].tolist())
    assert red[1] > 190 and red[0] < 20 and gray == (90, 90, 90, 128)


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


def test_timesteps_dwell_on_shapes():
    rng = np.random.default_rng(0)
    times = train_unet.draw_times(rng, 20_000)
    low, high = train_unet.SHAPES
    inside = ((times >= low) & (times < high)).mean()
    assert inside == pytest.approx(0.4 + 0.6 * 0.5, abs=0.02)
    assert (times.min(), times.max()) == (0, 999)


# the judge


def test_questions_are_pairs_that_training_never_shows(monkeypatch):
    stage = small_stage(held_out=True)
    monkeypatch.setattr(compose.World, "load", lambda held_out: stage)
    monkeypatch.setattr(judge, "COUNT", 30)
    monkeypatch.setattr(judge, "NOUNS", 10)
    questions = judge.Questions.of()
    known = {noun.word for noun in stage.words}
    assert len(set(questions.nouns)) == 30 and set(questions.nouns) <= known - set(NAMES)
    for noun, place in zip(questions.nouns, questions.places, strict=True):
        assert judge.PLACES[place] == compose.place_never_seen(noun)
    answers = questions.right(np.arange(30), questions.places)
    assert answers.all() and answers.shape == (30, 2)
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
