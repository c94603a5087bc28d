"""New words in a tokenizer: what may be one, the tokens and ids it gets, prompts with it as ids.

Needs neither PyTorch nor JAX; the rows that the ids stand for are the matter of `token_embedding` and of
`flax.token_embedding`.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, CLIPTokenizer

from tiutils.config import TrainingConfig
from tiutils.errors import InputError
from tiutils.io import embeddings
from tiutils.io.embeddings import LearnedEmbedding


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


def check_placeholder(
    tokenizer: CLIPTokenizer, token: str, num_vectors: int = 1
) -> tuple[str, ...]:
    """The tokens that a new word of `num_vectors` vectors will have; refuses a word that cannot be one.

    Raises:
        InputError: the word is empty, contains white space, is known already, or `num_vectors` does not fit a prompt.
    """
    if not token or " " in token or not token.isprintable():  # other white space is not printable
        raise InputError(
            f"the placeholder token {token!r} must be one word without spaces, such as '<my-toy>'"
        )
    embeddings.check_word(token)
    room = tokenizer.model_max_length - 2  # the start and end tokens
    if not 1 <= num_vectors < room:
        raise InputError(
            f"num_vectors is {num_vectors}; it must be from 1 to {room - 1}: a prompt holds {room} tokens"
        )
    tokens = (token, *(f"{token}_{i}" for i in range(1, num_vectors)))
    known = tokenizer.get_vocab()

    def is_taken(
        word: str,
    ) -> bool:  # `toy` is stored as `toy</w>`: the mark says that it ends there
        return word in known or f"{word.lower()}</w>" in known

    clashes = [t for t in tokens if is_taken(t)]
    if clashes:
        stem = f"my-{token.strip('<>').lower()}"
        names = (f"<{stem}>", *(f"<{stem}-{n}>" for n in range(2, len(known) + 3)))
        raise InputError(
            f"the tokenizer already knows the token {clashes[0]!r}, so it cannot be a new word; "
            f"choose another placeholder, such as {next(n for n in names if not is_taken(n))!r}"
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


def initializer_ids(tokenizer: CLIPTokenizer, config: TrainingConfig) -> tuple[int, ...]:
    """Ids of the tokens that a run's rows start from, one for each row.

    Raises:
        InputError: see `check_initializer`; or the phrase is empty, or its tokens are not `num_vectors`.
    """
    phrase = config.initializer_phrase
    if phrase is None:
        return (check_initializer(tokenizer, config.initializer_token),) * config.num_vectors
    ids = tuple(tokenizer.encode(phrase, add_special_tokens=False))
    if not ids or config.num_vectors not in (1, len(ids)):
        raise InputError(
            f"the initializer phrase {phrase!r} is {len(ids)} tokens, and each gives one vector; use "
            f"a phrase of --num_vectors {config.num_vectors} tokens, or leave that flag out"
        )
    return ids


def whole_words(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """The vocabulary's words of three letters or more, which are single tokens, with their ids."""
    return {
        token.removesuffix("</w>"): number
        for token, number in tokenizer.get_vocab().items()
        if re.fullmatch("[a-z]{3,}</w>", token)
    }


def nearest_words(tokenizer: CLIPTokenizer, text: str, count: int = 5) -> list[str]:
    """Whole words of the vocabulary that are spelled most like `text`: those inside it first, then by similarity."""
    import difflib

    words = whole_words(tokenizer)
    inside = [word for word in re.findall(r"\w+", text.lower()) if word in words]
    similar = difflib.get_close_matches(text.lower(), words, n=count, cutoff=0.0)
    return list(dict.fromkeys([*inside, *similar]))[:count]


def with_tokens(
    tokenizer: CLIPTokenizer, tokens: Sequence[str]
) -> tuple[CLIPTokenizer, tuple[int, ...]]:
    """A copy of the tokenizer that knows `tokens`, and their ids; the one given stays as it is."""
    longer = copy.deepcopy(tokenizer)
    # normalized=False: CLIP lower-cases its input, and `<Cat>` and `<cat>` would be one word otherwise
    longer.add_tokens([AddedToken(t, normalized=False, special=False) for t in tokens])
    return longer, tuple(longer.convert_tokens_to_ids(list(tokens)))


def check_width(token: str, width: int, model: str, hidden_size: int) -> None:
    """Refuse vectors that were learned for another model.

    Raises:
        InputError: names both widths.
    """
    if width != hidden_size:
        raise InputError(
            f"the vectors of {token!r} are {width} wide, but {model} has {hidden_size}: "
            f"they were learned for another model"
        )


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


def token_ids(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> np.ndarray:
    """Ids of the prompts, learned words written out, padded or cut: int64 of shape `(prompts, model_max_length)`."""
    ids = tokenizer(
        [expand_prompt(tokenizer, prompt) for prompt in prompts],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="np",
    ).input_ids
    return ids.astype(np.int64)


def read_word(models: Any, path: str | Path, token: str | None = None) -> LearnedEmbedding:
    """Read a learned embedding that `models`, of either framework, can be given as a new word.

    Args:
        models: the loaded parts.
        path: a file, folder or Hub repository that `embeddings.read` understands.
        token: the word to use instead of the one in the file.

    Raises:
        InputError: the file cannot be read, was learned with a model of another width or of
            several text encoders, or the word is taken or cannot be one: another is offered.
    """
    learned = embeddings.read(path)
    learned.refuse_pair()
    word, (count, width) = token or learned.token, learned.vectors.shape
    check_width(word, width, models.name, models.hidden_size)
    try:
        check_placeholder(models.tokenizer, word, count)
    except InputError as error:
        raise InputError(
            f"{path}: {error} (token=... in Python, --embedding 'FILE=<name>' on the command line)"
        ) from None
    return dataclasses.replace(learned, token=word)


def usual_length(table: np.ndarray) -> float:
    """The median length of a table's rows, `(tokens, hidden)`: what the model takes for a word.

    Learned rows grow far beyond it if nothing holds them (the aim is OneTrainer's).
    """
    return float(np.median(np.linalg.norm(table.astype(np.float32), axis=1)))
