"""What a run learns from: sentences that hold the whole word, or a refusal before the run."""

from __future__ import annotations

import re

import pytest

from tiutils import concept, dataset
from tiutils import tokenizer as words
from tiutils.errors import InputError
from tiutils.io import pretrained


@pytest.fixture(scope="module")
def plain():
    return pretrained.load_tokenizer(pretrained.BUNDLED_MODEL)


def check(tokenizer, word, num_vectors=1, templates=("a {}",), captions=()):
    dataset.check_templates(word, templates)
    longer, _ = words.with_tokens(tokenizer, words.check_placeholder(tokenizer, word, num_vectors))
    dataset.check_sentences(longer, word, templates, dict(captions))


@pytest.mark.parametrize("learnable_property", ["object", "style"])
def test_all_sentences_hold_a_usual_word(plain, learnable_property):
    for word, num_vectors in (("<toy>", 1), ("<toy>", 16), ("zwqx", 3)):
        check(plain, word, num_vectors, concept.templates(learnable_property))


@pytest.mark.parametrize("word", ["ropp", "hoto", "lose-u", "Ropp", "enderin"])
def test_a_word_inside_the_sentences_own_words_is_refused(plain, word):
    with pytest.raises(InputError, match="torn apart; choose another, such as '<") as caught:
        check(plain, word, 1, concept.templates("object"))
    assert f"'<{word.lower()}>'" in str(caught.value)


@pytest.mark.parametrize(
    ("num_vectors", "fits"), [(73, True), (74, True), (72, False), (74, False)]
)
def test_more_vectors_than_a_sentence_holds_are_refused(plain, num_vectors, fits):
    template = "a {}" if fits else "a cropped photo of the {}"
    if fits:
        check(plain, "<toy>", num_vectors, (template,))
    else:
        with pytest.raises(InputError, match="too many for the training sentence") as caught:
            check(plain, "<toy>", num_vectors, (template,))
        fitting = int(re.search(r"give --num_vectors (\d+) or fewer", str(caught.value))[1])
        check(plain, "<toy>", fitting, (template,))
        with pytest.raises(InputError, match="too many"):
            check(plain, "<toy>", fitting + 1, (template,))


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_a_caption_that_is_cut_before_the_word_ends_is_refused_by_name(plain, num_vectors):
    captions = {"1.txt": "<n>, " + "red, " * 60, "2.txt": "red " * (75 - num_vectors) + "<n>"}
    check(plain, "<n>", num_vectors, captions=captions)
    captions["3.txt"] = "red " * (76 - num_vectors) + "<n>"
    with pytest.raises(InputError, match=r"'3.txt' is cut after 75 tokens, before '<n>' ends"):
        check(plain, "<n>", num_vectors, captions=captions)
