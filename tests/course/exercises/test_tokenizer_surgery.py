"""The second notebook: its own definitions agree with tiutils, its checks tell right from wrong."""

import itertools
import runpy

import pages
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import WORDS

from tiutils import models, token_embedding
from tiutils.course import explore, widgets
from tiutils.course.exercises import tokenizer_surgery as exercises
from tiutils.errors import InputError
from tiutils.figures import output
from tiutils.io import pretrained
from tiutils.tokenizer import expand_prompt, whole_words

SOLUTIONS = runpy.run_path(str(pages.ROOT / "notebooks" / "solutions" / "tokenizer_surgery.py"))


def defined_in(cell, name, **known):
    return pages.definitions("02_tokenizer_surgery", cell, **known)[name]


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return pretrained.load_tokenizer(small_model)


@pytest.fixture(scope="module")
def ranks(small_model):
    lines = (small_model / "tokenizer" / "merges.txt").read_text().splitlines()[1:]
    return {tuple(line.split()): rank for rank, line in enumerate(lines)}


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from([*WORDS, *"abctoy"]), min_size=1, max_size=5))
def test_words_are_cut_by_hand_as_by_the_library(tokenizer, ranks, parts):
    pieces_of = defined_in("bpe-by-hand", "pieces_of")
    assert pieces_of("".join(parts), ranks) == tokenizer.tokenize("".join(parts))


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_rows_by_hand_look_up_and_learn_as_those_of_the_module(num_vectors):
    NewRows = defined_in("embedding-by-hand", "NewRows", nn=torch.nn, torch=torch)
    table = torch.nn.Embedding(9, 4).requires_grad_(False)
    rows = torch.randn(num_vectors, 4)
    by_hand, module = NewRows(table, rows, 9), token_embedding.TokenEmbedding(table, rows, 9, None)
    ids = torch.tensor([[0, 8, 9, 3], [8 + num_vectors, 9, 1, 9]])
    weight = torch.randn(2, 4, 4)
    for embedding in (by_hand, module):
        (embedding(ids) * weight).sum().backward()
    assert torch.equal(by_hand(ids), module(ids))
    assert torch.allclose(by_hand.rows.grad, module.rows.grad, atol=1e-6)
    assert table.weight.grad is None


def test_the_notebook_reads_a_word_from_left_to_right(small_model):
    """What its section on hidden states says of any CLIP text encoder."""
    parts = models.load(small_model)
    hidden_states = defined_in(
        "hidden-states", "hidden_states", torch=torch, token_embedding=token_embedding, parts=parts,
        **{"print": lambda *_: None},
    )  # fmt: skip
    plain, longer, other = map(
        hidden_states, ("a photo of a toy", "a photo of a toy in snow", "a photo of red toy")
    )
    assert torch.allclose(plain[:6], longer[:6], atol=1e-5)
    assert not torch.allclose(plain[-1], longer[-1], atol=1e-3)
    assert not torch.allclose(plain[5], other[5], atol=1e-3)


def test_the_nearest_word_is_the_word_itself(small_model):
    parts = models.load(small_model)
    table = parts.text_encoder.get_input_embeddings().weight
    words = whole_words(parts.tokenizer).items()
    reached = [(w, n) for w, n in words if len(parts.tokenizer.tokenize(w)) == 1]  # merges win
    for word, number in reached[:5]:
        vector = token_embedding.vector_of(parts, word)
        assert torch.equal(vector, table[number])
        found = token_embedding.neighbors(parts, 3 * vector, 4)
        assert found[0] == (word, pytest.approx(1.0, abs=1e-5))
        assert [value for _, value in found] == sorted((v for _, v in found), reverse=True)
    learned = token_embedding.add_placeholder(parts, "<t>", vectors=table[[number]] * 2)
    assert torch.equal(
        token_embedding.vector_of(parts, "<t>"), token_embedding.rows_of(parts, learned)[0]
    )
    assert (
        token_embedding.neighbors(parts, token_embedding.vector_of(parts, "<t>"), 1)[0][0] == word
    )
    everything = token_embedding.neighbors(parts, vector, 10**6)
    assert {name for name, _ in everything} == {w for w in WORDS if len(w) > 2}


def test_a_blend_is_drawn_and_leaves_no_trace(small_model):
    parts = models.load(small_model)
    tokenizer, table = parts.tokenizer, parts.text_encoder.get_input_embeddings()
    pages = {amount: explore.blend_preview(parts, "cat", " dog", amount) for amount in (0, 0.5, 1)}
    assert "Nearest words: cat 1.00" in output.alt_text(pages[0])
    assert "Nearest words: dog 1.00" in output.alt_text(pages[1])
    assert output.alt_text(pages[0.5]).startswith("50% cat + 50%")
    assert all(len(figure.axes) == 2 for figure in pages.values()), "bars and a picture"
    with pytest.raises(InputError, match="but must be one"):
        explore.blend_preview(parts, "cat", "catdogcat", 0.5)
    assert parts.tokenizer is tokenizer
    assert parts.text_encoder.get_input_embeddings() is table


def test_the_explorer_shows_each_change_and_survives_a_wrong_word(small_model):
    pytest.importorskip("ipywidgets")
    first, second, amount, page = widgets.embedding_explorer(
        models.load(small_model), "cat", "dog"
    ).children
    shown = [page.value]
    for control, value in ((amount, 0.0), (second, "horse"), (first, "catdogcat"), (first, "red")):
        control.value = value
        shown.append(page.value)
    assert len(set(shown)) == 5
    assert "but must be one" in shown[3] and "<img" not in shown[3]
    assert all('<img alt="' in text for text in (*shown[:3], shown[4]))
    assert "Nearest words: red 1.00" in shown[4]


