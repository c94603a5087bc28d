"""Files are written completely, with the user's permissions, and never through a link."""

from __future__ import annotations

import errno
import os

import embedding_samples as made
import numpy as np
import pytest

from tiutils.errors import InputError
from tiutils.io import files, tensors
from tiutils.io.embeddings import LearnedEmbedding, write
from tiutils.io.files import replace_file


def test_written_files_have_the_users_own_permissions(tmp_path):
    old = os.umask(0o077)
    try:
        path = write(tmp_path / "x.safetensors", LearnedEmbedding("<toy>", made.vectors()))
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_link_that_waits_in_the_folder_is_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".x.tmp").symlink_to(victim)
    replace_file(tmp_path / "x", b"new")
    (tmp_path / "y").symlink_to(victim)
    replace_file(tmp_path / "y", b"new")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes() == b"new"


def test_a_new_file_replaces_nothing(tmp_path):
    (tmp_path / "000.png").write_bytes(b"mine")
    names = ["000.png", "001.png", "002.png"]
    for number in (1, 2):
        path = files.write_new((tmp_path / name for name in names), b"new")
        assert path.name == names[number] and path.read_bytes() == b"new"
    assert (tmp_path / "000.png").read_bytes() == b"mine"


def test_what_cannot_be_written_is_no_new_file(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "replace_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        files.write_new([tmp_path / "a"], b"new")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    files.check_writable(tmp_path / "a" / "b", "--output_dir")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "b", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="--output_dir"):
            files.check_writable(folder, "--output_dir")


def test_what_a_path_means(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.given("~/x") == tmp_path / "x"
    for path in ("", "  ", "a\0b"):
        with pytest.raises(InputError, match="--output_dir is"):
            files.given(path, "--output_dir")


def test_equal_tensors_are_equal_bytes():
    from safetensors import numpy as library

    arrays = {"b": np.ones((2, 3), np.float32), "a": np.zeros(1, np.int64)}
    facts = {str(number): "größe" for number in range(20)}
    data = tensors.to_bytes(arrays, facts)
    assert data == tensors.to_bytes(arrays, dict(reversed(facts.items())))
    read = library.load(data)
    assert all((read[name] == value).all() for name, value in arrays.items())
    assert int.from_bytes(data[:8], "little") % 8 == 0
