"""A word for other programs: file, name and prompt, from one table, which docs/engines.md shows."""

from __future__ import annotations

import re
import string
import tempfile
from pathlib import Path

import embedding_samples as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from tiutils.cli.main import main
from tiutils.errors import InputError
from tiutils.io import engines
from tiutils.io.embeddings import LearnedEmbedding, read, write
from tiutils.io.engines import ENGINES

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


@pytest.fixture
def word(tmp_path):
    learned = LearnedEmbedding("<wood-toy>", made.vectors(4, 768), {"steps": "300"})
    return write(tmp_path / "learned_embeds.safetensors", learned)


EXPECTED = {
    "diffusers": ("wood-toy.safetensors", "<wood-toy>", "<wood-toy>"),
    "comfyui": ("wood-toy.safetensors", "emb_params", "embedding:wood-toy"),
    "a1111": ("wood-toy.safetensors", "emb_params", "wood-toy"),
    "invokeai": ("wood-toy.safetensors", "emb_params", "<wood-toy>"),
    "sd.cpp": ("<wood-toy>.safetensors", "emb_params", "<wood-toy>"),
}


@pytest.mark.parametrize("name", ENGINES)
def test_each_program_gets_its_form_its_name_and_its_prompt(word, tmp_path, capsys, name):
    file, key, prompt = EXPECTED[name]
    folder = tmp_path / "there"
    assert main(["convert", str(word), "--for", name, "--output_dir", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == str(folder / file) and printed.err == ""
    assert printed.out.splitlines()[-1] == f"in the prompt write: {prompt}"
    content = load_file(folder / file)
    assert [*content] == [key] and content[key].dtype == np.float32
    found = read(folder / file)
    assert found.token == "<wood-toy>" and found.metadata["steps"] == "300"
    np.testing.assert_array_equal(found.vectors, made.vectors(4, 768))
    assert main(["convert", str(word), "--for", name, "--output_dir", str(folder)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_the_file_goes_here_unless_told(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(word), "--for", "comfyui", "--token", "<new>"]) == 0
    assert read("new.safetensors").token == "<new>"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--for", "photoshop"], "expected one of diffusers, comfyui"),
        (["x.safetensors", "--for", "comfyui"], "give a folder"),
        ([], "OUT is missing"),
    ],
)
def test_what_cannot_be_meant_is_one_line(word, tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(word), *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [word.name]


def test_a_name_inside_of_common_words_is_warned_of_where_it_is_found_there(tmp_path, capsys):
    word = write(tmp_path / "x.safetensors", LearnedEmbedding("cat", made.vectors(1, 768)))
    for name in ENGINES:
        assert (
            main(["convert", str(word), "--for", name, "--output_dir", str(tmp_path / name)]) == 0
        )
        said = capsys.readouterr().err
        assert ("'cathedral'" in said) == (name in ("diffusers", "sd.cpp")), (name, said)
    for harmless in ("<cat>", "cat-7", "my_cat", "quizzical"):
        assert engines.warning(ENGINES["sd.cpp"], harmless) is None
    assert "inside other words" in engines.warning(ENGINES["sd.cpp"], "Xq")


def test_a_pair_is_written_as_the_programs_read_it(tmp_path):
    halves = {"clip_l": made.vectors(2, 768), "clip_g": made.vectors(2, 1280)}
    (tmp_path / "xl-toy.safetensors").write_bytes(save(halves))
    pair = read(tmp_path / "xl-toy.safetensors")
    for name in ("comfyui", "a1111", "invokeai"):
        path = engines.write(tmp_path / name, pair, ENGINES[name])
        assert load_file(path).keys() == halves.keys() and read(path).token == "xl-toy"
    with pytest.raises(InputError, match="several text encoders"):
        engines.write(tmp_path / "sd.cpp", pair, ENGINES["sd.cpp"])


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(
    lambda word: word.strip() and word != "__metadata__"
)
words |= st.sampled_from(
    ['"quoted"', '"half', "con", "<nul>", "../up", "/", "<>", "a b, c.", "é", "COM1.x"]
)


@settings(max_examples=150, deadline=None)
@given(words, st.sampled_from(sorted(ENGINES)))
def test_any_word_has_a_file_of_its_own_folder_and_comes_back(token, name):
    engine = ENGINES[name]
    stem = engine.file_stem(token).strip("<>")
    assert stem and not set(stem) & set(string.whitespace + '/\\:*?"|,()[]') and stem[0] not in ".-"
    assert len(engine.file_name(token).encode()) < 255
    with tempfile.TemporaryDirectory() as folder:
        path = engines.write(folder, LearnedEmbedding(token, made.vectors()), engine)
        assert path.parent == Path(folder) and read(path).token == token
    assert engines.table(token).count("\n") == len(ENGINES) + 1


def test_the_name_in_the_metadata_is_no_json_by_accident(tmp_path):
    for token in ('"half', '"whole"', '{"a": 1}'):
        path = write(tmp_path / "x", LearnedEmbedding(token, made.vectors()), form="emb_params")
        assert read(path).token == token


def test_stock_diffusers_reads_it_when_told_the_word(small_model, tmp_path):
    from diffusers import StableDiffusionPipeline

    learned = LearnedEmbedding("<toy>", made.vectors(2, 32))
    path = write(tmp_path / "x.safetensors", learned, form="emb_params")
    pipeline = StableDiffusionPipeline.from_pretrained(small_model, safety_checker=None)
    pipeline.load_textual_inversion(path, token="<toy>")
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    np.testing.assert_array_equal(table[ids].detach().numpy(), made.vectors(2, 32))


def between(text, name):
    return re.search(rf"<!-- {name}:begin -->\n(.*?)\n<!-- {name}:end -->", text, re.S)[1]


def test_the_page_shows_the_table_that_the_code_uses():
    page = PAGE.read_text(encoding="utf-8")
    assert between(page, "table") == engines.table("<wood-toy>")
    assert between(page, "beware") == engines.pitfalls()
