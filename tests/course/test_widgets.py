"""Uploads from ipywidgets 7 and 8 become files, and only in their folder."""

import base64
import datetime
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tiutils import models
from tiutils.course import explore, widgets


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


def squares(count):
    return [Image.new("RGB", (16, 16), (40 * i, 90, 30)) for i in range(count)]


def test_the_slider_moves_the_seam():
    pytest.importorskip("ipywidgets")
    slider, page = widgets.before_after_slider(*squares(2)).children
    assert "50 %" in page.value
    slider.value = 80
    assert "80 % of the width" in page.value and "<img alt=" in page.value


def test_every_control_of_the_playground_changes_the_picture(small_model, monkeypatch):
    pytest.importorskip("ipywidgets")
    said = []
    monkeypatch.setattr(
        explore.inference,
        "generate",
        lambda models, prompt, **rest: said.append((prompt, *rest.values())) or squares(1),
    )
    parts = models.load(small_model)
    *controls, page = widgets.playground(parts, "a toy").children
    for control, value in zip(controls, ("a <b>", "sand", 7, 3.5), strict=True):
        control.value = value
    assert said[0] == ("a toy", "", 1, parts.guidance_scale)
    assert said[-1] == ("a <b>", "sand", 7, 3.5) and len(said) == 5
    assert "a &lt;b&gt;”, away from “sand”, drawn from seed 7 with guidance 3.5." in page.value
