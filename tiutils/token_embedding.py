"""Tokenizer surgery: a new word, its ids, and the rows of the embedding table that will be learned.

The table itself is never resized or copied. The text encoder's input embedding is wrapped in a `TokenEmbedding`, which
looks up new ids in a small trainable parameter and all other ids in the frozen table. No gradient and no optimizer
ever reaches a frozen row, so it cannot move.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from tiutils.errors import InputError
from tiutils.models import Models
from tiutils.tokenizer import (
    Placeholder,
    check_initializer,
    check_new_word,
    check_width,
    median_norm,
    token_ids,
    whole_words,
    with_tokens,
)


class TokenEmbedding(nn.Module):
    """An embedding table with rows of its own for the ids from `first_id` on.

    Attributes:
        table: the frozen embedding (or another `TokenEmbedding`, when a second word is added).
        rows: float32 parameter of shape `(num_vectors, hidden)`, the only one that is trained. Several text encoders
            share it: each has its own `columns`.
        tokenizer_before: the tokenizer as it was without this word, for `remove_placeholder`.
    """

    def __init__(
        self,
        table: nn.Module,
        rows: Tensor,
        first_id: int,
        tokenizer_before: CLIPTokenizer,
        columns: slice = slice(None),
    ):
        super().__init__()
        self.table = table  # first: libraries take a module's dtype from its first parameter
        self.rows: nn.Parameter = (
            rows if isinstance(rows, nn.Parameter) else nn.Parameter(rows.detach().float().clone())
        )
        self.columns = columns
        self.first_id = first_id
        self.tokenizer_before = tokenizer_before

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up ids of shape `(batch, tokens)`; returns vectors of shape `(batch, tokens, hidden)`."""
        is_new = input_ids >= self.first_id
        vectors = self.table(input_ids.masked_fill(is_new, 0))
        new_vectors = F.embedding(
            (input_ids - self.first_id).clamp(min=0), self.rows[:, self.columns]
        )
        return torch.where(is_new.unsqueeze(-1), new_vectors.to(vectors.dtype), vectors)


def add_placeholder(
    models: Models,
    token: str,
    *,
    initializer_token: str | None = None,
    vectors: Tensor | None = None,
    num_vectors: int = 1,
) -> Placeholder:
    """Add a new word to the model: ids to its tokenizer, rows to its embedding.

    The rows start as copies of the initializer token's vector, or as `vectors`, of shape `(num_vectors, hidden)`.

    Raises:
        InputError: see `check_new_word`; or `vectors` has another width than the model.
    """
    tokens, start = check_new_word(models, token, initializer_token, num_vectors, vectors)
    if vectors is None:
        vectors = _look_up(models, start)
    return insert_placeholder(models, tokens, vectors, initializer_token)


def insert_placeholder(
    models: Models, tokens: Sequence[str], vectors: Tensor, initializer_token: str | None = None
) -> Placeholder:
    """Add a word with tokens from `check_placeholder`; its rows start as `vectors`, `(len(tokens), hidden)`.

    Raises:
        InputError: the vectors have another width than the model.
    """
    check_width(tokens[0], vectors.shape[1], models.name, models.hidden_size)
    rows = nn.Parameter(vectors.detach().float().clone().to(models.device))
    last, tokenizers = 0, []
    for encoder, before in zip(models.text_encoders, models.tokenizers, strict=True):
        first, last = last, last + encoder.config.hidden_size
        longer, ids = with_tokens(before, tokens)  # the same ids in each: they share a vocabulary
        table = encoder.get_input_embeddings()
        columns = slice(first, last)
        encoder.set_input_embeddings(TokenEmbedding(table, rows, ids[0], before, columns))
        tokenizers.append(longer)
    models.tokenizers = tuple(tokenizers)
    return Placeholder(tokens[0], tuple(tokens), ids, initializer_token)


def _look_up(models: Models, ids: Sequence[int]) -> Tensor:
    """The vectors of these ids, learned or not: `(len(ids), hidden)`."""
    numbers = torch.tensor(ids, device=models.device)
    tables = (encoder.get_input_embeddings() for encoder in models.text_encoders)
    return torch.cat([table(numbers) for table in tables], dim=1)


@torch.no_grad()
def start_vectors(models: Models, ids: Sequence[int]) -> Tensor:
    """The vectors that a run's rows start from, float32 `(len(ids), hidden)`: the table's rows of `ids`."""
    return _look_up(models, ids).float()


