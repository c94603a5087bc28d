"""The tables that a person edits: their form, and what the words in them must be."""

from __future__ import annotations

import re

import pytest
from transformers import CLIPTokenizer

from data.recipes.networks import tokenizer
from data.recipes.world import (
    collect,
    compose,
    gallery,
    held_out,
    lexicon,
    odd_things,
    places,
    subjects,
    tables,
    toys,
)
from tiutils.io.pretrained import BUNDLED_MODEL

RECIPES = subjects.HERE.parent
COLUMNS = {
    "networks/words.tsv": ["word"],
    "world/gallery.tsv": ["picture", "source"],
    "world/nouns.tsv": ["noun", "plural", "weight", "traits", "emoji", "models"],
    "world/photos.tsv": [
        "subject", "use", "azimuth", "elevation", "place", "seed", "fill", "off_center",
    ],
    "world/subjects.tsv": [
        "subject", "folder", "source", "initializer", "exposure", "description",
    ],
    "world/toys.tsv": ["name", "toy"],
}  # fmt: skip
MAY_BE_EMPTY = {"traits", "emoji", "models"}
KEYS = {"world/photos.tsv": ["subject", "seed"]}  # of the others it is the first column
MODEL = re.compile(rf"({'|'.join(collect.LIBRARIES)}):[\w.-]+")
WORD = re.compile(r"[a-z-]+( [a-z-]+)*")


def test_every_table_is_known():
    found = {str(path.relative_to(RECIPES)) for path in RECIPES.glob("*/*.tsv")}
    assert found == set(COLUMNS)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_has_its_columns_no_empty_cell_and_no_duplicate(name):
    text = (RECIPES / name).read_text(encoding="utf-8")
    assert text.split("\n", 1)[0].split("\t") == COLUMNS[name]
    assert text.endswith("\n") and "\r" not in text and "\n\n" not in text
    rows = tables.read(RECIPES / name)
    for row in rows:
        assert all(cell == cell.strip() and "  " not in cell for cell in row.values()), row
        assert {column for column, cell in row.items() if not cell} <= MAY_BE_EMPTY, row
    keys = [tuple(row[column] for column in KEYS.get(name, COLUMNS[name][:1])) for row in rows]
    assert len(set(keys)) == len(keys)


def test_a_row_of_another_length_is_refused_with_its_line(tmp_path):
    (tmp_path / "a.tsv").write_text("one\ttwo\n1\t2\n3\n")
    with pytest.raises(ValueError, match=r"a.tsv, line 3: 1 cells where the header has 2"):
        tables.read(tmp_path / "a.tsv")


def test_nouns_are_words_with_known_traits_and_sources():
    nouns = lexicon.nouns()
    assert len(nouns) >= 700 and set(lexicon.TRAITS) == {t for n in nouns for t in n.traits}
    for noun in nouns:
        assert noun.word == "t-shirt" or all(WORD.fullmatch(form) for form in noun.forms), noun
        assert noun.weight > 0
        assert all(MODEL.fullmatch(model) for model in noun.models), noun
        for listed in (noun.traits, noun.emoji, noun.models):
            assert len(set(listed)) == len(listed), noun
    by_word = {noun.word: noun for noun in nouns}
    assert {by_word[word].plural for word in ("fairy", "shelf", "old man", "bison")} == {
        "fairies", "shelves", "old men", "bison",
    }  # fmt: skip
    pictured = {w for words in toys.WORDS.values() for w in words} | {"statue", "figure"}
    assert {n.word for n in nouns if not (n.emoji or n.models)} <= pictured


def test_nothing_that_the_model_must_not_see_is_shown(monkeypatch):
    shown = {thing for noun in lexicon.nouns() for thing in noun.emoji + noun.models}
    assert shown.isdisjoint(subjects.EXCLUDED_MODELS + subjects.EXCLUDED_EMOJI)
    monkeypatch.setattr(subjects, "EXCLUDED_EMOJI", ("zebra",))
    with pytest.raises(ValueError, match=r"must not see: \['zebra'\]"):
        lexicon.nouns.__wrapped__()


def test_every_toy_has_a_name_that_means_nothing_else():
    names = set(lexicon.toys())
    forms = {form for noun in lexicon.nouns() for form in (*noun.word.split(), noun.plural)}
    assert names.isdisjoint(forms) and names.isdisjoint(tokenizer.MORE_WORDS)
    assert {noun.plural for noun in lexicon.names()} == names, "as prompts say `two <wood-toy>`"
    built = [toy.split("-") for toy in lexicon.toys().values()]
    assert len({tuple(toy) for toy in built}) == len(built) == 300
    assert {kit for kit, _ in built} == set(toys.BUILDERS) == set(toys.WORDS)
    assert max(int(number) for _, number in built) < odd_things.FIRST


def test_words_that_prompts_need_are_single_tokens_of_the_bundled_tokenizer():
    bundled = CLIPTokenizer.from_pretrained(BUNDLED_MODEL / "tokenizer")
    words = [*tokenizer.MORE_WORDS, *lexicon.toys(), *sorted(lexicon.words_with("core"))]
    assert [word for word in words if len(bundled.tokenize(word)) != 1] == []


def test_subjects_have_five_photos_and_two_held_out_each_in_a_place_of_its_own():
    known = {*places.PLACES, *(f"on a {color} background" for color in places.COLORS)}
    assert [len(group) for group in (subjects.CONCEPTS, subjects.HELD_OUT)] == [3, 6]
    for subject in subjects.SUBJECTS:
        photos = (*subject.photos, *subject.held_out)
        assert (len(subject.photos), len(subject.held_out)) == (5, 2)
        assert {photo.place for photo in photos} <= known
        assert len({photo.place for photo in photos}) == 7
        assert subject.source.removeprefix("kit:") in held_out.KITS or MODEL.fullmatch(
            subject.source
        )


def test_the_gallery_shows_things_of_the_world():
    shown = {thing for noun in lexicon.nouns() for thing in noun.models}
    shown |= {f"emoji:{label}" for noun in lexicon.nouns() for label in noun.emoji}
    shown |= {f"toy:{toy}" for toy in lexicon.toys().values()}
    assert set(gallery.THINGS.values()) <= shown and len(gallery.THINGS) == 51


def test_the_composer_follows_the_traits():
    assert {"scissors", "rain"} & compose.SINGLE == {"scissors"}
    assert {"toy", "bear", "cat"} & compose.VARIED == {"toy", "bear"}
    assert {"zebra", "molly", "cat"} & compose.UNPAINTED == {"zebra", "molly"}
