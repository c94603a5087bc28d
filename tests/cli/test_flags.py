"""Flags: a learned word's new name."""

from __future__ import annotations

from tiutils.cli import flags


def test_a_new_name_is_split_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.pt").touch()
    assert flags.source_and_name("a=b.pt") == ("a=b.pt", None)
    assert flags.source_and_name("a=b.pt=<c>") == ("a=b.pt", "<c>")
    assert flags.source_and_name("owner/name=<c>") == ("owner/name", "<c>")
    assert flags.source_and_name("owner/name") == ("owner/name", None)
