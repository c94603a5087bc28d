"""The glossary is in order, short, and every link into it arrives."""

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
ENTRIES = re.findall(
    r"^## ([^\n]+)\n\n(.+?)\s*(?=^## |\Z)",
    (ROOT / "docs" / "glossary.md").read_text(),
    re.M | re.S,
)


def anchor(heading):
    """As GitHub makes it: lower case, punctuation gone, a hyphen for each space."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


ANCHORS = {anchor(heading) for heading, _ in ENTRIES}


def test_headings_are_in_order_and_once():
    headings = [heading.lower() for heading, _ in ENTRIES]
    assert headings == sorted(set(headings)) and len(headings) > 40


def test_entries_are_one_paragraph_of_at_most_three_sentences():
    for heading, text in ENTRIES:
        assert "\n" not in text, heading
        assert 1 <= len(re.findall(r"[.;](?: |$)", text)) <= 4, heading


def test_links_within_and_from_the_notebooks_arrive():
    links = re.findall(r"\]\(#([^)]+)\)", "".join(text for _, text in ENTRIES))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            found = re.findall(r"\]\((?:\.\./)?docs/glossary\.md#([^)]+)\)", cell.source)
            assert set(found) <= ANCHORS, (path.name, cell.id)
    assert links and set(links) <= ANCHORS


def test_the_arithmetic_of_the_anchors():
    assert {"8-bit-adam", "u-net", "guidance-scale", "placeholder-token"} <= ANCHORS
