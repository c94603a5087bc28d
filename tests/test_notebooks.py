"""What a reader of a stored notebook relies on. That they run is nbmake's task (`make notebooks`)."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
digest = runpy.run_path(str(ROOT / "notebooks" / "store.py"))["digest"]
check = SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "check.py")))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def cells_of(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def outputs_of(notebook):
    return [output for cell in cells_of(notebook, "code") for output in cell.outputs]


def test_there_is_a_notebook():
    assert NOTEBOOKS


def test_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < 600_000


def assert_outputs_belong_to_cells(notebook):
    for number, cell in enumerate(cells_of(notebook, "code"), start=1):
        advice = f"cell {cell.id} changed since it was executed: python notebooks/store.py"
        assert cell.metadata.get("made_from") == digest(cell.source), advice
        assert cell.execution_count == number, advice


def test_outputs_belong_to_the_cells_as_they_are(notebook):
    assert_outputs_belong_to_cells(notebook)


def test_one_character_more_in_any_code_cell_is_noticed(notebook):
    for cell in cells_of(notebook, "code"):
        cell.source += " "
        with pytest.raises(AssertionError, match=f"cell {cell.id} changed"):
            assert_outputs_belong_to_cells(notebook)
        cell.source = cell.source[:-1]


def test_nothing_went_wrong_and_nothing_was_complained_about(notebook):
    for output in outputs_of(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


def test_outputs_name_no_place_on_the_machine_that_made_them(path):
    assert not re.search(r"/(home|root|Users|tmp|private|workspace)/", path.read_text())
    assert str(ROOT) not in path.read_text()


def test_every_picture_has_alt_text(notebook):
    pictures = [output for output in outputs_of(notebook) if "image/png" in output.get("data", {})]
    assert pictures
    for output in pictures:
        assert len(output.metadata["image/png"]["alt"]) > 20
        assert output.data["text/plain"] == output.metadata["image/png"]["alt"]
    for cell in cells_of(notebook, "markdown"):
        assert "![](" not in cell.source


def test_widgets_carry_their_state(notebook):
    shown = [
        output.data["application/vnd.jupyter.widget-view+json"]["model_id"]
        for output in outputs_of(notebook)
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    widgets = notebook.metadata.get("widgets", {})
    state = widgets.get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    assert set(shown) <= set(state)  # GitHub shows "Invalid Notebook" otherwise


def test_cells_are_short_and_prose_leads(notebook):
    code, prose = cells_of(notebook, "code"), cells_of(notebook, "markdown")
    assert len(prose) >= len(code)
    for cell in code:
        assert 1 <= len(cell.source.splitlines()) <= 25, cell.id
    assert len([line for line in code[0].source.splitlines() if line.strip()]) <= 10


def test_there_are_predictions_exercises_and_an_end(notebook):
    prose = "\n".join(cell.source for cell in cells_of(notebook, "markdown"))
    assert "**Predict" in prose
    assert len(re.findall(r"^### Exercise", prose, re.MULTILINE)) >= 2
    assert "## Key points" in prose and "## Where to go next" in prose


def test_local_links_lead_somewhere(path, notebook):
    for cell in cells_of(notebook, "markdown"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", cell.source):
            assert "://" in target or (path.parent / target).exists(), target


def test_stubs_are_stored_unsolved(notebook):
    text = "".join(output.get("text", "") for output in outputs_of(notebook))
    assert "not yet" in text and "not quite" not in text


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_first_cell_fetches_the_course_where_the_notebook_is_alone(tmp_path, notebook):
    """As on Colab: an empty folder, the address of the repository, and the cell as it stands."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    first = cells_of(notebook, "code")[0].source
    alone = tmp_path / "content"
    alone.mkdir()
    code = "\nimport tiutils; print(tiutils.__file__)"
    ran = [
        subprocess.run(
            [sys.executable, "-c", first + code],
            cwd=alone,
            env={"PATH": "/usr/bin:/bin", "TIUTILS_REPOSITORY": f"file://{ROOT}"},
            capture_output=True,
            text=True,
        )
        for _ in range(2)  # a second run must not stumble over the first
    ]
    for done in ran:
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(alone / "course" / "tiutils" / "__init__.py")


def test_the_check_notices_a_deterministic_cell_that_prints_something_else():
    def page(text, tags):
        output = nbformat.v4.new_output("stream", text=text)
        cell = nbformat.v4.new_code_cell("print()", id="one", outputs=[output])
        cell.metadata["tags"] = tags
        return nbformat.v4.new_notebook(cells=[cell])

    assert check.differing(page("1\n", ["deterministic"]), page("2\n", [])) == ["one"]
    assert check.differing(page("1\n", ["deterministic"]), page("1\n", [])) == []
    assert check.differing(page("1\n", []), page("2\n", [])) == []


def test_the_check_weighs_what_is_there(tmp_path):
    picture = nbformat.v4.new_output("display_data", data={"image/png": "AA=="})
    code, again = (nbformat.v4.new_code_cell("1\n2", outputs=[picture]) for _ in range(2))
    prose = '![](a.png) ![seen](b.png) <img src="c.png"> <img src="d.png" alt="seen">'
    notebook = nbformat.v4.new_notebook(cells=[code, again, nbformat.v4.new_markdown_cell(prose)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    row = check.weigh(tmp_path / "a.ipynb")
    assert row == {
        "kB": 1, "pictures": 6, "without alt": 4, "code": 2, "prose": 1, "longest": 2, "repeat": 0
    }  # fmt: skip
    found = check.complaints("a", {**row, "kB": 600, "longest": 26, "CPU s": 361})
    assert len(found) == 5


def test_the_check_is_content_with_what_is_stored(path):
    assert check.complaints(path.name, {**check.weigh(path), "CPU s": 0}) == []
