"""A run's folder: one run at a time, run.json from any editor, and no finished word is overwritten."""

from __future__ import annotations

import codecs
import json
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiutils.errors import InputError
from tiutils.io import run_folder
from tiutils.io.checkpoints import RunState, save
from tiutils.io.embeddings import LearnedEmbedding, read, write


def word(folder, name="learned_embeds.safetensors", steps=6):
    facts = {"steps": str(steps)}
    return write(folder / name, LearnedEmbedding("<n>", np.ones((1, 8), np.float32), facts))


def hold(folder, ready):
    with run_folder.reserved(folder):
        ready.set()
        signal.pause()


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    with run_folder.reserved(tmp_path / "o"):
        with (
            pytest.raises(InputError, match=r"in use by another run.*give another folder"),
            run_folder.reserved(tmp_path / "o"),
        ):
            pytest.fail("held twice")
        with run_folder.reserved(tmp_path / "p"):
            pass
    assert not list(tmp_path.iterdir()), "nothing is left of a run that wrote nothing"


def test_a_killed_run_holds_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(120)
    with pytest.raises(InputError, match="in use"), run_folder.reserved(tmp_path):
        pass
    process.kill()
    process.join()
    assert (tmp_path / run_folder.LOCK).exists()
    with run_folder.reserved(tmp_path):
        pass
    assert not (tmp_path / run_folder.LOCK).exists()


@pytest.mark.parametrize(
    "name", ["learned_embeds.safetensors", "learned_embeds-steps-6.safetensors"]
)
def test_latest_does_not_replace_a_word_by_a_new_start(tmp_path, name):
    word(tmp_path, name)
    with pytest.raises(InputError, match="no complete checkpoint to resume from"):
        run_folder.find_checkpoint("latest", tmp_path)


def test_latest_does_not_go_back_behind_a_finished_word(tmp_path):
    word(tmp_path)
    run_folder.update_record(tmp_path, {"status": "finished", "steps": 6})
    state = RunState(2, {"rows": np.ones((1, 8), np.float32)}, {})
    save(tmp_path, state)
    with pytest.raises(InputError, match="--resume_from_checkpoint checkpoint-2 to go back"):
        run_folder.find_checkpoint("latest", tmp_path)
    assert run_folder.find_checkpoint("checkpoint-2", tmp_path).step == 2
    save(tmp_path, RunState(6, state.tensors, {}))
    assert run_folder.find_checkpoint("latest", tmp_path).step == 6


def test_a_word_of_other_steps_is_kept(tmp_path):
    word(tmp_path)
    run_folder.keep_earlier(tmp_path, 12)
    assert read(tmp_path / "learned_embeds-steps-6.safetensors").metadata["steps"] == "6"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_record_of_any_editor(tmp_path, encoding):
    record = {"status": "finished", "word": "<größe>"}
    (tmp_path / "run.json").write_bytes(json.dumps(record, ensure_ascii=False).encode(encoding))
    run_folder.update_record(tmp_path, {"steps": 1})
    assert run_folder.read_record(tmp_path) == record | {"steps": 1}
    assert not (tmp_path / "run.json").read_bytes().startswith(codecs.BOM_UTF8)


def test_names_that_are_not_utf8_come_back(tmp_path):
    name = os.fsdecode(b"Gel\xf6scht.txt")
    run_folder.update_record(tmp_path, {"skipped": {name: "größer"}})
    assert run_folder.read_record(tmp_path)["skipped"] == {name: "größer"}
    assert "größer" in (tmp_path / "run.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [None, 3, "a", [1]])
def test_an_entry_that_is_none_is_an_empty_one(value):
    assert run_folder.entry({"flags": value}, "flags", dict) == {}


def test_folders_are_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "data" / "toy").mkdir(parents=True)
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_folder.find_again(run, "data/toy") == str(tmp_path / "data" / "toy")
    assert run_folder.find_again(run, "owner/name") == "owner/name"
    monkeypatch.chdir(tmp_path)
    assert run_folder.absolute("data/toy") == str(tmp_path / "data" / "toy")
    assert run_folder.absolute("owner/name") == "owner/name"


def test_the_model_is_the_one_that_was_trained(tmp_path):
    flags = {"revision": "v2", "variant": "fp16", "tokenizer_name": "me/words"}
    run_folder.update_record(tmp_path, {"model": "me/toy", "commit": "b" * 40, "flags": flags})
    assert run_folder.model_of(tmp_path) == {
        "name": "me/toy", "revision": "b" * 40, "variant": "fp16", "tokenizer_name": "me/words",
    }  # fmt: skip
    with pytest.raises(InputError, match="give --pretrained_model_name_or_path"):
        run_folder.model_of(tmp_path / "nowhere")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=9)
    | st.just("x" * 999),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
NAMES = ["status", "steps", "model", "commit", "flags", "placeholder_token", "tokenizer_name"]
records = st.dictionaries(
    st.sampled_from(NAMES), values | st.dictionaries(st.sampled_from(NAMES), values)
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | records.map(json.dumps).map(str.encode), st.binary(max_size=60))
def test_any_run_json_and_any_word_are_read_or_one_clear_line(record, learned):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        (folder / run_folder.RECORD).write_bytes(record)
        (folder / "learned_embeds.safetensors").write_bytes(learned)
        assert isinstance(run_folder.read_record(folder), dict)
        calls = [
            lambda: run_folder.model_of(folder),
            lambda: run_folder.find_checkpoint("latest", folder),
            lambda: run_folder.keep_earlier(folder, 3),
            lambda: run_folder.check_output_dir(folder, "photos", "logs", "<toy>", resumed=True),
        ]
        for call in calls:
            try:
                call()
            except InputError as error:
                assert "\n" not in str(error)
