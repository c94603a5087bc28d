"""Files written: whole, with the user's own permissions, and through no link."""

from __future__ import annotations

import os

import embedding_samples as made

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
