"""Tokenizer surgery: a new word, its ids, and the rows of the embedding table that will be learned.

The table itself is never resized or copied. The text encoder's input embedding is wrapped in a `TokenEmbedding`, which
looks new ids up in a small trainable parameter and all other ids in the frozen table. That a frozen row cannot move is
then no promise but a fact: no gradient and no optimizer ever sees it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AddedToken, CLIPTokenizer

from tiutils.errors import InputError
from tiutils.models import Models


@dataclass(frozen=True)
class Placeholder:
    """A word the model is taught. With several vectors it stands for several tokens: `<toy> <toy>_1 <toy>_2`."""

    token: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    initializer_token: str | None = None

    @property
    def num_vectors(self) -> int:
        """How many rows of the embedding table the word has."""
        return len(self.tokens)


class TokenEmbedding(nn.Module):
    """An embedding table with rows of its own for the ids from `first_id` on.

    Attributes:
        table: the frozen embedding (or another `TokenEmbedding`, when a second word is added).
        rows: float32 parameter of shape `(num_vectors, hidden)`, the only one that trains.
        tokenizer_before: the tokenizer as it was without this word, for `remove_placeholder`.
    """

    def __init__(
        self, table: nn.Module, rows: Tensor, first_id: int, tokenizer_before: CLIPTokenizer
    ):
        super().__init__()
        self.table = (
            table  # registered first: libraries take a module's dtype from its first parameter
        )
        self.rows = nn.Parameter(rows.detach().float().clone())
        self.first_id = first_id
        self.tokenizer_before = tokenizer_before

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up ids of shape `(batch, tokens)`; returns vectors of shape `(batch, tokens, hidden)`."""
        is_new = input_ids >= self.first_id
        vectors = self.table(input_ids.masked_fill(is_new, 0))
        new_vectors = F.embedding((input_ids - self.first_id).clamp(min=0), self.rows)
        return torch.where(is_new.unsqueeze(-1), new_vectors.to(vectors.dtype), vectors)


def check_placeholder(
    tokenizer: CLIPTokenizer, token: str, num_vectors: int = 1
) -> tuple[str, ...]:
    """The tokens that a new word of `num_vectors` vectors will have; refuses a word that cannot be one.

    Raises:
        InputError: the word is empty, contains white space, is known already, or `num_vectors` does not fit a prompt.
    """
    if not token or token != token.strip() or re.search(r"\s", token):
        raise InputError(
            f"the placeholder token {token!r} must be one word without spaces, such as '<my-toy>'"
        )
    room = tokenizer.model_max_length - 2  # the start and end tokens
    if not 1 <= num_vectors < room:
        raise InputError(
            f"num_vectors is {num_vectors}; it must be from 1 to {room - 1}: a prompt holds {room} tokens"
        )
    tokens = (token, *(f"{token}_{i}" for i in range(1, num_vectors)))
    known = tokenizer.get_vocab()
    # `toy` is stored as `toy</w>`: the mark says that the word ends there
    clashes = [t for t in tokens if t in known or f"{t.lower()}</w>" in known]
    if clashes:
        raise InputError(
            f"the tokenizer already knows the token {clashes[0]!r}, so it cannot be a new word; "
            f"choose another placeholder, such as '<my-{token.strip('<>').lower()}>'"
        )
    return tokens


def check_initializer(tokenizer: CLIPTokenizer, initializer_token: str) -> int:
    """The id of a word to start from; it must be a single token.

    Raises:
        InputError: the word is empty, or several tokens: then they are named, with single tokens near them.
    """
    ids = tokenizer.encode(initializer_token, add_special_tokens=False)
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise InputError(
            "the initializer token is empty; give one common word for what the photos show, such as 'toy'"
        )
    pieces = [piece.replace("</w>", "") for piece in tokenizer.convert_ids_to_tokens(ids)]
    near = ", ".join(map(repr, nearest_words(tokenizer, initializer_token)))
    raise InputError(
        f"the initializer token {initializer_token!r} is {len(ids)} tokens ({' + '.join(pieces)}), but must be one; "
        f"single tokens near it: {near}"
    )


def nearest_words(tokenizer: CLIPTokenizer, text: str, count: int = 5) -> list[str]:
    """Whole words of the vocabulary that are spelled most like `text`: those inside it first, then by similarity."""
    import difflib

    words = {
        token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>")
    }
    words = {word for word in words if len(word) > 2 and word.isalpha()}
    inside = [word for word in re.findall(r"\w+", text.lower()) if word in words]
    similar = difflib.get_close_matches(text.lower(), words, n=count, cutoff=0.0)
    return list(dict.fromkeys([*inside, *similar]))[:count]