def remove_placeholder(models: Models, placeholder: Placeholder) -> None:
    """Remove the word that was added last, and restore tokenizer and embedding.

    Raises:
        InputError: another word was added after it.
    """
    embeddings = [encoder.get_input_embeddings() for encoder in models.text_encoders]
    last = embeddings[0]
    if not isinstance(last, TokenEmbedding) or last.first_id != placeholder.ids[0]:
        raise InputError(
            f"{placeholder.token!r} is not the word that was added last; remove the later ones first"
        )
    for encoder, embedding in zip(models.text_encoders, embeddings, strict=True):
        encoder.set_input_embeddings(embedding.table)
    models.tokenizers = tuple(embedding.tokenizer_before for embedding in embeddings)


def rows_of(models: Models, placeholder: Placeholder) -> nn.Parameter:
    """The word's rows, float32 of shape `(num_vectors, hidden)`: a parameter, not a copy."""
    embedding = models.text_encoder.get_input_embeddings()
    while isinstance(embedding, TokenEmbedding):
        if embedding.first_id == placeholder.ids[0]:
            return embedding.rows
        embedding = embedding.table
    raise InputError(f"the model has no word {placeholder.token!r}")


def table_of(models: Models, encoder: int = 0) -> Tensor:
    """The frozen rows that the model came with, of its first or another text encoder: `(tokens, hidden)`."""
    embedding = models.text_encoders[encoder].get_input_embeddings()
    while isinstance(embedding, TokenEmbedding):
        embedding = embedding.table
    return embedding.weight.detach()


def median_norms(models: Models) -> tuple[float, ...]:
    """The median norm of the rows of each text encoder's table, see `tokenizer.median_norm`."""
    tables = (table_of(models, k) for k in range(len(models.text_encoders)))
    return tuple(median_norm(table.float().cpu().numpy()) for table in tables)


@torch.no_grad()
def usual_norms(models: Models, placeholder: Placeholder) -> tuple[float, ...]:
    """The norm that norm control pulls a word's rows toward, for each text encoder: the mean of its initializer's rows.

    Without an initializer it is the table's median, in which words that the model hardly ever saw count as well: in the
    bundled model it is 0.32, while nouns have 0.60.
    """
    if not placeholder.initializer_token:
        return median_norms(models)
    ids = models.tokenizer.encode(placeholder.initializer_token, add_special_tokens=False)
    halves = _look_up(models, ids).float().split(models.hidden_sizes, dim=1)
    return tuple(half.norm(dim=1).mean().item() for half in halves)


@torch.no_grad()
def vector_of(models: Models, word: str) -> Tensor:
    """A copy of the row of a word that is a single token, learned or not: float32 `(hidden,)`.

    Raises:
        InputError: the word is several tokens; see `check_initializer`.
    """
    return _look_up(models, [check_initializer(models.tokenizer, word)])[0].float()


@torch.no_grad()
def neighbors(models: Models, vector: Tensor, count: int = 8) -> list[tuple[str, float]]:
    """The `whole_words` whose rows are most similar to `vector`, `(hidden,)`.

    Returns:
        words with their cosine similarity, from -1 to 1, the most similar first.
    """
    words = whole_words(models.tokenizer)
    rows = _look_up(models, list(words.values())).float()
    likeness = F.cosine_similarity(rows, vector.to(rows), dim=1)
    best = likeness.topk(min(count, len(words)))
    names = list(words)
    return [(names[i], best.values[k].item()) for k, i in enumerate(best.indices.tolist())]


def merged(models: Models) -> Models:
    """The model with copies of its text encoders that have learned rows in plain, longer tables, for any program."""
    encoders = tuple(_merged(encoder, len(models.tokenizer)) for encoder in models.text_encoders)
    return dataclasses.replace(models, text_encoders=encoders)


def _merged(text_encoder: CLIPTextModel, num_tokens: int) -> CLIPTextModel:
    layers = []
    table = text_encoder.get_input_embeddings()
    while isinstance(table, TokenEmbedding):
        layers.append(table)
        table = table.table
    hidden_size = table.weight.shape[1]
    longer = nn.Embedding(
        max(num_tokens, table.num_embeddings), hidden_size, dtype=table.weight.dtype
    )
    with torch.no_grad():
        longer.weight[: table.num_embeddings] = table.weight.cpu()
        for layer in layers:
            rows = layer.rows[:, layer.columns].cpu()
            longer.weight[layer.first_id : layer.first_id + len(rows)] = rows
    text_encoder = copy.deepcopy(text_encoder).cpu()
    text_encoder.set_input_embeddings(longer)
    text_encoder.config.vocab_size = longer.num_embeddings
    return text_encoder


def tokenize(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> Tensor:
    """Ids of the prompts, see `tokenizer.token_ids`: int64 of shape `(prompts, model_max_length)`."""
    return torch.from_numpy(token_ids(tokenizer, prompts))
