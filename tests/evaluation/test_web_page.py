"""The page of a run: whole, self-contained, readable by everybody, and safe whatever a word is called."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tiutils.evaluation import web_page
from tiutils.evaluation.comparison import METRICS, Score
from tiutils.figures import curves, output

HOSTILE = """<img src=x onerror=alert(1)>"&'</style><script>alert(2)</script>$title ${lead}"""
VOID = {"meta", "img", "input", "link", "br", "wbr"}


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((48, 64, 3), 9 * number, np.uint8))


def make_page(word: str = "<toy>", **changes) -> web_page.Page:
    scores = {name: Score(0.5, 0.1, 0.05, 0.15) for name in METRICS}
    values = {
        "plain_word": "cat",
        "photos": [picture(1), picture(2)],
        "pairs": [web_page.Pair(f"a {word} on sand", picture(3), picture(4))],
        "steps": 300,
        "sheets": {200: (picture(6), "drawn at 200"), 100: (picture(5), "drawn at 100")},
        "scores": (scores, dict.fromkeys(METRICS, 0.4)),
        "reference_folder": "/home/somebody/held_out",
        "flags": {"seed": 3, "train_data_dir": "/home/somebody/photos", "output_dir": "/home/x"},
    }
    return web_page.Page(word, **(values | changes))


def make_comparison(word: str = "<toy>", **changes) -> web_page.ComparisonPage:
    """Two runs that began as the same word, two prompts, two pictures of each."""
    scores = {name: Score(0.5, 0.1, 0.05, 0.15) for name in METRICS}
    runs = [
        web_page.Run(
            f"run-{number}", name, "cat", picture(number), (scores, dict.fromkeys(METRICS, 0.4)),
            "/home/somebody/held_out", {"seed": number, "lr": 0.1, "output_dir": f"/home/x/{number}"},
        )
        for number, name in enumerate((word, "<other>"))
    ]  # fmt: skip
    pictures = {
        name: [picture(4 * row + n) for n in range(4)]
        for row, name in enumerate(("cat", word, "<other>"))
    }
    values = {"runs": runs, "prompts": ["a {} on sand", "a … {}"], "pictures": pictures}
    return web_page.ComparisonPage(**(values | changes))


def loss_chart() -> web_page.Chart:
    return web_page.Chart("Loss", "how to read it", curves.loss_curve([0.5, 0.25]))


class Reader(HTMLParser):
    """Tags that open and are not closed, all tags with their attributes, and the text."""

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


def text_of(page) -> str:
    return "".join(Reader(web_page.render(page)).text)


def test_the_page_is_whole_and_says_everything():
    found = Reader(web_page.render(make_page(charts=[loss_chart()])))
    assert not found.open
    assert [tag for tag, _ in found.tags if tag in ("h1", "h2", "h3")] == ["h1"] + ["h2"] * 7
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    text = "".join(found.text)
    for said in ("A new word: <toy>", "from 2 photos in 300 steps, starting from “cat”", "Step 100", "+0.1000",
                 "+0.0500 to +0.1500", "--seed", "embedding:toy", "photos in held_out", "how to read it"):  # fmt: skip
        assert said in text, said
    assert text.index("Step 100") < text.index("Step 200")


def test_it_needs_no_other_file_and_names_no_folder():
    page = web_page.render(make_page(charts=[loss_chart()]))
    found = Reader(page)
    sources = [a["src"] for a in found.all("img")]
    assert len(sources) == 7 and all(s.startswith("data:image/") for s in sources)
    assert not found.all("link") and all("src" not in a for a in found.all("script"))
    assert [a["href"] for a in found.all("a")] == ["learned_embeds.safetensors"]
    assert "http:" not in page and "https:" not in page
    assert "somebody" not in page and "/home" not in page


def test_whoever_cannot_see_is_told():
    chart = loss_chart()
    found = Reader(web_page.render(make_page(charts=[chart])))
    alts = [a["alt"] for a in found.all("img")]
    assert all(alts) and len(set(alts)) == len(alts)
    assert output.alt_text(chart.figure) in alts and "drawn at 100" in alts
    assert found.all("html")[0]["lang"] == "en"
    assert all(a.get("scope") in ("col", "row") for a in found.all("th"))


