"""The page of a run: whole, self-contained, readable by everybody, and safe whatever a word is called."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tiutils.evaluation import web_page
from tiutils.evaluation.comparison import METRICS, Score

HOSTILE = """<img src=x onerror=alert(1)>"&'</style><script>alert(2)</script>$title ${lead}"""


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((48, 64, 3), 9 * number, np.uint8))


def make_page(word: str = "<toy>", **changes) -> web_page.Page:
    scores = {name: Score(0.5, 0.1, 0.05, 0.15) for name in METRICS}
    values = {
        "facts": "Learned from 2 photos.",
        "photos": [picture(1), picture(2)],
        "pairs": [web_page.Pair(f"a {word} on sand", picture(3), picture(4))],
        "sheets": {200: picture(6), 100: picture(5)},
        "curves": {"The loss": (b"not looked at", "The loss falls.")},
        "scores": (scores, dict.fromkeys(METRICS, 0.4)),
        "reference_folder": "/home/somebody/photos/held_out",
        "flags": {"seed": 3, "train_data_dir": "/home/somebody/photos", "output_dir": "/home/x"},
    }
    return web_page.Page(word, "cat", **(values | changes))


VOID = {"meta", "img", "input", "link", "br"}


class Reader(HTMLParser):
    """Tags that open and are not closed, attributes by tag, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_says_everything():
    found = Reader(web_page.render(make_page()))
    assert not found.open
    assert [tag for tag, _ in found.tags if tag in ("h1", "h2")] == ["h1"] + ["h2"] * 7
    text = " ".join(found.text)
    for said in ("A new word:", "<toy>", "step 100", "+0.1000", "+0.0500 … +0.1500", "--seed",
                 "embedding:toy", "photos/held_out", "The loss falls."):  # fmt: skip
        assert said in text, said
    assert text.index("step 100") < text.index("step 200")


def test_it_needs_no_other_file_and_names_no_folder():
    page = web_page.render(make_page())
    found = Reader(page)
    sources = [a["src"] for a in found.all("img")]
    assert len(sources) == 7 and all(s.startswith("data:image/") for s in sources)
    assert not found.all("link") and all("src" not in a for a in found.all("script"))
    assert [a["href"] for a in found.all("a")] == ["learned_embeds.safetensors"]
    assert "http" not in page and "somebody" not in page and "/home" not in page


def test_whoever_cannot_see_is_told():
    found = Reader(web_page.render(make_page()))
    alts = [a["alt"] for a in found.all("img")]
    assert all(alts) and len(set(alts)) == len(alts)
    assert found.all("html")[0]["lang"] == "en"
    assert all(a.get("scope") in ("col", "row") for a in found.all("th"))


def test_what_is_missing_is_left_out_or_said():
    bare = make_page(sheets={}, curves={}, scores=None, flags={})
    text = " ".join(Reader(web_page.render(bare)).text)
    assert "Not computed" in text and "The loss" not in text and "While it was learned" not in text


def test_equal_runs_make_equal_pages():
    assert web_page.render(make_page()) == web_page.render(make_page())


@pytest.mark.parametrize("name", ["facts", "reference_folder", "embedding"])
def test_no_text_becomes_markup(name):
    assert_harmless(make_page(**{name: HOSTILE}))


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40) | st.just(HOSTILE))
def test_no_word_becomes_markup(word):
    flags = {"validation_prompt": word, "placeholder_token": word}
    assert_harmless(make_page(word, flags=flags))


def assert_harmless(page):
    plain, found = Reader(web_page.render(make_page())), Reader(web_page.render(page))
    assert not found.open
    kinds = {"img": 7, "script": 1, "style": 1}
    for tag, count in kinds.items():
        assert len(found.all(tag)) == len(plain.all(tag)) == count
    assert {name for _, a in found.tags for name in a} == {n for _, a in plain.tags for n in a}
