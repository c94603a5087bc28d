"""Every supported format: files as each program writes them, pairs, several words, other files."""

from __future__ import annotations

import re

import embedding_samples as made
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from tiutils.errors import InputError
from tiutils.io.embeddings import LearnedEmbedding, read, read_all, write, write_a1111

SAMPLES = made.samples()


def written(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


@pytest.mark.parametrize("program", SAMPLES)
def test_a_file_is_read_as_its_program_wrote_it(tmp_path, program):
    name, data, word, expected = SAMPLES[program]
    found = read(written(tmp_path, name, data))
    assert found.token == word and found.vectors.dtype == np.float32 and not found.others
    np.testing.assert_array_equal(found.vectors, expected)
    assert found.tokens == (word, f"{word}_1")[: len(expected)]


@pytest.mark.parametrize("program", ["A1111", "A1111, old torch", "picture", "picture, margins"])
def test_what_a1111_says_of_a_word_is_kept(tmp_path, program):
    facts = read(written(tmp_path, *SAMPLES[program][:2])).metadata
    assert facts["steps"] == "500" and facts["base_model"] == "v1-5-pruned-emaonly"


def test_no_extension_is_believed(tmp_path):
    for program, (_, data, word, expected) in SAMPLES.items():
        path = written(tmp_path, "no-such.format", data)
        found = read(path)
        assert found.token == (word if word in ("<toy>", "a1111-toy", "trigger") else "no-such"), (
            program
        )
        np.testing.assert_array_equal(found.vectors, expected)


def test_every_header_length_of_safetensors_is_seen_for_what_it_is(tmp_path):
    # its first byte is then also that of a pickle, a web page, a zip …
    for length in range(300):
        path = written(tmp_path, "x", save({"<toy>": made.vectors()}, {"pad": "x" * length}))
        assert read(path).token == "<toy>"


def test_a_jax_array_in_the_flax_scripts_file_is_read(tmp_path):
    jnp = pytest.importorskip("jax.numpy")
    data = made.numpy_bytes(np.array({"<toy>": jnp.asarray(made.vectors(1)[0])}, object))
    np.testing.assert_array_equal(read(written(tmp_path, "x.npy", data)).vectors, made.vectors(1))


# Pairs


@pytest.fixture(params=["safetensors", "torch", "text_encoders"])
def pair(request, tmp_path):
    halves = {"clip_g": made.vectors(2, 1280), "clip_l": made.vectors(2, 768)}
    if request.param == "text_encoders":
        halves = {"text_encoders_0": halves["clip_l"], "text_encoders_1": halves["clip_g"]}
    tensors = {name: torch.tensor(half) for name, half in halves.items()}
    data = made.torch_bytes(tensors) if request.param == "torch" else save(halves)
    return written(tmp_path, "xl-toy.safetensors", data)


def test_a_pair_for_sdxl_is_read_and_named(pair):
    found = read(pair)
    assert (found.token, found.text_encoder, [*found.others]) == ("xl-toy", "clip_l", ["clip_g"])
    np.testing.assert_array_equal(found.vectors, made.vectors(2, 768))
    np.testing.assert_array_equal(found.others["clip_g"], made.vectors(2, 1280))


def test_a_pair_is_refused_for_one_text_encoder_with_its_widths(pair):
    with pytest.raises(InputError, match=r"clip_l 768 wide and clip_g 1280 wide.*\(768 wide\)"):
        read(pair).refuse_pair()
    with pytest.raises(InputError, match="SDXL"):
        write_a1111(pair.with_name("x.pt"), read(pair))


def test_a_pair_is_written_as_it_is_read_elsewhere(pair):
    path = write(pair.with_name("again.safetensors"), read(pair))
    assert load_file(path).keys() == {"clip_l", "clip_g"}
    assert read(path).token == "xl-toy"  # not "again"
    np.testing.assert_array_equal(read(path).others["clip_g"], made.vectors(2, 1280))


def test_halves_of_different_numbers_are_no_pair(tmp_path):
    data = save({"clip_l": made.vectors(1, 768), "clip_g": made.vectors(2, 1280)})
    with pytest.raises(InputError, match="more vectors for one encoder"):
        read(written(tmp_path, "x", data))


@pytest.mark.parametrize(("width", "name"), [(768, "clip_l"), (1024, "clip_h"), (1280, "clip_g")])
def test_the_text_encoder_is_known_by_its_width(width, name):
    assert LearnedEmbedding("<toy>", made.vectors(1, width)).text_encoder == name
    assert LearnedEmbedding("<toy>", made.vectors(1, 8)).text_encoder == ""


# Several words


def test_one_of_several_words_is_chosen_by_its_name(tmp_path):
    words = {"<b>": made.vectors(1), "<a>": made.vectors(2)}
    path = written(tmp_path, "x.safetensors", save(words))
    assert [found.token for found in read_all(path)] == ["<a>", "<b>"]
    np.testing.assert_array_equal(read(path, "<b>").vectors, words["<b>"])
    with pytest.raises(InputError, match=r"2 words \('<a>', '<b>'\): '<c>' is not among them"):
        read(path, "<c>")


# Other files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (SAMPLES["diffusers"][1][:60], "cut short"),
        (SAMPLES["A1111"][1][:200], "zip"),
        (made.png(made.picture()), "without an embedding"),
        (made.png(np.zeros((8, 8, 3), np.uint8)), "without an embedding"),
        (made.png(made.picture(), b"not JSON"), "damaged"),
        (made.numpy_bytes(np.arange(8)), "int64 values"),
        (made.numpy_bytes(np.ones((512, 64), np.float32)), "512 vectors, too many for a word"),
        (made.numpy_bytes({"<toy>": np.arange(8)}), "expected floats"),
        (made.numpy_bytes({"<toy>": print}), "was not loaded.*builtins.print"),
    ],
)
def test_other_files_are_named(tmp_path, data, message):
    with pytest.raises(InputError, match=message) as caught:
        read(written(tmp_path, "stranger", data))
    assert "stranger" in str(caught.value) and "\n" not in str(caught.value)


# Writing for A1111


def test_diffusers_own_loader_reads_what_is_written_for_a1111(small_model, tmp_path):
    from diffusers import StableDiffusionPipeline

    facts = {"base_model": "owner/model", "steps": "40", "seed": "7", "license": "cc-by-4.0"}
    learned = LearnedEmbedding("<toy>", made.vectors(2, 32), facts)
    path = write_a1111(tmp_path / "toy.pt", learned)
    pipeline = StableDiffusionPipeline.from_pretrained(small_model, safety_checker=None)
    pipeline.load_textual_inversion(path)
    ids = pipeline.tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    np.testing.assert_array_equal(table[ids].detach().numpy(), learned.vectors)
    found = read(path)
    assert found.token == "<toy>" and facts.items() <= found.metadata.items()
    content = torch.load(path, weights_only=True)
    assert content["step"] == 40 and content["sd_checkpoint_name"] == "owner/model"
    assert [*content["string_to_param"]] == ["*"]


def test_provenance_survives_every_form_that_can_hold_it(tmp_path):
    facts = {"base_model": "owner/model", "steps": "40", "seed": "7", "license": "cc-by-4.0"}
    learned = LearnedEmbedding("<toy>", made.vectors(), facts)
    for found in (
        read(write(tmp_path / "x.safetensors", learned)),
        read(write_a1111(tmp_path / "x.pt", learned)),
    ):
        assert facts.items() <= found.metadata.items()
        assert re.fullmatch(r"diffusers|A1111", found.layout)