def test_what_is_missing_is_left_out_or_said():
    bare = make_page(photos=[], pairs=[], steps=0, sheets={}, scores=None, flags={})
    found = Reader(web_page.render(bare))
    assert len(found.all("h2")) == 2 and not found.all("img")
    assert "Not computed" in "".join(found.text)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, "better"), (-0.2, -0.1, "worse"), (-1, 1, "not clear")]
)
def test_a_verdict_is_clear_where_zero_is_left_out(low, high, verdict):
    scores = {"evaluation_loss": Score(0.5, 0.0, low, high)}
    said = text_of(make_page(scores=(scores, {"evaluation_loss": 0.4})))
    assert f"{low:+.4f} to {high:+.4f}{verdict}\n" in said.replace("−", "-")


def test_equal_runs_make_equal_pages():
    first, second = (web_page.render(make_page(charts=[loss_chart()])) for _ in range(2))
    assert first == second


def test_pictures_shrink_until_the_page_is_small():
    noise = np.random.default_rng(0).integers(256, size=(512, 512, 3), dtype=np.uint8)
    drawn = Image.fromarray(noise)
    page = web_page.render(make_page(pairs=[web_page.Pair("a toy", drawn, drawn)] * 8))
    assert 0.2 * web_page.MAX_BYTES < len(page.encode()) <= web_page.MAX_BYTES


def test_what_a_camera_wrote_stays_with_the_photo():
    photo = picture(1)
    photo.info |= {"comment": b"at home", "xmp": b"at home", "exif": b"Exif\0\0at home"}
    assert web_page.render(make_page(photos=[photo] * 2)) == web_page.render(
        make_page(photos=[picture(1)] * 2)
    )


@pytest.mark.parametrize("name", ["plain_word", "reference_folder", "embedding"])
def test_no_text_becomes_markup(name):
    assert_harmless(make_page(**{name: HOSTILE}))


def test_no_picture_text_becomes_markup():
    assert_harmless(make_page(sheets={100: (picture(5), HOSTILE), 200: (picture(6), HOSTILE)}))


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=40) | st.sampled_from([HOSTILE, "\udc80", "\0\r\n"]))
def test_no_word_becomes_markup(word):
    flags = {"validation_prompt": word, word: [word], "train_data_dir": 3}
    assert_harmless(make_page(word, flags=flags))


def assert_harmless(page):
    text = web_page.render(page)
    plain, found = Reader(web_page.render(make_page())), Reader(text)
    assert not found.open and text.encode()
    for tag in ("img", "script", "style", "a"):
        assert len(found.all(tag)) == len(plain.all(tag)) > 0
    assert {name for _, a in found.tags for name in a} == {n for _, a in plain.tags for n in a}


def write_run(folder, **record):
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_what_a_run_has_recorded(tmp_path):
    scores = {"similarity": [0.5, 0.6], "following": [0.4, 0.3]}
    validation = {"20": scores, "3": scores}
    run = write_run(
        tmp_path, steps=20, losses=[0.5, None], validation=validation, flags={"seed": 1}
    )
    for step in range(1, 21):
        output.save(picture(step % 9), run / f"validation-steps-{step}.png", alt=f"after {step}")
    found = web_page.recorded(run)
    assert found["steps"] == 20 and found["flags"] == {"seed": 1}
    assert [chart.title for chart in found["charts"]] == ["Loss", "Overfitting"]
    assert "at step 3 to" in output.alt_text(found["charts"][1].figure)
    steps = list(found["sheets"])
    assert len(steps) == web_page.MAX_SHEETS and steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 20) and found["sheets"][20][1] == "after 20"