def test_solutions_are_right_and_stubs_not_yet():
    for name in ("nearest", "look_up", "write_out"):
        check = getattr(exercises, f"check_{name}")
        assert check(SOLUTIONS[name]).startswith("right"), check(SOLUTIONS[name])
        stub = defined_in(f"exercise-{NUMBER[name]}-code", name, exercises=exercises, torch=torch)
        assert check(stub).startswith("not yet")


NUMBER = {"nearest": 1, "look_up": 2, "write_out": 3}


@pytest.mark.parametrize(
    "function",
    [
        lambda vector, table, count: (table @ vector).topk(count).indices,  # length counts, too
        lambda vector, table, count: (
            (table - vector).norm(dim=1).topk(count, largest=False).indices
        ),
        lambda vector, table, count: (table @ vector / table.norm(dim=1)).topk(count).values,
        lambda vector, table, count: [1],
        lambda vector, table: 0,
        max,
    ],
)
def test_wrong_neighbors_are_refused(function):
    assert exercises.check_nearest(function).startswith("not quite")


def writes_into_the_table(input_ids, table, rows, first_id):
    table[0] = rows[0]
    return SOLUTIONS["look_up"](input_ids, table, rows, first_id)


def only_the_first_place(input_ids, table, rows, first_id):
    vectors = torch.cat([table, rows.detach()])[input_ids]
    places = (input_ids == first_id).nonzero()
    vectors[tuple(places[0])] = rows[0]
    return vectors


@pytest.mark.parametrize(
    "function",
    [
        writes_into_the_table,
        only_the_first_place,
        lambda ids, table, rows, first: torch.cat([table, rows.detach()])[ids],
        lambda ids, table, rows, first: table[ids.clamp(max=first - 1)],
        lambda ids, table, rows, first: torch.cat([rows, table])[ids],
        lambda ids, table, rows, first: SOLUTIONS["look_up"](ids[:1], table, rows, first),
        lambda ids, table, rows, first: SOLUTIONS["look_up"](
            ids, table, rows[:1].expand(9, -1), first
        ),
        lambda ids, table, rows, first: SOLUTIONS["look_up"](ids, table, rows, first - 1),
        lambda ids: ids,
        7,
    ],
)
def test_wrong_lookups_are_refused(function):
    assert exercises.check_look_up(function).startswith("not quite")


def test_a_table_that_is_grown_each_time_is_right_if_slow():
    grown = lambda ids, table, rows, first: torch.cat([table, rows])[ids]  # noqa: E731
    assert exercises.check_look_up(grown).startswith("right")


SAVE, LOAD = SOLUTIONS["save_word"], SOLUTIONS["load_word"]


def test_the_solution_of_the_file_is_right_and_its_stub_not_yet():
    assert exercises.check_word_file(SAVE, LOAD).startswith("right")
    assert exercises.check_word_file(lambda *_: ..., lambda *_: ...).startswith("not yet")
    assert exercises.check_word_file(SAVE, lambda *_: ...).startswith("not yet")
    stub = [
        defined_in("exercise-4-code", name, exercises=exercises, torch=torch)
        for name in ("save_word", "load_word")
    ]
    assert exercises.check_word_file(*stub).startswith("not yet")


@pytest.mark.parametrize(
    "save, load",
    [
        (lambda path, token, rows: 1, LOAD),
        (lambda path, token, rows: SAVE(path, "word", rows), LOAD),
        (lambda path, token, rows: SAVE(path, token, rows[0]), LOAD),
        (lambda path, token, rows: SAVE(path, token, 2 * rows), lambda path: ("<my-toy>", 0.5)),
        (lambda path, token, rows: torch.save({token: rows}, path), torch.load),
        (SAVE, lambda path: LOAD(path)[1]),
        (SAVE, lambda path: ("<my-toy>", LOAD(path)[1])),
        (SAVE, lambda path: (LOAD(path)[0], 2 * LOAD(path)[1])),
        (SAVE, lambda: 1),
        (7, LOAD),
    ],
)
def test_wrong_files_are_refused(save, load):
    assert exercises.check_word_file(save, load).startswith("not quite")


@pytest.mark.parametrize(
    "function",
    [
        lambda prompt, word, n: prompt,
        lambda prompt, word, n: prompt.replace(word, " ".join([word] * n)),
        lambda prompt, word, n: prompt.replace(word, " ".join(f"{word}_{k}" for k in range(n))),
        lambda prompt, word, n: SOLUTIONS["write_out"](prompt, word, n) + " ",
        lambda prompt, word, n: prompt.replace(word, f"{word} {word}_1", 1),
        "a <toy> <toy>_1",
    ],
)
def test_wrong_prompts_are_refused(function):
    assert exercises.check_write_out(function).startswith("not quite")


def test_what_the_exercise_writes_is_what_the_module_writes(small_model):
    parts = models.load(small_model)
    for number, count in itertools.product(range(2), (2, 3)):
        word = token_embedding.add_placeholder(
            parts, f"<w{number}{count}>", initializer_token="toy", num_vectors=count
        )
        for prompt in (f"a photo of a {word.token}", f"{word.token} and {word.token}, in snow"):
            written = SOLUTIONS["write_out"](prompt, word.token, count)
            assert expand_prompt(parts.tokenizer, prompt) == written
