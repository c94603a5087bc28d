"""Publishing: only the word, its card and its pictures; never the token, never the photos."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from small_model import draw_photo

from tiutils import figures, hub
from tiutils.embedding_files import LearnedEmbedding, write
from tiutils.errors import InputError

TOKEN = "hf_thisIsASecret"


class FakeApi:
    """Stands for huggingface_hub.HfApi: remembers what was asked; fails where it is told to."""

    def __init__(self, failing=None):
        self.failing, self.calls, self.uploaded = failing, [], {}

    def __call__(self, token=None):
        self.token = token
        return self

    def _call(self, name, **options):
        self.calls.append((name, options))
        if name == self.failing:
            raise ConnectionError("the Hub is away\nfor a long time")

    def whoami(self):
        self._call("whoami")
        return {"name": "me"}

    def create_repo(self, repo_id, exist_ok):
        self._call("create_repo", repo_id=repo_id, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_file(self, *, repo_id, path_in_repo, path_or_fileobj, **options):
        self._call("upload_file", repo_id=repo_id)
        self.uploaded[path_in_repo] = path_or_fileobj

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **options):
        from huggingface_hub.utils import filter_repo_objects

        self._call("upload_folder", repo_id=repo_id)
        paths = [
            path.relative_to(folder_path).as_posix()
            for path in folder_path.rglob("*")
            if path.is_file()
        ]
        for name in filter_repo_objects(paths, allow_patterns=allow_patterns):
            self.uploaded[name] = (folder_path / name).read_bytes()


@pytest.fixture
def api(monkeypatch):
    fake = FakeApi()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    return fake


@pytest.fixture
def run(tmp_path):
    """What a finished run, and its user, leave in a folder."""
    folder = tmp_path / "wood toy"
    write(folder / "learned_embeds.safetensors", LearnedEmbedding("<toy>", np.ones((2, 8))))
    record = {"model": "owner/model", "steps": 500, "flags": {"initializer_token": "toy"}}
    (folder / "run.json").write_text(json.dumps(record))
    for step in (100, 200):
        figures.save(draw_photo(step), folder / f"validation-steps-{step}.png", alt="a toy")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "state.safetensors").write_bytes(b"state")
    (folder / "learned_embeds-steps-100.safetensors").write_bytes(b"on the way")
    (folder / "holiday.png").write_bytes(b"private")
    (folder / "photos").mkdir()
    (folder / "photos" / "face.png").write_bytes(b"private")
    (folder / "README.md").write_text("my own notes")
    return folder


def test_access_is_asked_for_by_name(api):
    assert hub.check_access(TOKEN) == "me"
    assert api.token == TOKEN and api.calls == [("whoami", {})]


@pytest.mark.parametrize("name", ["me/toy", "toy", None])
def test_names_a_repository_can_have(api, name):
    assert hub.check_access(TOKEN, name) == "me"


@pytest.mark.parametrize("name", ["wood toy", "a/b/c", "a//b", "-toy", "größe"])
def test_a_name_no_repository_can_have_is_told_before_training(api, name):
    with pytest.raises(InputError, match="--hub_model_id") as caught:
        hub.check_access(TOKEN, name)
    assert repr(name) in str(caught.value) and "\n" not in str(caught.value)
    assert not api.calls


def test_a_hub_that_does_not_accept_us(api):
    api.failing = "whoami"
    with pytest.raises(InputError) as caught:
        hub.check_access(TOKEN)
    message = str(caught.value)
    assert "the Hub is away" in message and "hf auth login" in message
    assert "\n" not in message and TOKEN not in message


def test_offline_is_told_as_such():
    with pytest.raises(InputError, match="hf auth login"):
        hub.check_access(TOKEN)


def test_what_is_published(api, run):
    assert hub.push(run, "me/toy", token=TOKEN) == "https://huggingface.co/me/toy"
    assert set(api.uploaded) == {
        "README.md", "learned_embeds.safetensors",
        "validation-steps-100.png", "validation-steps-200.png",
    }  # fmt: skip
    assert api.token == TOKEN
    assert all(TOKEN.encode() not in content for content in api.uploaded.values())
    assert (run / "README.md").read_text() == "my own notes", "the user's file is left alone"


def test_the_repository_is_named_after_the_folder(api, run):
    assert hub.push(run.rename(run.with_name("wood-toy"))) == "https://huggingface.co/me/wood-toy"


def test_the_card(api, run):
    hub.push(run, "me/toy")
    card = api.uploaded["README.md"].decode()
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert "base_model: owner/model" in front and "textual-inversion" in front
    assert "# <toy>" in body and "2 vector(s) of width\n8, 500 steps from `toy`" in body
    assert 'load_textual_inversion("me/toy", weight_name="learned_embeds.safetensors")' in body
    assert "![Drawn after 200 steps](validation-steps-200.png)" in body


def test_the_card_does_not_show_our_folders(api, run, tmp_path):
    (tmp_path / "tiny-sd").mkdir()
    record = json.loads((run / "run.json").read_text()) | {"model": str(tmp_path / "tiny-sd")}
    (run / "run.json").write_text(json.dumps(record))
    hub.push(run, "me/toy")
    card = api.uploaded["README.md"].decode()
    assert str(tmp_path) not in card and "`tiny-sd`" in card and "base_model" not in card


def test_the_card_is_valid(api, run):
    from huggingface_hub import ModelCard

    hub.push(run, "me/toy")
    data = ModelCard(api.uploaded["README.md"].decode()).data.to_dict()
    assert data["base_model"] == "owner/model" and "diffusers" in data["tags"]


@pytest.mark.parametrize("failing", ["create_repo", "upload_file", "upload_folder"])
def test_a_failure_leaves_the_word_safe(api, run, failing):
    api.failing = failing
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        hub.push(run, "me/toy", token=TOKEN)
    message = str(caught.value)
    assert "the Hub is away" in message and "the word is safe in" in message
    assert "\n" not in message and TOKEN not in message
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_calls_fit_the_real_client():
    """A fake accepts anything; the arguments must be those of the client that is installed."""
    import inspect

    from huggingface_hub import HfApi

    for name, arguments in {
        "create_repo": ["repo_id", "exist_ok"],
        "upload_file": ["repo_id", "path_in_repo", "path_or_fileobj", "commit_message"],
        "upload_folder": ["repo_id", "folder_path", "allow_patterns", "commit_message"],
    }.items():
        assert set(arguments) <= set(inspect.signature(getattr(HfApi, name)).parameters)
