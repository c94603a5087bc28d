"""The tables of `benchmarks.early_stopping` and `benchmarks.ablation`, without training anything."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from benchmarks import ablation, diffusers_script, early_stopping
from tiutils.figures import output


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(early_stopping, "TABLE", tmp_path / "table.csv")
    return tmp_path / "table.csv"


def line(program, seed, steps, similarity):
    return {
        "concept": "wood-toy", "program": program, "seed": seed, "steps": steps,
        "kept_step": steps - 10, "seconds": "", "image_similarity": similarity,
    }  # fmt: skip


def test_lines_are_added_in_order_and_averaged_over_seeds(table):
    for row in (
        line("tiutils", 1, 200, 0.6), line("diffusers", 0, 3000, 0.5),
        line("tiutils", 0, 180, 0.5), line("diffusers", 0, 1250, 0.9),
    ):  # fmt: skip
        early_stopping.add_row(row)
    rows = early_stopping.read_table()
    assert [(r["program"], r["steps"]) for r in rows] == [
        ("diffusers", "1250"), ("diffusers", "3000"), ("tiutils", "180"), ("tiutils", "200"),
    ]  # fmt: skip
    assert [r["steps"] for r in early_stopping.rows_of("wood-toy", 0)] == [180]
    assert not early_stopping.rows_of("wood-toy", 2)
    page = early_stopping.as_markdown(rows).splitlines()
    assert page[0] == "| concept | program | runs | steps | similarity to photos ↑ |"
    assert page[2:] == [
        "| wood-toy | tiutils | 2 | 180–200 | 0.5500 |",
        "| wood-toy | diffusers | 1 | 3000 | 0.5000 |",
    ]


def test_the_newest_word_of_their_script(tmp_path, monkeypatch):
    monkeypatch.setattr(early_stopping, "RUNS", tmp_path)
    assert early_stopping.words_of_theirs("wood-toy") == []
    run = tmp_path / "diffusers-wood-toy" / "run"
    run.mkdir(parents=True)
    for steps in (250, 1000, 750):
        (run / f"learned_embeds-steps-{steps}.safetensors").touch()
    assert [row["steps"] for row in early_stopping.words_of_theirs("wood-toy")] == [1000]
    (run / "learned_embeds.safetensors").touch()
    assert [row["steps"] for row in early_stopping.words_of_theirs("wood-toy")] == [3000]


def lines_of(variant, *values, **others):
    return [
        {"concept": c, "variant": variant, "steps": "100", "evaluation_loss": str(v), **others}
        for c, v in zip(ablation.CONCEPTS, values, strict=True)
    ]


def test_the_ablation_by_hand():
    usual = {"image_similarity": "0.5", "prompt_following": "0.4"}
    better = {"image_similarity": "0.6", "prompt_following": "0.41"}
    table = lines_of("as it is", 0.1, 0.1, 0.1, **usual)
    table += lines_of("norm control", 0.099, 0.09, 0.099, **better)
    table += lines_of("min-SNR", 0.09, 0.11, 0.09, **better)
    table += lines_of("noisy timesteps", 0.09, 0.09, 0.09, image_similarity="0.6")
    page = ablation.as_markdown(table)
    assert "| norm control | +4.0 % (3 of 3) | +20.0 % (3 of 3) | +2.5 % (3 of 3) | yes |" in page
    assert "| min-SNR | +3.3 % (2 of 3) | +20.0 % (3 of 3) | +2.5 % (3 of 3) | no |" in page
    assert "| noisy timesteps | +10.0 % (3 of 3) | +20.0 % (3 of 3) |  |  |" in page
    assert "| phrase |  |  |  |  |" in page, "not measured yet"


def test_the_figure_names_the_best_rate():
    table = []
    for rate in ablation.RATES:
        table += lines_of(f"{rate:g}", rate, 1 - rate, rate, image_similarity=str(1 - rate))
    alt = output.alt_text(ablation.learning_rates(table))
    assert "wood-toy: 5e-05, rocking-horse: 0.5, teddy-bear: 5e-05" in alt
    assert "similarity to photos is highest with 5e-05" in alt


def test_a_table_grows_run_by_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "TABLE", tmp_path / "table.csv")
    first, second = lines_of("as it is", 1, 2, 3), lines_of("phrase", 1, 2, 3)
    ablation.add_rows(first)
    ablation.add_rows(second)
    grown = ablation.read_table()
    assert [{k: v for k, v in row.items() if v} for row in grown] == first + second


def test_their_script_finds_a_mirror(tmp_path, monkeypatch):
    script = tmp_path / diffusers_script.FOLDER / "textual_inversion.py"
    script.parent.mkdir(parents=True)
    script.write_text("import sys\nfrom torchvision import transforms\nsys.found = transforms\n")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--flag"])
    diffusers_script.main()
    found: SimpleNamespace = sys.found
    del sys.found
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    assert found.RandomHorizontalFlip(1.0)(image).getpixel((1, 0)) == (255, 0, 0)
    assert found.RandomHorizontalFlip(0.0)(image).getpixel((0, 0)) == (255, 0, 0)


def test_the_pages_have_the_markers():
    for page, name in (
        ("benchmarks/README.md", "early_stopping"),
        ("docs/better_rows.md", "ablation"),
    ):
        text = (early_stopping.ROOT / page).read_text()
        for marker in ("begin", "end"):
            assert text.count(f"<!-- {name}:{marker} -->") == 1
