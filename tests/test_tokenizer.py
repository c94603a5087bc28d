"""Words in prompts: which one is meant where several match, and what is said of a prompt that is misread."""

from __future__ import annotations

import re
import types

import numpy as np
import pytest

from tiutils import tokenizer as words
from tiutils.errors import InputError
from tiutils.io import embeddings, pretrained
from tiutils.io.embeddings import LearnedEmbedding


@pytest.fixture(scope="module")
def plain():
    """The bundled model's tokenizer: 3436 whole words."""
    return pretrained.load_tokenizer(pretrained.BUNDLED_MODEL)


def knowing(tokenizer, **counts):
    """The tokenizer with new words, each of so many vectors."""
    for word, count in counts.items():
        tokenizer, _ = words.with_tokens(tokenizer, words.check_placeholder(tokenizer, word, count))
    return tokenizer


def read_as(tokenizer, prompt):
    """The tokens of a prompt, as a model is given them."""
    tokens = tokenizer.convert_ids_to_tokens(words.token_ids(tokenizer, [prompt])[0].tolist())
    return [token.removesuffix("</w>") for token in tokens[1 : tokens.index("<|endoftext|>")]]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "counts",
    [
        {"charturner": 2, "charturnerv2": 2},
        {"mycat": 2, "mycat-2": 2},
        {"zcat": 2, "my-zcat": 2},
        {"zcat": 2, "my-zcat-x": 1},
        {"zcat": 1, "my-zcat-x": 3},
        {"<a>": 2, "x<a>x": 3},
    ],
)
def test_the_longest_word_wins_and_its_tail_is_no_word(plain, counts, order):
    tokenizer = knowing(plain, **dict(list(counts.items())[::order]))
    for word, count in counts.items():
        tokens = [word, *(f"{word}_{n}" for n in range(1, count))]
        assert read_as(tokenizer, f"a {word} here") == ["a", *tokens, "here"]
    both = " and ".join(counts)
    assert words.expand_prompt(tokenizer, words.expand_prompt(tokenizer, both)) == (
        words.expand_prompt(tokenizer, both)
    )


@pytest.mark.parametrize(
    "word", [r"my\cat", r"my\1cat", r"my\ncat", r"\g<0>", "a.*b", "{x|y}", "<{}>"]
)
def test_a_word_of_any_letters_is_written_out_as_it_is(plain, word):
    tokenizer = knowing(plain, **{word: 3})
    assert words.expand_prompt(tokenizer, f"a {word} here") == f"a {word} {word}_1 {word}_2 here"
    assert read_as(tokenizer, f"a {word} here") == ["a", word, f"{word}_1", f"{word}_2", "here"]


@pytest.mark.parametrize(("first", "count", "second"), [("zcat", 1, "zcat_1"), ("zcat", 2, "zcat_2"),
                                                         ("zcat_1", 1, "zcat"), ("<z>", 3, "<z>_7")])  # fmt: skip
def test_a_word_that_would_be_a_vector_of_another_is_refused(plain, first, count, second):
    tokenizer = knowing(plain, **{first: count})
    with pytest.raises(InputError, match=r"already knows the token .* such as '<my-z"):
        words.check_placeholder(tokenizer, second)


@pytest.mark.parametrize(
    ("word", "longer"),
    [("coco", "coconut"), ("kit", "kitchen"), ("ike", "bike"), ("Coco", "coconut"), ("ropp", "cropped")],
)  # fmt: skip
def test_a_word_inside_other_words_is_warned_about(plain, word, longer, caplog):
    words.check_placeholder(plain, word)
    (message,) = caplog.messages
    assert f"{word!r} is also part of" in message and longer in message
    assert f"'<{word.lower()}>'" in message
    caplog.clear()
    words.check_placeholder(plain, f"<{word}>")
    words.check_placeholder(plain, "zwqx")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a zcat and a <toy>, <toy> <toy>_1.", None),
        ("a cat", None),
        ("", None),
        ("a <Toy>", r"has '<Toy>', but the learned word is '<toy>': case counts"),
        ("a Zcat", "has 'Zcat', but the learned word is 'zcat'"),
        ("two zcats", "'zcat' inside 'zcats', which is torn apart; .* '<zcat>'"),
        ("a lazyzcat", "'zcat' inside 'lazyzcat'"),
        ("very " * 80 + "<toy>", r"is cut after 75 of its 82 tokens: 'very very very very very <toy> ?<toy>_1' is not"),
        ("very " * 74 + "<toy>", r"is cut after 75 of its 76 tokens: '<toy>_1' is not read"),
        ("very " * 73 + "<toy>", None),
    ],
)  # fmt: skip
def test_what_a_prompt_does_not_say_is_said(plain, prompt, said, caplog):
    tokenizer = knowing(plain, **{"zcat": 1, "<toy>": 2})
    words.token_ids(tokenizer, [prompt, prompt])
    assert len(caplog.messages) == (said is not None)
    if said:
        assert "\n" not in caplog.messages[0]
        assert caplog.records[0].name == "tiutils"
        assert re.search(said, caplog.messages[0]), caplog.messages


def test_absent_words_are_those_that_no_prompt_holds_whole(plain):
    tokenizer = knowing(plain, **{"<one>": 1, "<two>": 2, "<cut>": 2, "<case>": 1})
    prompts = ["a <one>", "a <two> and a <Case>", "very " * 74 + "<cut>"]
    everything = ["<one>", "<two>", "<cut>", "<case>"]
    assert words.absent_words(tokenizer, prompts, everything) == ["<cut>", "<case>"]
    assert words.absent_words(tokenizer, [], everything) == everything


def test_of_a_file_with_several_words_the_one_named_is_read(plain, tmp_path):
    from safetensors.numpy import save_file

    rows = {"<a>": np.full((1, 8), 1, np.float32), "<b>": np.full((2, 8), 2, np.float32)}
    save_file(rows, tmp_path / "two.safetensors")
    parts = types.SimpleNamespace(name="m", tokenizer=plain, hidden_sizes=(8,))
    read = words.read_word(parts, tmp_path / "two.safetensors", "<b>")
    assert read.token == "<b>" and (read.vectors == 2).all()
    for name in (None, "<c>"):
        with pytest.raises(
            InputError, match=r"2 words .*FILE=<a>.*convert FILE OUT --word"
        ) as caught:
            words.read_word(parts, tmp_path / "two.safetensors", name)
        assert "\n" not in str(caught.value)
    embeddings.write(tmp_path / "one.safetensors", LearnedEmbedding("<a>", rows["<a>"]))
    assert words.read_word(parts, tmp_path / "one.safetensors", "<c>").token == "<c>"