def add_placeholder(
    models: Models,
    token: str,
    *,
    initializer_token: str | None = None,
    vectors: Tensor | None = None,
    num_vectors: int = 1,
) -> Placeholder:
    """Give the model a new word: ids in its tokenizer, rows beside its embedding table.

    The rows start as copies of the initializer token's vector, or as `vectors`, of shape `(num_vectors, hidden)`.

    Raises:
        InputError: see `check_placeholder` and `check_initializer`; or `vectors` has another width than the model.
    """
    table = models.text_encoder.get_input_embeddings()
    if vectors is not None:
        num_vectors = len(vectors)
        if vectors.shape[1] != models.hidden_size:
            raise InputError(
                f"the vectors of {token!r} are {vectors.shape[1]} wide, but {models.name} has {models.hidden_size}: "
                f"they were learned for another model"
            )
    tokens = check_placeholder(models.tokenizer, token, num_vectors)
    if vectors is None:
        if initializer_token is None:
            raise InputError(
                f"the new word {token!r} needs an initializer token or vectors to start from"
            )
        start = torch.tensor(
            [check_initializer(models.tokenizer, initializer_token)], device=models.device
        )
        vectors = table(start).expand(num_vectors, -1)

    before = models.tokenizer
    models.tokenizer = copy.deepcopy(before)
    # normalized=False: CLIP lower-cases its input, and `<Cat>` and `<cat>` would be one word otherwise
    models.tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in tokens])
    ids = tuple(models.tokenizer.convert_tokens_to_ids(list(tokens)))
    rows = vectors.to(models.device)
    models.text_encoder.set_input_embeddings(TokenEmbedding(table, rows, ids[0], before))
    return Placeholder(token, tokens, ids, initializer_token)


def remove_placeholder(models: Models, placeholder: Placeholder) -> None:
    """Take back the word that was added last: tokenizer and embedding are as before.

    Raises:
        InputError: another word was added after it.
    """
    embedding = models.text_encoder.get_input_embeddings()
    if not isinstance(embedding, TokenEmbedding) or embedding.first_id != placeholder.ids[0]:
        raise InputError(
            f"{placeholder.token!r} is not the word that was added last; remove the later ones first"
        )
    models.text_encoder.set_input_embeddings(embedding.table)
    models.tokenizer = embedding.tokenizer_before


def rows_of(models: Models, placeholder: Placeholder) -> nn.Parameter:
    """The word's rows, float32 of shape `(num_vectors, hidden)`: a parameter, not a copy."""
    embedding = models.text_encoder.get_input_embeddings()
    while isinstance(embedding, TokenEmbedding):
        if embedding.first_id == placeholder.ids[0]:
            return embedding.rows
        embedding = embedding.table
    raise InputError(f"the model has no word {placeholder.token!r}")


def merged(models: Models) -> Models:
    """A copy of the text encoder with all learned rows in a plain, longer table; the other parts are shared.

    That is what a program that knows nothing of `TokenEmbedding` can read.
    """
    layers = []
    table = models.text_encoder.get_input_embeddings()
    while isinstance(table, TokenEmbedding):
        layers.append(table)
        table = table.table
    hidden_size = table.weight.shape[1]
    longer = nn.Embedding(
        max(len(models.tokenizer), table.num_embeddings), hidden_size, dtype=table.weight.dtype
    )
    with torch.no_grad():
        longer.weight[: table.num_embeddings] = table.weight.cpu()
        for layer in layers:
            longer.weight[layer.first_id : layer.first_id + len(layer.rows)] = layer.rows.cpu()
    text_encoder = copy.deepcopy(models.text_encoder).cpu()
    text_encoder.set_input_embeddings(longer)
    text_encoder.config.vocab_size = longer.num_embeddings
    return dataclasses.replace(models, text_encoder=text_encoder)


def expand_prompt(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """Write each learned word of several vectors out: `a <toy>` becomes `a <toy> <toy>_1`."""
    added = tokenizer.get_added_vocab()
    for token in added:
        tail: list[str] = []
        while (next_token := f"{token}_{len(tail) + 1}") in added:
            tail.append(next_token)
        if tail:  # not before its own tail, and not inside `<toy>_1`
            already = re.escape(" " + " ".join(tail))
            prompt = re.sub(
                re.escape(token) + rf"(?!{already})(?!_\d)", " ".join([token, *tail]), prompt
            )
    return prompt


def tokenize(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> Tensor:
    """Ids of the prompts, learned words written out, padded or cut: int64 of shape `(prompts, model_max_length)`."""
    return tokenizer(
        [expand_prompt(tokenizer, prompt) for prompt in prompts],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids
