"""Uploads of ipywidgets 7 and 8 become files, and only in the folder they belong in."""

import base64
import datetime
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiutils import widgets


def as_version_7(files):
    return {name: {"metadata": {"name": name}, "content": data} for name, data in files.items()}


def as_version_8(files):
    return tuple({"name": name, "content": memoryview(data)} for name, data in files.items())


@pytest.mark.parametrize("form", [as_version_7, as_version_8])
def test_uploads_are_written_under_their_names(tmp_path, form):
    folder = tmp_path / "photos"
    paths = widgets.save_uploads(form({"a.jpg": b"one", "b.png": b"two"}), folder)
    assert paths == [folder / "a.jpg", folder / "b.png"]
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]


def test_no_uploads_make_no_folder(tmp_path):
    assert widgets.save_uploads({}, tmp_path / "photos") == []
    assert widgets.save_uploads((), tmp_path / "photos") == []
    assert not (tmp_path / "photos").exists()


@settings(max_examples=100, deadline=None)
@given(name=st.text(alphabet=st.sampled_from("ab./\\ \0é"), max_size=12))
def test_no_name_leaves_the_folder(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("upload")
    for path in widgets.save_uploads([{"name": name, "content": b"x"}], folder / "photos"):
        assert path.parent == folder / "photos" and path.is_file()
    assert {path.name for path in folder.iterdir()} <= {"photos"}


def test_the_button_stores_what_is_chosen(tmp_path):
    ipywidgets = pytest.importorskip("ipywidgets")
    button = widgets.photo_upload(tmp_path / "photos")
    entry = {"name": "a.jpg", "type": "image/jpeg", "size": 1, "content": memoryview(b"x")}
    entry["last_modified"] = datetime.datetime.now(datetime.UTC)
    old = ipywidgets.__version__.startswith("7.")
    button.set_trait("value", {"a.jpg": entry} if old else (entry,))
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"x"
    assert ".jpg" in button.accept and button.multiple


def test_the_link_holds_the_file(tmp_path):
    path = tmp_path / 'a "b" <c>.safetensors'
    path.write_bytes(b"\x00\x01learned")
    page = widgets.DownloadLink(path)._repr_html_()
    assert base64.b64decode(re.search(r'base64,([^"]+)"', page)[1]) == b"\x00\x01learned"
    assert 'download="a &quot;b&quot; &lt;c&gt;.safetensors"' in page
