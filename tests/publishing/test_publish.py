"""Publishing, with the Hub client's own code against a small Hub on the loopback address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import numpy as np
import pytest
from small_model import draw_photo

from tiutils.cli.main import main
from tiutils.errors import InputError
from tiutils.figures import output
from tiutils.io.embeddings import LearnedEmbedding, read, write
from tiutils.publishing import publish
from tiutils.runs import session

TOKEN = "hf_thisIsASecret"
READ_ONLY, STRANGER = "hf_readOnly", "hf_ofSomeoneElse"

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"  # between the Hub client and its HTTP library
)


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_server.serving() as server:
        server.add_account(TOKEN, "me", orgs=["my-class"])
        server.add_account(READ_ONLY, "me", role="read")
        server.add_account(STRANGER, "you")
        hub_server.connect(monkeypatch, server, tmp_path / "hf-home")
        yield server


@pytest.fixture
def run(tmp_path):
    """What a finished run, and its user, leave in a folder."""
    folder = tmp_path / "wood-toy"
    write(folder / "learned_embeds.safetensors", LearnedEmbedding("<toy>", np.ones((2, 8))))
    flags = {"initializer_token": "toy", "validation_prompt": "a <toy> on *sand*"}
    record = {"model": "owner/model", "steps": 500, "flags": flags, "photos": ["anna.jpg", "b.jpg"]}
    (folder / "run.json").write_text(json.dumps(record))
    for step in (2, 200, 1000):
        alt = f"“a <toy> on *sand*” drawn after {step} steps"
        output.save(draw_photo(step), folder / f"validation-steps-{step}.png", alt=alt)
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "state.safetensors").write_bytes(b"state")
    (folder / "learned_embeds-steps-100.safetensors").write_bytes(b"on the way")
    (folder / "before_after.png").write_bytes(b"shows the photos")
    (folder / "validation-steps-old.png").write_bytes(b"renamed by its owner")
    (folder / "holiday.png").write_bytes(b"private")
    (folder / "photos").mkdir()
    (folder / "photos" / "face.png").write_bytes(b"private")
    (folder / "README.md").write_text("my own notes")
    return folder


def set_in_record(run, **entries):
    record = json.loads((run / "run.json").read_text()) | entries
    (run / "run.json").write_text(json.dumps(record))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(token in message for token in (TOKEN, READ_ONLY, STRANGER))
    return message


# May we?


@pytest.mark.parametrize("name", [None, "toy", "me/toy", "my-class/toy"])
def test_access_is_asked_for_by_name(server, name):
    assert publish.check_access(TOKEN, name) == "me"
    assert server.repositories == {}, "asking makes nothing"


@pytest.mark.parametrize("name", ["wood toy", "a/b/c", "a//b", "-toy", "größe"])
def test_a_name_no_repository_can_have_is_told_before_training(server, name):
    message = refused(publish.check_access, TOKEN, name)
    assert repr(name) in message and "--hub_model_id" in message
    assert server.asked == []


def test_a_wrong_token(server):
    message = refused(publish.check_access, "hf_thisIsWrong", "toy")
    assert "Invalid user" in message and "hf auth login" in message
    assert "hf_thisIsWrong" not in message


def test_a_token_that_may_only_read(server):
    assert "may only read" in refused(publish.check_access, READ_ONLY, "toy")


def test_another_ones_name(server):
    assert "'me' may write under me, my-class only" in refused(
        publish.check_access, TOKEN, "you/toy"
    )


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f"{TOKEN} ", "", f"{TOKEN}…", TOKEN.encode()])
def test_what_can_be_no_token_is_not_shown(server, run, token):
    """The HTTP library's own complaint about a line break shows the token."""
    for call in (publish.check_access, lambda token: publish.publish(run, "toy", token=token)):
        assert "--hub_token must be one word" in refused(call, token)
    assert server.asked == []


def test_without_a_token(server):
    message = refused(publish.check_access, None, "toy")
    assert message.startswith("cannot log in to the Hub (there is no access token): run `hf auth")


def test_the_token_of_a_login_is_used(server, run, tmp_path):
    (tmp_path / "hf-home").mkdir(exist_ok=True)
    (tmp_path / "hf-home" / "token").write_text(TOKEN)
    assert publish.publish(run) == f"{server.url}/me/wood-toy"


def test_offline_is_told_as_such():
    assert "offline" in refused(publish.check_access, TOKEN)


def test_a_repository_of_something_else_is_not_overwritten(server, run):
    server.add_repository("me/toy", {"model.gguf": b"another work"})
    for call in (publish.check_access, lambda *a: publish.publish(run, a[1], token=a[0])):
        assert "something else (model.gguf)" in refused(call, TOKEN, "toy")
    assert len(server.repositories["me/toy"].commits) == 2


# What is published


