"""`tiutils inspect` and `convert`: what is told of a word, and the same word in another form."""

from __future__ import annotations

import embedding_samples as made
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from tiutils import inference, models, token_embedding
from tiutils.cli import inspect
from tiutils.cli.main import main
from tiutils.errors import InputError
from tiutils.io.embeddings import LearnedEmbedding, read, write


@pytest.fixture(scope="module")
def parts(small_model):
    return models.load(small_model)


@pytest.fixture
def toy(parts, tmp_path):
    """A word whose two vectors are those of `toy`, and of `cat` at twice the length."""
    vectors = [token_embedding.vector_of(parts, "toy"), 2 * token_embedding.vector_of(parts, "cat")]
    facts = {"steps": "300", "base_model": "owner/model", "odd": "\x1b[31mred", "long": "x" * 999}
    learned = LearnedEmbedding("<my-toy>", torch.stack(vectors).detach().numpy(), facts)
    return write(tmp_path / "toy.safetensors", learned)


def test_a_word_is_told_with_its_place_in_the_vocabulary(toy, small_model, parts, capsys):
    status = main(["inspect", str(toy), "--pretrained_model_name_or_path", str(small_model)])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert lines[0] == f"{toy}: a learned word in diffusers format"
    assert lines[1] == "'<my-toy>': 2 vectors of width 32"
    first, second = (next(line for line in lines if line.startswith(f"  '{t}'")) for t in
                     ("<my-toy>", "<my-toy>_1"))  # fmt: skip
    table = parts.text_encoder.get_input_embeddings().weight.detach().norm(dim=1)
    assert f"median {np.percentile(table, 50):.3g}" in lines[-3]
    for line, word, factor in ((first, "toy", 1), (second, "cat", 2)):
        norm = factor * token_embedding.vector_of(parts, word).norm()
        assert f"norm {norm:.3g}, nearest {word} 1.00, " in line
        others = [
            near
            for near, _ in token_embedding.neighbors(
                parts, token_embedding.vector_of(parts, word), 5
            )
        ]
        assert [near.split()[0] for near in line.split("nearest ")[1].split(", ")] == others
    text = "\n".join(lines)
    assert "steps         300" in text and "base_model    owner/model" in text
    assert "\x1b" not in text and max(map(len, lines)) < 300  # a stranger's text, for a terminal


CONTROLS = (
    "\x1b]0;title\x07\x1b[2J\r\b\x9b1m\u202e\u2066\u200b\n"  # moves, colors, hides, turns round
)


def test_no_control_character_reaches_the_terminal(tmp_path, capsys):
    header = made.header_first({f"<{CONTROLS}>": {"dtype": CONTROLS, "shape": [1],
                                                 "data_offsets": [0, 4]}})  # fmt: skip
    kind = made.torch_bytes({"<toy>": torch.ones(8)}, _use_new_zipfile_serialization=False)
    kind = kind.replace(b"FloatStorage", b"\x1b[2mStorage")
    words = {f"<{CONTROLS}>": made.vectors(1), "<b>": made.vectors(1)}
    files = {
        "word.safetensors": save(words, {"license": CONTROLS, CONTROLS: "x"}),
        "a1111.pt": made.torch_bytes(
            made.as_tensors(made.a1111_content(made.vectors()) | {"name": CONTROLS})
        ),
        f"name{CONTROLS[:-1]}": save({"<toy>": made.vectors()}),
        "header.safetensors": header,
        "kind.bin": kind,
    }
    statuses = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        statuses.append(main(["inspect", str(tmp_path / name)]))
        statuses.append(main(["convert", str(tmp_path / name), str(tmp_path / "no.way")]))
        printed = capsys.readouterr()
        for line in (printed.out + printed.err).split("\n"):
            assert line.isprintable(), (name, line)
    assert statuses == [0, 2, 0, 2, 0, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("halves", "expected"),
    [
        ({"<toy>": (3, 768)}, ["3 vectors of width 768 (clip_l)", "Stable Diffusion 1.x"]),
        ({"<toy>": (1, 1024)}, ["1 vector of width 1024 (clip_h)", "Stable Diffusion 2.x"]),
        ({"<toy>": (1, 99)}, ["1 vector of width 99", "whose text encoder is 99 wide"]),
        (
            {"clip_l": (1, 768), "clip_g": (1, 1280)},
            ["768 (clip_l), 1 vector of width 1280 (clip_g)", "SDXL"],
        ),
        (
            {"clip_l": (1, 768), "t5": (1, 4096)},
            ["1 vector of width 4096 (t5)", "these text encoders"],
        ),
        (
            {"<a>": (1, 768), "<b>": (2, 768)},
            ["'<a>': 1 vector of width 768", "'<b>': 2 vectors of width 768"],
        ),
    ],
)
def test_what_another_models_word_fits_is_told_and_is_no_failure(
    tmp_path, small_model, capsys, halves, expected
):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({name: made.vectors(*shape) for name, shape in halves.items()}))
    flags = ["--pretrained_model_name_or_path", str(small_model)]
    assert main(["inspect", str(path), *flags]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in expected), printed
    assert "not compared" in printed and "32 wide" in printed


