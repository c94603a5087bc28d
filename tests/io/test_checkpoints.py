"""Saving and restoring a run: exact, small, and complete whatever happens."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from safetensors.numpy import load_file, save_file

from tiutils.errors import InputError
from tiutils.io import checkpoints, files
from tiutils.io.checkpoints import CheckpointError, RunState


def state_at(step: int, rows: int = 1) -> RunState:
    """A state as AdamW leaves it, different at each step."""
    values = np.random.default_rng(step).standard_normal((4, rows, 768)).astype(np.float32)
    names = ("rows", "best_rows", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    tensors = dict(zip(names, values, strict=True))
    tensors["optimizer.step"] = np.array(step, np.float32)  # 0-d, as in torch
    return RunState(step, tensors, {"seed": 1, "placeholder": "<toy>", "loss": step / 3})


def assert_same(found: RunState, expected: RunState) -> None:
    """Equal to the last bit: names, dtypes, shapes, bytes, and the scalars as JSON."""
    assert found.step == expected.step
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert found.tensors[name].dtype == value.dtype and found.tensors[name].shape == value.shape
        assert found.tensors[name].tobytes() == value.tobytes()
    assert json.dumps(found.scalars) == json.dumps(expected.scalars)


def hidden_names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


# Exact


arrays = st.sampled_from([np.float32, np.uint8, np.int64]).flatmap(
    lambda dtype: np_st.arrays(
        dtype, np_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    )
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**9),
    st.dictionaries(names.filter(lambda name: name != "__metadata__"), arrays, max_size=4),
    st.dictionaries(names, scalars, max_size=4),
)
def test_what_is_saved_comes_back_bit_for_bit(step, tensors, values):
    state = RunState(step, tensors, values)
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoints.save(folder, state)
        assert path == Path(folder) / f"checkpoint-{step}"
        assert_same(checkpoints.load(path), state)


def test_restored_tensors_can_be_written_to(tmp_path):
    for value in checkpoints.load(checkpoints.save(tmp_path, state_at(3))).tensors.values():
        value[...] = 0


def test_views_and_transposed_arrays_are_saved_as_they_look(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = RunState(0, {"rows": values.T, "every_other": values[:, ::2]}, {})
    assert_same(checkpoints.load(checkpoints.save(tmp_path, state)), state)


# Small


def optimizer_state(optimizer, rows) -> dict[str, np.ndarray]:
    import torch

    state = optimizer.state[rows]
    return {
        f"optimizer.{name}": torch.as_tensor(value).detach().numpy()
        for name, value in state.items()
    }


@pytest.mark.parametrize("num_vectors", [1, 6])
@pytest.mark.parametrize("kind", ["AdamW", "AdamW8bit"])
def test_a_checkpoint_is_small_with_either_optimizer(tmp_path, kind, num_vectors):
    import torch

    rows = torch.nn.Parameter(torch.randn(num_vectors, 768))
    if kind == "AdamW":
        optimizer = torch.optim.AdamW([rows])
    else:
        optimizer = pytest.importorskip("bitsandbytes").optim.AdamW8bit([rows])
    rows.square().sum().backward()
    optimizer.step()
    values = rows.detach().numpy()
    tensors = optimizer_state(optimizer, rows) | {"rows": values, "best_rows": values}
    eight_bit = any(value.dtype == np.uint8 for value in tensors.values())
    assert eight_bit == (kind == "AdamW8bit" and num_vectors == 6)  # below 4096 values it stays 32
    state = RunState(1, tensors, {"seed": 0, "placeholder": "<toy>", "scaler": {"scale": 65536.0}})
    path = checkpoints.save(tmp_path, state)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size <= 5 * values.nbytes + 16_000
    assert_same(checkpoints.load(path), state)


def test_no_pickle_and_one_file(tmp_path):
    path = checkpoints.save(tmp_path, state_at(1))
    assert [file.name for file in path.iterdir()] == ["state.safetensors"]
    assert load_file(path / "state.safetensors").keys() == state_at(1).tensors.keys()


# Which ones there are


def test_the_list_is_newest_first_and_holds_checkpoints_alone(tmp_path):
    for step in (9, 10, 100):
        checkpoints.save(tmp_path, state_at(step))
    for name in (
        "checkpoint-",
        "checkpoint-x",
        "checkpoint-007",
        "checkpoint-1e9",
        "my-checkpoint-5",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-300").write_text("a file")
    found = [path.name for path in checkpoints.list_checkpoints(tmp_path)]
    assert found == ["checkpoint-100", "checkpoint-10", "checkpoint-9"]
    assert_same(checkpoints.load_latest(tmp_path), state_at(100))


def test_without_any_checkpoint_there_is_none(tmp_path):
    assert checkpoints.list_checkpoints(tmp_path / "missing") == []
    assert checkpoints.load_latest(tmp_path / "missing") is None
    assert checkpoints.load_latest(tmp_path) is None


def test_the_limit_removes_the_oldest(tmp_path):
    for step in (1, 2, 3, 10):
        checkpoints.save(tmp_path, state_at(step), limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-3"]
    with pytest.raises(InputError, match="limit of 0"):
        checkpoints.save(tmp_path, state_at(11), limit=0)


def test_the_limit_never_removes_what_was_just_saved(tmp_path):
    for step in (100, 200):
        checkpoints.save(tmp_path, state_at(step))
    checkpoints.save(tmp_path, state_at(150), limit=2)  # resumed from 100
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [
        "checkpoint-200",
        "checkpoint-150",
    ]
    checkpoints.save(tmp_path, state_at(160), limit=1)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-160"]


def test_an_old_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path, monkeypatch, caplog):
    checkpoints.save(tmp_path, state_at(1))

    def refuse(path, **options):
        raise OSError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints.shutil,
            "rmtree",
            lambda path, ignore_errors=False: None if ignore_errors else refuse(path),
        )
        checkpoints.save(tmp_path, state_at(2), limit=1)
    assert "could not remove" in caplog.text and "Permission denied" in caplog.text
    assert_same(checkpoints.load_latest(tmp_path), state_at(2))


# Damage


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    return (checkpoints.save(folder, state_at(2)) / "state.safetensors").read_bytes()


def two_checkpoints(folder: str, newer: bytes) -> Path:
    """Write a complete checkpoint-1, and checkpoint-2 with these bytes; return the path of the latter."""
    checkpoints.save(folder, state_at(1))
    path = Path(folder) / "checkpoint-2"
    path.mkdir()
    (path / "state.safetensors").write_bytes(newer)
    return path


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_short_is_refused_and_the_one_before_is_used(whole_file, data):
    cut = data.draw(st.integers(0, len(whole_file) - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = two_checkpoints(folder, whole_file[:cut])
        with pytest.raises(CheckpointError, match="checkpoint-2' is damaged or cut short"):
            checkpoints.load(path)
        assert_same(checkpoints.load_latest(folder), state_at(1))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_an_altered_file_is_refused_or_holds_the_very_same_state(whole_file, data):
    altered = bytearray(whole_file)
    end = data.draw(st.sampled_from([8, 900, len(altered)]))  # the header deserves more tries
    position = data.draw(st.integers(0, end - 1))
    altered[position] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = two_checkpoints(folder, bytes(altered))
        try:
            found = checkpoints.load(path)
        except CheckpointError as error:
            assert "checkpoint-2" in str(error)
            assert_same(checkpoints.load_latest(folder), state_at(1))
        else:  # for example, one kind of JSON whitespace became another
            assert_same(found, state_at(2))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_refused(data):
    with tempfile.TemporaryDirectory() as folder, pytest.raises(CheckpointError):
        checkpoints.load(two_checkpoints(folder, data))


def test_each_damaged_one_is_warned_about_by_name(tmp_path, caplog, whole_file):
    two_checkpoints(str(tmp_path), whole_file[: len(whole_file) // 2])
    (tmp_path / "checkpoint-3").mkdir()
    assert_same(checkpoints.load_latest(tmp_path), state_at(1))
    first, second = caplog.records
    assert {record.name for record in caplog.records} == {"tiutils"}
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert "checkpoint-3" in first.getMessage() and "checkpoint-2" in second.getMessage()


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*checkpoint-7"):
        checkpoints.load(tmp_path / "checkpoint-7")
    assert issubclass(CheckpointError, InputError)


def test_another_format_version_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT_VERSION", "2")
        path = checkpoints.save(tmp_path, state_at(1))
    with pytest.raises(CheckpointError, match="has checkpoint format 2, but this tiutils reads 1"):
        checkpoints.load(path)


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path):
    save_file({"rows": np.ones((1, 4), np.float32)}, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="format None"):
        checkpoints.load(tmp_path)


# A full disk


def fill_disk(patch: pytest.MonkeyPatch, stage: int) -> list[str]:
    """Make the `stage`-th operation that needs space fail; return the names of those started."""
    begun: list[str] = []

    def spend(name):
        begun.append(name)
        if len(begun) == stage:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def limited(name, function):
        def operation(*args, **options):
            spend(name)
            return function(*args, **options)

        return operation

    class Disk(io.FileIO):
        def write(self, data):
            try:
                spend("write")
            except OSError:
                super().write(data[: len(data) // 2])  # what still fits
                raise
            return super().write(data)

    patch.setattr(files, "open", Disk, raising=False)
    for name in ("mkdir", "fsync", "replace", "rename"):
        patch.setattr(os, name, limited(name, getattr(os, name)))
    return begun


def other(state: RunState) -> RunState:
    """The same step with other numbers, as a run that starts over would save."""
    return RunState(state.step, {"rows": np.zeros((1, 4), np.float32)}, {})


@pytest.mark.parametrize("replacing", [False, True])
def test_a_full_disk_at_any_stage_leaves_the_one_before_whole(tmp_path, monkeypatch, replacing):
    new = other(state_at(2)) if replacing else state_at(3)
    for stage in range(2, 30):  # the first one, to make the output folder, is not needed here
        folder = tmp_path / str(stage)
        checkpoints.save(folder, state_at(1))
        checkpoints.save(folder, state_at(2))
        with monkeypatch.context() as patch:
            begun = fill_disk(patch, stage)
            try:
                checkpoints.save(folder, new)
            except CheckpointError as error:
                message = str(error)
            else:
                break
        assert hidden_names(folder) == []
        assert f"could not save checkpoint-{new.step} in '{folder}'" in message
        assert "No space left on device" in message
        latest = checkpoints.load_latest(folder)
        assert f"newest complete checkpoint: checkpoint-{latest.step}." in message
        # the state file's own name first, then the move that puts the new one in place
        moves = [name for name in begun[:-1] if name in ("replace", "rename")]
        assert_same(latest, new if len(moves) == 2 else state_at(2))
        assert_same(checkpoints.load(folder / "checkpoint-1"), state_at(1))
    to_disk = ["mkdir", "mkdir", "write", "fsync", "replace", "fsync"]  # the state and its name
    in_place = ["replace", "fsync", "fsync"] if replacing else ["rename", "fsync"]
    assert begun == to_disk + in_place and stage == len(begun) + 1  # each one has failed once


def test_with_no_checkpoint_yet_a_full_disk_says_so(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_disk(patch, 4)
        with pytest.raises(CheckpointError, match="newest complete checkpoint: none"):
            checkpoints.save(tmp_path / "run", state_at(1))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not save checkpoint-1"):
        checkpoints.save(tmp_path / "file" / "run", state_at(1))


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .* \(Permission denied\)"):
        checkpoints.load_latest(tmp_path)


def test_a_drive_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch):
    real = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    assert_same(checkpoints.load(checkpoints.save(tmp_path, state_at(1))), state_at(1))


# A kill

KILLED_AT_EACH_OPERATION = """
import os, sys, shutil
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoints import assert_same, hidden_names, other, state_at
from tiutils.io import checkpoints

