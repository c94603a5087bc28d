"""Tokenizer surgery: new ids, their rows, and nothing else changed."""

from __future__ import annotations

import pytest
import torch

from tiutils import models, token_embedding
from tiutils.errors import InputError
from tiutils.tokenizer import check_initializer, expand_prompt


@pytest.fixture
def parts(small_model):
    return models.load(small_model)


def add(parts, token="<my-toy>", **options):
    return token_embedding.add_placeholder(parts, token, **{"initializer_token": "toy"} | options)


def test_rows_start_as_copies_of_the_initializer(parts):
    table = parts.text_encoder.get_input_embeddings()
    toy = check_initializer(parts.tokenizer, "toy")
    placeholder = add(parts, num_vectors=3)
    rows = token_embedding.rows_of(parts, placeholder)
    assert rows.shape == (3, 32) and rows.requires_grad and rows.dtype == torch.float32
    assert (rows == table.weight[toy]).all()
    assert placeholder.tokens == ("<my-toy>", "<my-toy>_1", "<my-toy>_2")
    assert placeholder.ids == (595, 596, 597), "ids follow the vocabulary"


def test_the_table_is_neither_copied_nor_resized(parts):
    table = parts.text_encoder.get_input_embeddings()
    before = table.weight.data_ptr(), table.weight.shape
    add(parts, num_vectors=2)
    inner = parts.text_encoder.get_input_embeddings().table
    assert inner is table and (table.weight.data_ptr(), table.weight.shape) == before


def test_lookup_equals_a_longer_table(parts):
    """Against an ordinary embedding table with the rows appended."""
    placeholder = add(parts, num_vectors=2)
    rows = token_embedding.rows_of(parts, placeholder)
    torch.nn.init.normal_(rows)
    embedding = parts.text_encoder.get_input_embeddings()
    longer = torch.cat([embedding.table.weight, rows])
    ids = torch.tensor([[0, 594, 595, 3], [596, 595, 12, 596]])
    assert torch.equal(embedding(ids), longer[ids])

    embedding(ids).pow(2).sum().backward()
    reference = rows.detach().clone().requires_grad_()
    torch.cat([embedding.table.weight, reference])[ids].pow(2).sum().backward()
    assert torch.allclose(rows.grad, reference.grad)
    assert embedding.table.weight.grad is None


@pytest.mark.parametrize("token", ["<Cat-Toy>", "<cat-toy>", "sks", "<wood toy>".replace(" ", "_")])
def test_a_word_is_one_token_anywhere_in_a_prompt(parts, token):
    placeholder = add(parts, token)
    for prompt in (f"a photo of a {token} in snow", f"{token}, {token}!", f"A {token}."):
        ids = token_embedding.tokenize(parts.tokenizer, [prompt])[0].tolist()
        assert ids.count(placeholder.ids[0]) == prompt.count(token), prompt


def test_mixed_case_words_stay_apart(parts):
    upper, lower = add(parts, "<My-Toy>", num_vectors=2), add(parts, "<my-toy>")
    ids = token_embedding.tokenize(parts.tokenizer, ["a <My-Toy> and a <my-toy>"])[0].tolist()
    assert [i for i in ids if i >= 595] == [*upper.ids, *lower.ids]


def test_several_vectors_are_written_out_once(parts):
    add(parts, num_vectors=2)
    written = "a <my-toy> <my-toy>_1 in sand"
    assert expand_prompt(parts.tokenizer, "a <my-toy> in sand") == written
    assert expand_prompt(parts.tokenizer, written) == written


def test_two_words_in_one_prompt(parts):
    first, second = add(parts, "<one>"), add(parts, "<two>", initializer_token="cat")
    rows = [token_embedding.rows_of(parts, word) for word in (first, second)]
    ids = torch.tensor([[first.ids[0], second.ids[0]]])
    assert torch.equal(parts.text_encoder.get_input_embeddings()(ids)[0], torch.cat(rows))


def test_undo_restores_tokenizer_and_embedding(parts):
    tokenizer, table = parts.tokenizer, parts.text_encoder.get_input_embeddings()
    first = add(parts, "<one>")
    second = add(parts, "<two>")
    with pytest.raises(InputError, match="added last"):
        token_embedding.remove_placeholder(parts, first)
    token_embedding.remove_placeholder(parts, second)
    token_embedding.remove_placeholder(parts, first)
    assert parts.tokenizer is tokenizer and "<one>" not in tokenizer.get_vocab()
    assert parts.text_encoder.get_input_embeddings() is table


def test_merged_text_encoder_says_the_same(parts):
    add(parts, "<one>", num_vectors=2)
    placeholder = add(parts, "<two>")
    torch.nn.init.normal_(token_embedding.rows_of(parts, placeholder))
    plain = token_embedding.merged(parts)
    ids = token_embedding.tokenize(parts.tokenizer, ["a photo of <one> and <two>"])
    assert torch.equal(plain.text_encoder(ids)[0], parts.text_encoder(ids)[0])
    assert plain.text_encoder.get_input_embeddings().num_embeddings == len(parts.tokenizer)
    assert isinstance(parts.text_encoder.get_input_embeddings(), token_embedding.TokenEmbedding)


@pytest.mark.parametrize(
    ("token", "options", "message"),
    [
        ("", {}, "must be one word"),
        ("two words", {}, "must be one word"),
        (" <x>", {}, "must be one word"),
        ("<\x1b[31mx>", {}, "must be one word"),
        ("toy", {}, "already knows the token 'toy'"),
        ("Toy", {}, "already knows"),
        ("<|endoftext|>", {}, "already knows"),
        ("<x>", {"num_vectors": 0}, "num_vectors is 0"),
        ("<x>", {"num_vectors": 76}, "num_vectors is 76"),
        ("<x>", {"initializer_token": "wooden toy"}, r"7 tokens \(w \+ o.*near it: 'toy'"),
        ("<x>", {"initializer_token": ""}, "initializer token is empty"),
        ("<x>", {"initializer_token": None}, "needs an initializer"),
        ("<x>", {"vectors": torch.zeros(1, 768)}, "768 wide, but .* has 32"),
    ],
)
def test_refusals_leave_the_model_as_it_was(parts, token, options, message):
    tokenizer, table = parts.tokenizer, parts.text_encoder.get_input_embeddings()
    with pytest.raises(InputError, match=message):
        add(parts, token, **options)
    assert parts.tokenizer is tokenizer and parts.text_encoder.get_input_embeddings() is table