def test_what_is_published(server, run):
    before = contents(run)
    assert publish.publish(run, "toy", token=TOKEN) == f"{server.url}/me/toy"
    repository = server.repositories["me/toy"]
    assert set(repository.files) == {"README.md", "learned_embeds.safetensors", "picture-1.png"}
    word = (run / "learned_embeds.safetensors").read_bytes()
    assert repository.files["learned_embeds.safetensors"] == word
    last = (run / "validation-steps-1000.png").read_bytes()
    assert repository.files["picture-1.png"] == last, "1000 comes after 200"
    assert repository.private and len(repository.commits) == 2, "all in one commit"
    assert sum(map(len, repository.files.values())) < 20_000, "kilobytes"
    assert before == contents(run), "the user's own README is left alone, too"


def test_it_is_fetched_back_by_its_owner_alone(server, run, tmp_path):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    publish.publish(run, "toy", token=TOKEN)
    name = "learned_embeds.safetensors"
    for token in (False, STRANGER):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("me/toy", name, token=token)
    assert read(hf_hub_download("me/toy", name, token=TOKEN)).token == "<toy>"


def test_public_when_asked(server, run):
    from huggingface_hub import hf_hub_download

    publish.publish(run, "toy", token=TOKEN, public=True)
    assert server.asked[-2:] == ["commit", "settings"], "shown when all is there"
    assert Path(hf_hub_download("me/toy", "README.md", token=False)).read_text().startswith("---")


def test_a_repository_that_is_public_already(server, run, caplog):
    server.add_repository("me/toy", {"learned_embeds.safetensors": b"an older word"})
    publish.publish(run, "toy", token=TOKEN)
    assert "everyone can see" in caplog.text
    assert not server.repositories["me/toy"].private, "its owner's choice stands"


def test_publishing_again(server, run):
    publish.publish(run, "toy", token=TOKEN)
    write(run / "learned_embeds.safetensors", LearnedEmbedding("<toy>", np.zeros((2, 8))))
    publish.publish(run, "toy", token=TOKEN)
    _, first, second = server.repositories["me/toy"].commits
    assert first["learned_embeds.safetensors"] != second["learned_embeds.safetensors"]


def test_a_torch_file(server, run):
    (run / "learned_embeds.safetensors").unlink()
    embedding = LearnedEmbedding("<toy>", np.ones((2, 8)))
    write(run / "learned_embeds.bin", embedding, safe_serialization=False)
    publish.publish(run, "toy", token=TOKEN)
    files = server.repositories["me/toy"].files
    assert "learned_embeds.bin" in files and b'name="learned_embeds.bin"' in files["README.md"]


def test_pictures_of_ones_choice(server, run, tmp_path):
    chosen = [tmp_path / "a b](.png", tmp_path / "c.png"]
    for index, path in enumerate(chosen):
        output.save(draw_photo(index), path, alt=f"prompt {index}")
    publish.publish(run, "toy", token=TOKEN, pictures=chosen)
    files = server.repositories["me/toy"].files
    assert [files[f"picture-{n}.png"] for n in (1, 2)] == [path.read_bytes() for path in chosen]
    card = files["README.md"].decode()
    assert "![prompt 0](picture-1.png)" in card and "![prompt 1](picture-2.png)" in card