def killed_at(operation, folder, new, limit):
    'Save in a child that dies, with no cleaning up, just before its n-th file operation.'
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = operation
    def watch(event, arguments):
        nonlocal left
        if event in ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'shutil.rmtree'):
            left -= 1
            if not left:
                os._exit(9)
    sys.addaudithook(watch)
    checkpoints.save(folder, new, limit=limit)
    os._exit(0)

for new, limit in [(state_at(3), None), (state_at(3), 1), (other(state_at(2)), None)]:
    operation, died = 0, True
    while died:
        operation += 1
        folder = Path({folder!r})
        shutil.rmtree(folder, ignore_errors=True)
        checkpoints.save(folder, state_at(1))
        checkpoints.save(folder, state_at(2))
        died = killed_at(operation, folder, new, limit)
        assert died in (0, 9), died
        for path in checkpoints.list_checkpoints(folder):
            checkpoints.load(path)  # each visible one is complete
        latest = checkpoints.load_latest(folder)
        is_new = (latest.step, len(latest.tensors)) == (new.step, len(new.tensors))
        assert_same(latest, new if is_new else state_at(2))
        assert is_new or died
        checkpoints.save(folder, state_at(4))
        assert hidden_names(folder) == []
        assert_same(checkpoints.load_latest(folder), state_at(4))
    print(operation)
"""


def test_a_kill_before_any_file_operation_leaves_the_old_or_the_new_whole(tmp_path):
    tests = Path(__file__).parent
    script = KILLED_AT_EACH_OPERATION.format(tests=str(tests), folder=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert min(int(line) for line in done.stdout.split()) > 6, "hardly any operation was seen"


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    leftover = tmp_path / ".checkpoint-5.tmp"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    (tmp_path / ".keep.tmp").write_text("not ours")
    checkpoints.save(tmp_path, state_at(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".keep.tmp", "checkpoint-6"]
