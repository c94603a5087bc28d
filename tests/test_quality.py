"""The benchmark's arithmetic and what it writes, without training anything."""

import pytest
from PIL import Image

from benchmarks import quality
from tiutils.figures import output

KEYS = ("evaluation_loss", "image_similarity", "histogram_distance")


def measured(name, seed, learned, initial):
    """A result whose three scores are all the same number."""
    of_word, of_plain = dict.fromkeys(KEYS, learned), dict.fromkeys(KEYS, initial)
    pictures = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue", "black")]
    return quality.Measured(name, seed, of_word, of_plain, 60.0, pictures, pictures)


RESULTS = [
    measured("wood-toy", 0, 0.5, 0.1),
    measured("wood-toy", 1, 0.6, 0.2),
    measured("wood-toy", 2, 0.7, 0.3),
]


def test_summary_by_hand():
    rows = {row["measure"]: row for row in quality.summarize(RESULTS)}
    row = rows["image_similarity"]
    assert row["learned"] == pytest.approx(0.6) and row["initializer"] == pytest.approx(0.2)
    assert row["advantage"] == pytest.approx(0.4) and row["spread"] == pytest.approx(0.2)
    assert rows["evaluation_loss"]["advantage"] == pytest.approx(-0.4)  # more loss is worse
    assert rows["histogram_distance"]["advantage"] == pytest.approx(-0.4)


def test_table_has_a_row_for_each_concept_and_measure():
    results = [*RESULTS, *(measured("teddy-bear", seed, 0.5, 0.1) for seed in quality.SEEDS)]
    text = quality.as_markdown(quality.summarize(results), results)
    rows = [line for line in text.splitlines() if line.startswith(("| wood", "| teddy"))]
    assert len(rows) == 6
    assert rows[1] == "| wood-toy | similarity to photos ↑ | 0.200 | 0.600 | 0.400 | 0.200 |"
    assert "in 6 minutes" in text


def test_the_picture_shows_every_seed_and_says_so():
    figure = quality.picture(RESULTS)
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 3 * (1 + 2 * len(quality.PROMPTS))
    assert "a row for every seed" in output.alt_text(figure)


def test_only_the_text_between_the_markers_changes(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{quality.BEGIN}\nold\n{quality.END}\nafter\n")
    for _ in range(2):
        quality.write_between_markers(page, "new")
        assert page.read_text() == f"before\n{quality.BEGIN}\nnew\n{quality.END}\nafter\n"


@pytest.mark.parametrize("page", ["", quality.BEGIN, quality.END + quality.BEGIN])
def test_a_page_without_markers_is_left_alone(tmp_path, page):
    path = tmp_path / "README.md"
    path.write_text(page)
    with pytest.raises(SystemExit, match="once each"):
        quality.write_between_markers(path, "new")
    assert path.read_text() == page


def test_the_page_of_results_has_the_markers():
    page = (quality.ROOT / "docs" / "results.md").read_text()
    assert page.count(quality.BEGIN) == page.count(quality.END) == 1