def test_the_histories_of_early_stopping_are_drawn(tmp_path):
    found = {"fixed_losses": {"20": 0.25, "3": 0.5}, "prompt_sensitivity": {"20": 0.444, "3": 1.02}}
    charts = web_page.recorded(write_run(tmp_path, losses=[0.5, 0.4], **found))["charts"]
    assert [chart.title for chart in charts] == ["Loss", "Prompt sensitivity"]
    texts = [output.alt_text(chart.figure) for chart in charts]
    assert "0.5000 at step 3 to 0.2500 at step 20" in texts[0]
    assert "1.02 at step 3 to 0.44 at step 20" in texts[1]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"prompt_sensitivity": {"1": 10**400, "9" * 5000: 1.0, "x": 1.0, "2": None, "٣": 1.0}},
        {"prompt_sensitivity": [1.0], "fixed_losses": {"1": [1.0]}},
        {"steps": "many", "losses": {"1": 2}, "validation": [1], "flags": 3},
        {
            "losses": ["a", None, [], float("nan"), 10**400],
            "validation": {"3": 1, "٣": {}, "x": {}},
        },
        {"validation": {"1": {"similarity": [0.5], "following": ["a"]}, "2": {"similarity": []}}},
    ],
)
def test_what_is_damaged_is_left_out(record, tmp_path):
    run = write_run(tmp_path, **record)
    output.save(picture(1), run / "validation-steps-1.png", alt="whole")
    whole = (run / "validation-steps-1.png").read_bytes()
    (run / "validation-steps-2.png").write_bytes(whole[:60])
    (run / "validation-steps-3.png").write_bytes(b"no picture")
    (run / "validation-steps-4.png").mkdir()
    found = web_page.recorded(run)
    assert found["charts"] == [] and found["flags"] == {} and found["steps"] == 0
    assert list(found["sheets"]) == [1]


# Several runs side by side


def test_a_comparison_has_a_row_of_pictures_for_each_word_and_every_score():
    page = web_page.render_comparison(make_comparison())
    found = Reader(page)
    assert not found.open
    assert [tag for tag, _ in found.tags if tag in ("h1", "h2", "h3")] == ["h1"] + ["h2"] * 3
    alts = [attributes["alt"] for attributes in found.all("img")]
    assert len(alts) == len(set(alts)) == 3 * 4 + 2, "and a photo of each run"
    assert "“a … <toy>”, picture 2 of 2" in alts and "“a cat on sand”, picture 1 of 2" in alts
    assert len(found.all("tr")) == 4 + (1 + 2 * len(METRICS)) + 2
    text = "".join(found.text)
    for said in (
        "2 words",
        "run-0",
        "run-1",
        "the plain word",
        "photos in held_out",
        "a … on sand",
    ):
        assert said in text, said
    assert "--seed" in text and "--lr" not in text, "only the settings that differ"
    assert "/home" not in page and "http:" not in page and "https:" not in page
    assert all(a.get("scope") in ("col", "row", "colgroup") for a in found.all("th"))


def test_a_comparison_without_scores_and_differences():
    runs = [
        web_page.Run(f"run-{number}", word, "cat", picture(number), flags={"seed": 1})
        for number, word in enumerate(("<toy>", "<other>"))
    ]
    found = Reader(web_page.render_comparison(make_comparison(runs=runs)))
    assert len(found.all("h2")) == 2 and "Not computed" in "".join(found.text)


def test_a_hostile_word_is_only_text_in_a_comparison():
    usual, hostile = (
        Reader(web_page.render_comparison(make_comparison(word))) for word in ("<toy>", HOSTILE)
    )
    assert not hostile.open and [t for t, _ in hostile.tags] == [t for t, _ in usual.tags]
    assert HOSTILE in "".join(hostile.text)


def test_a_comparison_of_many_large_pictures_stays_small():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8))
    pictures = {f"word {n}": [noise] * 8 for n in range(8)}
    page = web_page.render_comparison(make_comparison(pictures=pictures))
    assert len(page.encode()) <= web_page.MAX_BYTES


@pytest.mark.parametrize("flags, changed", [
    ({"learning_rate": 5e-3}, []),
    ({"learning_rate": 5e-4, "scale_lr": True}, []),
    ({"learning_rate": 1e-2, "optimizer": "directional"}, ["optimizer"]),
    ({"learning_rate": 1e-2, "seed": 3}, ["learning_rate", "seed"]),
    ({"learning_rate": 5e-3, "scale_lr": True}, ["learning_rate", "scale_lr"]),
    ({"learning_rate": [1], "optimizer": None}, ["learning_rate", "optimizer"]),
])  # fmt: skip
def test_the_learning_rate_of_a_models_width_is_no_change(flags, changed):
    assert sorted(web_page._changed(flags)) == changed
