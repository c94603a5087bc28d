"""What a reader of a stored notebook relies on. That they run is nbmake's task (`make notebooks`)."""

import ast
import html
import inspect
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pages
import pytest

from benchmarks import claims, witness
from data.recipes.world.places import PLACES
from tiutils.figures import grids
from tiutils.figures.output import DPI

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
store = SimpleNamespace(**runpy.run_path(str(ROOT / "notebooks" / "store.py")))
digest = store.digest
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


def test_what_tests_shorten_is_there():
    code = "\n".join(source for path in NOTEBOOKS for source in pages.sources(path.stem).values())
    assert [long for long in pages.SHORTER if long not in code] == []


def test_valid_and_small(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < 600_000


def test_pictures_in_a_grid_have_160_pixels_or_more(notebook):
    code = "\n".join(cell.source for cell in cells_of(notebook, "code"))
    sides = [float(inches) for inches in re.findall(r"\bcell=([\d.]+)", code)]
    default = inspect.signature(grids.image_grid).parameters["cell"].default
    assert min([*sides, default]) * DPI >= 160


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


def test_every_picture_has_alt_text_and_the_same_as_a_caption(notebook):
    pictures = [output for output in outputs_of(notebook) if "image/png" in output.get("data", {})]
    assert pictures
    for output in pictures:
        alt = output.metadata["image/png"]["alt"]
        assert len(alt) > 20 and output.data["text/plain"] == alt
        said = html.escape(alt)
        page = output.data["text/html"]
        assert f'<img alt="{said}"' in page and f"<em>{said}</em></figcaption>" in page
    for cell in cells_of(notebook, "markdown"):
        assert "![](" not in cell.source


def test_a_reader_of_the_exported_page_misses_no_description(path):
    assert check.undescribed(path) == 0


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


# The first cell: the same in all, folded, and plain about what it cannot do

FIRST = cells_of(nbformat.read(NOTEBOOKS[0], as_version=4), "code")[0]


def test_all_notebooks_have_the_same_first_cell_folded(notebook):
    first = cells_of(notebook, "code")[0]
    assert first.source == FIRST.source
    assert first.metadata["jupyter"] == {"source_hidden": True}  # JupyterLab folds it
    assert first.metadata["cellView"] == "form" and first.source.startswith("# @title ")  # Colab


def run_first_cell(folder, before="", after="", **environment):
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", before + FIRST.source + after],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_first_cell_fetches_the_course_where_the_notebook_is_alone(tmp_path):
    """As on Colab: an empty folder, the address of the repository, and the cell as it stands."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    alone = tmp_path / "content"
    quick = "\nimport tiutils; print(tiutils.__file__)"
    # a second run must not stumble over the first
    for after in (quick, quick.replace("print", "print(COURSE); print")):
        done = run_first_cell(alone, after=after, TIUTILS_REPOSITORY=f"file://{ROOT}")
        assert done.returncode == 0, done.stderr
        assert "device" in done.stdout and "memory" in done.stdout
        expected = str(alone / "course" / "tiutils" / "__init__.py")
        assert done.stdout.splitlines()[-1] == expected


def test_without_an_address_the_first_cell_says_so_and_asks_no_git(tmp_path):
    done = run_first_cell(
        tmp_path / "content", TIUTILS_REPOSITORY="https://github.com/OWNER/course"
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == "This page is alone and has no address: open it inside the course's folder.\n"
    )
    assert not any((tmp_path / "content").iterdir())


def test_in_a_browser_the_first_cell_says_in_one_sentence_that_nothing_runs_there(tmp_path):
    done = run_first_cell(tmp_path, before="import sys; sys.platform = 'emscripten'\n")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "does not run inside a browser" in done.stderr


# papermill: `-p WORD '<cup>'` puts a cell of assignments behind the one tagged `parameters`


def parameters_of(notebook):
    """The place of the tagged cell among the code cells, and its names with their values; or None."""
    code = cells_of(notebook, "code")
    tagged = [i for i, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        return None
    (place,) = tagged
    statements = ast.parse(code[place].source).body
    values = {s.targets[0].id: ast.literal_eval(s.value) for s in statements}  # nothing else in it
    return place, values


def names_in(source, kind):
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, kind)
    }


def test_the_notebooks_that_train_take_parameters():
    given = {path.stem[:2]: parameters_of(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    for number in ("00", "03"):
        assert {"PHOTOS", "WORD", "INITIALIZER", "STEPS"} <= given[number][1].keys()


def test_parameters_are_used_and_never_set_again(notebook):
    if (given := parameters_of(notebook)) is None:
        return
    place, values = given
    code = [cell.source for cell in cells_of(notebook, "code")]
    later = code[place + 1 :]
    for name in values:
        assert any(name in names_in(source, ast.Load) for source in later), f"{name} is not used"
        assert not any(name in names_in(source, ast.Store) for source in code[:place] + later), name


@pytest.mark.parametrize("name", ["00_start_here", "03_training_loop"])
def test_what_papermill_injects_reaches_the_training(tmp_path, name):
    """The cells between the parameters and the training that choose photos and settings, as they stand."""
    code = pages.sources(name)
    photos = ROOT / "data" / "concepts" / "teddy-bear"
    injected = f"PHOTOS, WORD, INITIALIZER, STEPS = {str(photos)!r}, '<cup>', 'cup', 40"
    parts = SimpleNamespace(name="data/tiny-sd", resolution=128, device=SimpleNamespace(type="cpu"))
    known = {
        "parts": parts, "COURSE": ROOT, "Path": Path, "UPLOADS": tmp_path / "none", "BATCH": 4, "small": True,
        "device": parts.device,
    }  # fmt: skip
    wanted = {"00_start_here": ("word", "config"), "03_training_loop": ("parts", "train")}[name]
    exec(code["machine"] + "\nimport torch", known)
    known["models"] = SimpleNamespace(load=lambda **_: parts, best_device=lambda: "cpu")
    for source in (code["parameters"], injected):
        exec(source, known)
    for cell in wanted:
        statements = ast.parse(code[cell]).body
        kept = [s for s in statements if not isinstance(s, ast.With | ast.Expr | ast.If)]
        exec(compile(ast.Module(kept, []), cell, "exec"), known)
    config = known["config"]
    assert len(known["thing"].photos) == len(list(photos.glob("*.jpg")))
    assert (config.train_data_dir, config.placeholder_token) == (str(photos), "<cup>")
    assert (config.initializer_token, config.max_train_steps) == ("cup", 40)


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
    found = check.complaints("a", {**row, "kB": 600, "longest": 26, "CPU s": 451})
    assert len(found) == 5


def test_the_check_is_content_with_what_is_stored(path):
    assert check.complaints(path.name, {**check.weigh(path), "CPU s": 0}) == []


def code(source, number, value=None):
    cell = nbformat.v4.new_code_cell(source, execution_count=number)
    if value is not None:
        data = {"text/plain": repr(value)}
        cell.outputs = [nbformat.v4.new_output("execute_result", data=data, execution_count=number)]
    return cell


def test_claims_are_checked_while_a_notebook_is_stored_and_leave_no_trace():
    table = "# Title\n\n| | model | time | memory |\n|---|---|---|---|\n"
    head = nbformat.v4.new_markdown_cell(f"{table}| a laptop or a classroom, CPU | small | ? | ? |")
    shown = code("drawn = 1", None)
    shown.metadata["shows"] = [{"pictures": "drawn[:2]", "thing": "toy"}, {"pictures": "one"}]
    book = nbformat.v4.new_notebook(cells=[head, shown, code("2", None)])
    sources = [cell.source for cell in store.with_claims(book).cells]
    assert [s.splitlines()[-1] for s in sources[2:4]] == [
        "_claims.check(drawn[:2], **{'thing': 'toy'})",
        "_claims.check(one, **{})",
    ]
    for number, cell in enumerate(book.cells[1:], 1):
        said = "[100.0, 950000000]" if number == 5 else f"said {number}"
        cell.update(code(cell.source, number, said) | {"metadata": cell.metadata, "id": cell.id})
    *claims, costs = store.without_claims(book).values()
    assert claims == ["said 2", "said 3"] and costs == "[100.0, 950000000]"
    assert [cell.source for cell in book.cells[1:]] == ["drawn = 1", "2"]
    assert [cell.execution_count for cell in book.cells[1:]] == [1, 2]
    assert book.cells[2].outputs[0].execution_count == 2
    store.write_costs(book, 100.0, 950_000_000)
    last = "| a laptop or a classroom, CPU | small | 2 minutes of processor time | 0.9 GB |"
    assert book.cells[0].source.endswith(f"\n{last}")


def test_time_and_memory_are_those_of_the_stored_run(notebook):
    (row,) = (
        line for line in notebook.cells[0].source.splitlines() if line.startswith(store.COST_ROW)
    )
    *_, time_said, memory, _ = row.split("|")
    assert re.fullmatch(r"\d+ (seconds|minutes) of processor time", time_said.strip())
    assert re.fullmatch(r"\d\.\d GB", memory.strip())


def test_claims_are_about_things_and_places_that_somebody_knows(notebook):
    for cell in cells_of(notebook, "code"):
        for claim in cell.metadata.get("shows", []):
            assert claim.keys() <= {"pictures", "thing", "place"} and len(claim) > 1
            ast.parse(claim["pictures"], mode="eval")
            assert claim.get("thing", "wood-toy") in witness.taught()
            assert claim.get("place", "in the snow") in PLACES


def test_a_claim_that_does_not_hold(monkeypatch):
    def identity(pictures, thing):
        return {"among_five": sum(picture == thing for picture in pictures) / len(pictures)}

    monkeypatch.setattr(claims, "judges", lambda: SimpleNamespace(identity=identity))
    assert claims.check(["wood-toy", "x"], "wood-toy") == "2 pictures: wood-toy in 0.50"
    with pytest.raises(AssertionError, match=r"of 3 pictures, too few show it: wood-toy in 0\.33"):
        claims.check(["wood-toy", "x", "y"], "wood-toy")
    for wrong in ([], "wood-toy"), (["x"],), (["x"], "a dragon"), (["x"], None, "at home"):
        with pytest.raises(ValueError):
            claims.check(*wrong)
