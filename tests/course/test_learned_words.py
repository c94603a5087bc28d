"""A class's words from a folder or a zip: each under its owner's name, and nothing that is no word."""

import os
import zipfile

import numpy as np
import pytest

from tiutils import inference, models
from tiutils.course import learned_words
from tiutils.errors import InputError
from tiutils.io import embeddings


def word(path, value=1.0):
    learned = embeddings.LearnedEmbedding("<my-thing>", np.full((1, 32), value, np.float32))
    return embeddings.write(path, learned)


@pytest.fixture
def handed_in(tmp_path):
    """As teachers get them: flat, in a folder each, with the hidden twins of macOS and a note."""
    folder = tmp_path / "handed in"
    word(folder / "Anna.safetensors", 1)
    word(folder / "ben" / "learned_embeds.safetensors", 2)
    word(folder / "more" / "Anna.safetensors", 3)
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._Anna.safetensors").write_bytes(b"x")
    (folder / "._ben.safetensors").write_bytes(b"x")
    (folder / "note.txt").write_text("thanks")
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_each_word_has_its_owners_name(handed_in, tmp_path, form, small_model):
    source = zipped(handed_in, tmp_path / "class.zip") if form == "zip" else handed_in
    paths = learned_words.gather(source, tmp_path / "class")
    assert {path.name for path in paths} == set(os.listdir(tmp_path / "class"))
    assert {path.name: embeddings.read(path).vectors[0, 0] for path in paths} == {
        "Anna.safetensors": 1, "ben.safetensors": 2, "Anna-2.safetensors": 3
    }  # fmt: skip
    found = inference.load_words(models.load(small_model), tmp_path / "class")
    assert {placeholder.token for placeholder in found.values()} == {
        "<my-thing>",
        "<anna>",
        "<ben>",
    }


@pytest.mark.parametrize(
    "name",
    ["../../evil.pt", "/evil.pt", "..\\..\\evil.pt", "C:\\evil.pt", "a/../../evil.pt", "a/evil.pt"],
)
def test_no_entry_leaves_the_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        archive.writestr(name, b"x")
    (path,) = learned_words.gather(tmp_path / "class.zip", tmp_path / "a" / "class")
    assert path.parent == tmp_path / "a" / "class" and path.read_bytes() == b"x"
    assert {entry.name for entry in tmp_path.iterdir()} == {"class.zip", "a"}
    assert os.listdir(tmp_path / "a") == ["class"]


def test_a_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.pt", bytes(2**28))
    assert (tmp_path / "bomb.zip").stat().st_size < 2**19
    with pytest.raises(InputError, match=r"'bomb\.pt'.* larger than 1 MiB"):
        learned_words.gather(tmp_path / "bomb.zip", tmp_path / "class")
    assert not (tmp_path / "class").exists()


def test_too_many_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(learned_words.MAX_FILES + 1):
            archive.writestr(f"{number}.pt", b"x")
    with pytest.raises(InputError, match="more than 200 words"):
        learned_words.gather(tmp_path / "many.zip", tmp_path / "class")
    assert not (tmp_path / "class").exists()


def damaged(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.pt", os.urandom(4000))
    data = bytearray(path.read_bytes())
    data[600:700] = bytes(100)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "make, said",
    [
        (damaged, "nor a zip that can be read"),
        (lambda path: path.write_bytes(b"PK nothing"), "nor a zip that can be read"),
        (lambda path: None, "nor a zip that can be read"),
        (lambda path: path.mkdir(), "has no file that ends in"),
    ],
)
def test_what_holds_no_words_is_said(tmp_path, make, said):
    make(tmp_path / "class.zip")
    with pytest.raises(InputError, match=said):
        learned_words.gather(tmp_path / "class.zip", tmp_path / "class")


def test_of_the_course_for_the_bundled_model():
    parts = models.load()
    for name in ("wood-toy", "rocking-horse"):
        assert embeddings.read(learned_words.of_course(parts, name)).token == f"<{name}>"
    stages = learned_words.stages(parts, "wood-toy")
    assert list(stages) == sorted(stages) and next(iter(stages)) == 50