def test_a_model_that_cannot_be_had_does_not_make_a_word_unsound(
    toy, tmp_path, small_model, capsys
):
    for model in ("no/model", str(tmp_path)):
        assert main(["inspect", str(toy), "--pretrained_model_name_or_path", model]) == 0
        assert "not compared" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<html>", save({"<t>": np.full((1, 8), np.nan)}),
                                     save({"<t>": np.ones((1, 2, 3))}), None])  # fmt: skip
def test_what_is_no_word_ends_with_2_and_one_line(tmp_path, capsys, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert (
        printed.out == "" and printed.err.startswith("tiutils: ") and printed.err.count("\n") == 1
    )


def test_a_word_goes_through_all_forms_unchanged(toy, tmp_path, capsys):
    expected = read(toy)
    for source, target in (
        ("toy.safetensors", "b.pt"),
        ("b.pt", "c.bin"),
        ("c.bin", "d.safetensors"),
    ):
        arguments = ["convert", str(tmp_path / source), str(tmp_path / target)]
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"{tmp_path / target}\n"
        found = read(tmp_path / target)
        assert found.token == "<my-toy>" and found.layout == (
            "A1111" if target == "b.pt" else "diffusers"
        )
        np.testing.assert_array_equal(found.vectors, expected.vectors)
    assert load_file(tmp_path / "d.safetensors").keys() == {"<my-toy>"}


@pytest.mark.parametrize("program", made.samples())
def test_every_programs_file_becomes_what_diffusers_reads(tmp_path, program):
    name, data, _, expected = made.samples()[program]
    (tmp_path / name).write_bytes(data)
    path = inspect.convert(tmp_path / name, tmp_path / "out.safetensors", token="<new>")
    np.testing.assert_array_equal(load_file(path)["<new>"], expected)


def test_one_of_several_words_is_converted(tmp_path):
    (tmp_path / "x").write_bytes(save({"<a>": made.vectors(1), "<b>": made.vectors(2)}))
    facts = {"word": "<b>", "license": "cc-by-4.0"}
    path = inspect.convert(tmp_path / "x", tmp_path / "b.pt", **facts)
    assert read(path).metadata["license"] == "cc-by-4.0"
    np.testing.assert_array_equal(read(path).vectors, made.vectors(2))


@pytest.mark.parametrize(("target", "message"), [("toy.safetensors", "already exists"),
                                                 ("x.ckpt", "must end in"), ("x", "must end in")])  # fmt: skip
def test_no_file_is_overwritten_and_no_ending_guessed(toy, target, message):
    before = toy.read_bytes()
    with pytest.raises(InputError, match=message):
        inspect.convert(toy, toy.with_name(target))
    assert toy.read_bytes() == before and len(list(toy.parent.iterdir())) == 1


# Words that meet


@pytest.mark.parametrize(("word", "count", "line"), [("toy", 1, "already knows the token 'toy'"),
                                                     ("<x>", 80, "num_vectors is 80")])  # fmt: skip
def test_a_word_that_no_prompt_can_hold_is_told(small_model, tmp_path, capsys, word, count, line):
    path = write(tmp_path / "x.safetensors", LearnedEmbedding(word, made.vectors(count, 32)))
    assert main(["inspect", str(path), "--pretrained_model_name_or_path", str(small_model)]) == 0
    assert line in capsys.readouterr().out


def test_a_taken_word_is_offered_a_free_name(small_model, toy):
    parts = models.load(small_model)
    inference.load_embedding(parts, toy)
    with pytest.raises(InputError, match=r"'<my-toy>'.*'<my-my-toy>' .*--embedding 'FILE=<name>'"):
        inference.load_embedding(parts, toy)
    inference.load_embedding(parts, toy, "<my-my-toy>")
    with pytest.raises(InputError, match="such as '<my-my-toy-2>'"):
        inference.load_embedding(parts, toy)
    assert inference.load_embedding(parts, toy, "<my-my-toy-2>").num_vectors == 2


def test_generate_takes_one_file_under_several_names(small_model, toy, tmp_path, capsys):
    arguments = ["generate", "--pretrained_model_name_or_path", str(small_model)]
    arguments += ["--prompt", "a <my-toy> and a <Second> on <second>", "--num_images", "1"]
    arguments += ["--num_inference_steps", "1", "--output_dir", str(tmp_path / "pictures")]
    arguments += ["--embedding", str(toy), "--embedding", f"{toy}=<Second>"]
    assert main([*arguments, "--embedding", f"{toy}=<second>"]) == 0
    assert main([*arguments, "--embedding", str(toy)]) == 2
    assert "such as '<my-my-toy>'" in capsys.readouterr().err


def test_several_words_in_one_prompt_keep_apart_also_in_mixed_case(small_model, tmp_path):
    parts = models.load(small_model)
    words = {"<Cat>": 1, "<cat>": 2, "<CAT>_x": 1, "cat-toy": 3}
    for number, (word, count) in enumerate(words.items()):
        vectors = np.full((count, 32), number, np.float32)
        path = write(tmp_path / f"{number}.safetensors", LearnedEmbedding(word, vectors))
        inference.load_embedding(parts, path)
    ids = token_embedding.tokenize(parts.tokenizer, ["a <cat> and <Cat> on cat-toy in <CAT>_x"])
    rows = parts.text_encoder.get_input_embeddings()(ids)[0].detach()
    learned = [row[0].item() for row in rows if (row == row[0]).all()]
    assert learned == [1, 1, 0, 3, 3, 3, 2]
