"""Learned embeddings on disk: diffusers itself reads ours, and a malicious file does no harm."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_samples import torch_bytes, vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from safetensors.torch import load_file, save, save_file

from tiutils.errors import InputError
from tiutils.io import files
from tiutils.io.embeddings import LearnedEmbedding, read, write

# Round trips

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda word: word.strip() and word != "__metadata__"
)


@settings(max_examples=60, deadline=None)
@given(
    words,
    np_st.arrays(
        np.float32,
        np_st.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    st.dictionaries(
        words, st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4
    ),
    st.booleans(),
)
def test_what_is_written_comes_back_bit_for_bit(token, values, metadata, safe):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "learned_embeds.any"
        assert (
            write(path, LearnedEmbedding(token, values, metadata), safe_serialization=safe) == path
        )
        found = read(path)
    assert found.token == token and found.metadata == (metadata if safe else {})
    assert found.vectors.dtype == np.float32 and found.vectors.shape == values.shape
    assert found.vectors.tobytes() == values.tobytes()
    found.vectors[:] = 0  # and can be written to


@pytest.mark.parametrize("safe", [True, False])
def test_the_file_is_the_one_that_diffusers_writes(tmp_path, safe):
    path = write(tmp_path / "x", LearnedEmbedding("<toy>", vectors(2)), safe_serialization=safe)
    content = load_file(path) if safe else torch.load(path, weights_only=True)
    assert list(content) == ["<toy>"] and content["<toy>"].dtype == torch.float32
    np.testing.assert_array_equal(content["<toy>"].numpy(), vectors(2))


@pytest.mark.parametrize(
    ("count", "name"),
    [(1, "one.safetensors"), (3, "three.safetensors"), (1, "one.bin"), (3, "three.bin")],
)
def test_stock_diffusers_loads_what_we_write(small_model, tmp_path, count, name):
    from diffusers import StableDiffusionPipeline

    path = tmp_path / name
    safe = name.endswith(".safetensors")
    write(
        path, LearnedEmbedding("<toy>", vectors(count, 32), {"steps": "3"}), safe_serialization=safe
    )
    pipeline = StableDiffusionPipeline.from_pretrained(small_model, safety_checker=None)
    pipeline.load_textual_inversion(path)
    tokens = ["<toy>", "<toy>_1", "<toy>_2"][:count]
    ids = pipeline.tokenizer.convert_tokens_to_ids(tokens)
    prompt = pipeline.maybe_convert_prompt("a photo of <toy>", pipeline.tokenizer)
    assert pipeline.tokenizer(prompt).input_ids[-count - 1 : -1] == ids
    table = pipeline.text_encoder.get_input_embeddings().weight
    np.testing.assert_array_equal(table[ids].detach().numpy(), vectors(count, 32))


def test_a_word_in_mixed_case_is_warned_about(tmp_path, caplog):
    write(tmp_path / "lower", LearnedEmbedding("<my-toy>", vectors()))
    assert not caplog.records
    write(tmp_path / "mixed", LearnedEmbedding("<My-Own-Toy>", vectors()))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tiutils", logging.WARNING)
    assert "'<My-Own-Toy>' as '<my-own-toy>'" in record.getMessage()
    assert read(tmp_path / "mixed").token == "<My-Own-Toy>"


# Files that others wrote


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("shape", [(2, 8), (8,)])
def test_other_precisions_and_a_vector_without_a_row_are_read(tmp_path, kind, dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    content = {"<toy>": tensor}
    path = tmp_path / "file"
    if kind == "safetensors":
        save_file(content, path)
    else:
        options = {"_use_new_zipfile_serialization": kind == "bin"}
        path.write_bytes(torch_bytes(content, **options))
    found = read(path)
    expected = tensor.float().reshape(-1, 8).numpy()
    assert found.token == "<toy>" and found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, expected)


def test_a_parameter_that_still_wants_gradients_is_read(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(1, 8))
    (tmp_path / "x.bin").write_bytes(torch_bytes({"<toy>": parameter}))
    np.testing.assert_array_equal(read(tmp_path / "x.bin").vectors, parameter.detach().numpy())


# Refused

MODEL = {f"layer.{index}.weight": torch.ones(2) for index in range(9)}
BAD = {
    "NaN": ({"<toy>": torch.tensor([[1.0, float("nan")]])}, "NaN or infinite"),
    "inf": ({"<toy>": torch.tensor([[1.0, float("-inf")]])}, "NaN or infinite"),
    "beyond float32": ({"<toy>": torch.tensor([[1e300]], dtype=torch.float64)}, "NaN or infinite"),
    "rank 0": ({"<toy>": torch.tensor(1.0)}, r"shape \(\), expected \(n, hidden\)"),
    "rank 3": ({"<toy>": torch.ones(1, 2, 3)}, r"shape \(1, 2, 3\)"),
    "no vectors": ({"<toy>": torch.ones(0, 8)}, r"shape \(0, 8\)"),
    "no width": ({"<toy>": torch.ones(1, 0)}, r"shape \(1, 0\)"),
    "integers": ({"<toy>": torch.ones(1, 8, dtype=torch.int64)}, "expected floats"),
    "nothing": ({}, "0 entries"),
    "two words": (
        {"<b>": torch.ones(1, 8), "<a>": torch.ones(1, 8)},
        r"2 words \('<a>', '<b>'\): choose one",
    ),
    "many words": (
        {f"<{n}>": torch.ones(8) for n in range(9)},
        r"9 words \('<0>', '<1>', '<2>', '<3>', '<4>', …\): choose one",
    ),
    "a model": (MODEL, "9 entries .*, ….*is it a model or a LoRA"),
    "two widths": ({"<a>": torch.ones(1, 8), "<b>": torch.ones(1, 9)}, "is it a model"),
    "an encoder's output": ({"emp_params_out": torch.ones(1, 8)}, "text encoder's output"),
    "no word": ({"": torch.ones(1, 8)}, "cannot be a placeholder"),
    "a blank": ({" ": torch.ones(1, 8)}, "cannot be a placeholder"),
}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_embedding_is_refused_by_name(tmp_path, case, kind):
    content, message = BAD[case]
    path = tmp_path / "stranger"
    path.write_bytes(save(content) if kind == "safetensors" else torch_bytes(content))
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


BAD_BIN = {
    "a list": ([torch.ones(1, 8)], "a list, expected"),
    "a number": ({"<toy>": 3.0}, "a float, expected"),
    "nested": ({"<toy>": {"<toy>": torch.ones(1, 8)}}, "a dict, expected"),
    "A1111's optimizer": ({"hash": "x", "optimizer_state_dict": {}}, "a str, expected"),
    "a number as the word": ({5: torch.ones(1, 8)}, "1 entries .*, expected a word"),
    "half a letter": ({"\ud800": torch.ones(1, 8)}, "cannot be a placeholder"),
    "a book": ({"<toy>" * 100: torch.ones(1, 8)}, "cannot be a placeholder"),
    "sparse": ({"<toy>": torch.eye(2).to_sparse()}, "torch._utils._rebuild_sparse_tensor"),
    "complex": ({"<toy>": torch.ones(1, 8, dtype=torch.complex64)}, "ComplexFloat values"),
    "meta": ({"<toy>": torch.ones(1, 8, device="meta")}, "_rebuild_meta_tensor_no_storage"),
    "endless": ({"<toy>": torch.ones(1).expand(2**20, 2**20)}, r"\(1048576, 1048576\), expected"),
}


@pytest.mark.parametrize("case", BAD_BIN)
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_only_a_pickle_can_hold_is_refused_by_name(tmp_path, case, is_zip):
    content, message = BAD_BIN[case]
    path = tmp_path / "stranger.bin"
    path.write_bytes(torch_bytes(content, _use_new_zipfile_serialization=is_zip))
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


class Trap:
    """Creates a file when Python's own pickle loads it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["bin", "old bin", "pickle"])
def test_a_pickle_from_a_stranger_never_runs(tmp_path, kind):
    content = {"<toy>": torch.ones(1, 8), "trap": Trap(tmp_path / "sprung")}
    if kind == "pickle":
        data = pickle.dumps(content["trap"])
    else:
        data = torch_bytes(content, _use_new_zipfile_serialization=kind == "bin")
    path = tmp_path / "stranger.bin"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"stranger.bin' was not loaded: .* could run code"):
        read(path)
    assert not (tmp_path / "sprung").exists()
    if kind == "pickle":  # make sure that the trap works
        pickle.loads(data)
        assert (tmp_path / "sprung").exists()


def test_absurd_sizes_are_refused_before_reading(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.truncate(200 * 2**20)  # sparse: takes no space
    with pytest.raises(InputError, match="has 200 MiB; an embedding has less than 64"):
        read(path)


def test_a_zip_bomb_is_refused_before_unpacking(tmp_path):
    path = tmp_path / "bomb.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(80 * 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(InputError, match="unpacks to far more"):
        read(path)


@pytest.mark.parametrize("name", ["missing", "folder", "pipe", "loop", "nul\0l"])
def test_what_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError):
        read(tmp_path / name)


# Writing


@pytest.mark.parametrize(
    ("token", "values"),
    [
        ("", vectors()),
        ("__metadata__", vectors()),
        ("<toy>", np.full((1, 4), np.nan, np.float32)),
        ("<toy>", np.ones((0, 4), np.float32)),
        ("<toy>", np.ones((1, 2, 3), np.float32)),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, token, values):
    with pytest.raises(InputError):
        write(tmp_path / "x.safetensors", LearnedEmbedding(token, values))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, operation):
    path = write(tmp_path / "learned_embeds.safetensors", LearnedEmbedding("<toy>", vectors(1)))

    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, operation, refuse)
        with pytest.raises(InputError, match=r"learned_embeds.safetensors' \(No space left"):
            write(path, LearnedEmbedding("<toy>", vectors(2)))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    np.testing.assert_array_equal(read(path).vectors, vectors(1))


def test_folders_on_the_way_are_made_and_a_place_in_use_is_an_error(tmp_path):
    write(tmp_path / "a" / "b" / "x.safetensors", LearnedEmbedding("<toy>", vectors()))
    assert read(tmp_path / "a" / "b" / "x.safetensors").token == "<toy>"
    with pytest.raises(InputError, match="could not write"):
        write(tmp_path / "a", LearnedEmbedding("<toy>", vectors()))  # a folder stands there