@pytest.mark.parametrize("content", [b"", b"private", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_only_pictures_are_pictures(server, run, tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    message = refused(publish.publish, run, "toy", token=TOKEN, pictures=[tmp_path / "x.png"])
    assert "x.png is not a PNG" in message and server.repositories == {}


def test_a_picture_too_large_or_not_there(server, run, tmp_path, monkeypatch):
    monkeypatch.setattr("tiutils.publishing.model_card.MAX_PICTURE_BYTES", 10)
    assert "MiB" in refused(publish.publish, run, "toy", token=TOKEN)
    assert "not a PNG" in refused(
        publish.publish, run, "toy", token=TOKEN, pictures=[tmp_path / "no.png"]
    )


def test_links_bring_in_nothing_from_outside(server, run, tmp_path):
    """A run's folder may come from a stranger, in an archive."""
    secret = tmp_path / "id_rsa.png"
    output.save(draw_photo(1), secret, alt="secret")
    (run / "validation-steps-2000.png").symlink_to(secret)
    publish.publish(run, "toy", token=TOKEN)
    drawn = (run / "validation-steps-1000.png").read_bytes()
    assert server.repositories["me/toy"].files["picture-1.png"] == drawn
    (run / "learned_embeds.safetensors").rename(tmp_path / "elsewhere")
    (run / "learned_embeds.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "no learned word" in refused(publish.publish, run, "toy", token=TOKEN)


def test_the_whole_model_only_when_asked(server, run, small_model, tmp_path):
    options = {"token": TOKEN, "full_pipeline": True}
    assert "--save_as_full_pipeline" in refused(publish.publish, run, "toy", **options)
    for path in sorted(small_model.rglob("*")):
        target = run / path.relative_to(small_model)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    (run / "unet" / "notes.pickle").write_bytes(b"private")
    (run / "vae" / "key.json").symlink_to("/etc/hostname")
    publish.publish(run, "word", token=TOKEN)
    publish.publish(run, "model", **options)
    assert "model_index.json" not in server.repositories["me/word"].files
    files = server.repositories["me/model"].files
    ours = {p.relative_to(small_model).as_posix() for p in small_model.rglob("*") if p.is_file()}
    assert set(files) == ours | {"README.md", "learned_embeds.safetensors", "picture-1.png"}
    assert b'from_pretrained("me/model")' in files["README.md"]


def test_a_folder_without_a_word(server, tmp_path):
    assert "no learned word" in refused(publish.publish, tmp_path, "toy", token=TOKEN)
    assert "no learned word" in refused(publish.publish, tmp_path / "nowhere", "toy", token=TOKEN)
    assert server.asked == []


# What goes wrong on the way

STEPS = ("whoami", "info", "create", "validate", "preupload", "batch", "upload", "commit")


@pytest.mark.parametrize("how", [403, 500, "cut"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_leaves_everything_whole(server, run, step, how):
    server.failing[step] = how
    before = contents(run)
    message = refused(publish.publish, run, "toy", token=TOKEN)
    assert before == contents(run)
    assert "publish" in message or "log in" in message or "did not say" in message
    if step not in ("whoami", "info"):
        assert "nothing here is lost or changed" in message and f"tiutils push {run}" in message
    assert all(repository.files == {} for repository in server.repositories.values())
    assert all(repository.private for repository in server.repositories.values())
    del server.failing[step]
    assert publish.publish(run, "toy", token=TOKEN) == f"{server.url}/me/toy", "and again, it works"


def test_an_answer_that_is_lost(server, run):
    """The commit was made, but nobody said so: publishing again is harmless."""
    server.failing["commit"] = "lost"
    refused(publish.publish, run, "toy", token=TOKEN)
    server.failing.clear()
    publish.publish(run, "toy", token=TOKEN)
    _, first, second = server.repositories["me/toy"].commits
    assert first == second


def test_a_server_that_is_not_there(server, run, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot log in to the Hub" in refused(publish.publish, run, "toy", token=TOKEN)


# The end of a run


def config_of(run, **flags):
    from tiutils import TrainingConfig

    return TrainingConfig(output_dir=str(run), hub_token=TOKEN, **flags)


def test_a_run_that_ended_early_is_not_published(server, run, caplog):
    session.publish_if_asked(config_of(run, push_to_hub=True), "stopped by request")
    assert server.asked == [] and f"tiutils push {run}" in caplog.text


def test_nothing_is_published_unless_asked(server, run):
    session.publish_if_asked(config_of(run), None)
    assert server.asked == []


def test_the_end_of_a_run(server, run):
    session.publish_if_asked(config_of(run, push_to_hub=True, hub_model_id="my-class/toy"), None)
    assert list(server.repositories) == ["my-class/toy"]


# The command


def test_the_command(server, run, tmp_path, capsys):
    output.save(draw_photo(1), tmp_path / "x.png", alt="x")
    arguments = ["push", str(run), "--hub_model_id", "toy", "--hub_token", TOKEN]
    more = ["--public", "--license", "cc-by-4.0", "--picture", str(tmp_path / "x.png")]
    assert main([*arguments, *more]) == 0
    said = capsys.readouterr()
    assert said.out == f"{server.url}/me/toy\n"
    assert said.err.startswith("publishing me/toy: 3 files, ") and said.err.count("\n") == 1
    assert main([*arguments, *more, "--quiet"]) == 0
    assert not [line for line in capsys.readouterr().err.splitlines() if "files" in line]
    repository = server.repositories["me/toy"]
    assert not repository.private and b'license: "cc-by-4.0"' in repository.files["README.md"]
    server.failing["commit"] = 403
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1].startswith("tiutils: publishing")
    assert TOKEN not in captured.err


@pytest.mark.slow
def test_a_whole_run_in_a_process_of_its_own(small_model, photos, tmp_path):
    """Through HF_ENDPOINT, with nothing replaced; and the access token is written nowhere."""
    with hub_server.serving() as server:
        server.add_account(TOKEN, "me")
        done = subprocess.run(
            [
                sys.executable, "-m", "tiutils", "train",
                "--pretrained_model_name_or_path", small_model, "--train_data_dir", photos,
                "--placeholder_token", "<my-toy>", "--initializer_token", "toy",
                "--output_dir", tmp_path / "my-toy", "--max_train_steps", "2",
                "--checkpointing_steps", "1", "--save_steps", "1", "--validation_steps", "1",
                "--validation_prompt", "a <my-toy> on sand", "--num_validation_images", "1",
                "--save_as_full_pipeline", "--push_to_hub", "--hub_token", TOKEN,
            ],
            env=os.environ | hub_server.environment(server, tmp_path / "hf-home"),
            cwd=tmp_path, capture_output=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    files = server.repositories["me/my-toy"].files
    assert server.repositories["me/my-toy"].private
    assert {"learned_embeds.safetensors", "picture-1.png", "unet/config.json"} < set(files)
    where = {"stdout": done.stdout, "stderr": done.stderr, **files, **contents(tmp_path)}
    assert len(where) > 30
    for name, content in where.items():
        assert TOKEN.encode() not in content, name
    for name, content in files.items():  # nor does anyone need to know our folders
        assert str(tmp_path.parent).encode() not in content, name
        assert str(small_model.parent).encode() not in content, name
        assert str(photos).encode() not in content, name
