"""New words in a tokenizer: which words are allowed, their tokens and ids, and prompts as ids.

Needs neither PyTorch nor JAX; the rows that belong to the ids are in `token_embedding` and `flax.token_embedding`.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, CLIPTokenizer

from tiutils.errors import InputError
from tiutils.io import embeddings, pretrained
from tiutils.io.embeddings import LearnedEmbedding

logger = logging.getLogger("tiutils")
SHOWN = 40  # characters of a prompt in a warning


@dataclass(frozen=True)
class Placeholder:
    """A word the model is taught; with several vectors it is several tokens: `<toy> <toy>_1 <toy>_2`."""

    token: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    initializer_token: str | None = None

    @property
    def num_vectors(self) -> int:
        """How many rows of the embedding table the word has."""
        return len(self.tokens)


def check_placeholder(
    tokenizer: CLIPTokenizer, token: str, num_vectors: int = 1, *, warn: bool = True
) -> tuple[str, ...]:
    """The tokens that a new word of `num_vectors` vectors will have.

    A word that is part of the vocabulary's words works, but tears them apart, here and in every other program, which
    `warn_of_torn_words` says.

    Raises:
        InputError: the word is empty, contains white space, or is already known; or a prompt has no room for its
            vectors.
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
    tokens = _tokens(token, num_vectors)
    if clash := find_clash(tokenizer, token, num_vectors):
        stem = f"my-{token.strip('<>').lower()}"
        names = (f"<{stem}>", *(f"<{stem}-{n}>" for n in range(2, len(tokenizer) + 3)))
        free = next(name for name in names if not find_clash(tokenizer, name, num_vectors))
        raise InputError(
            f"the tokenizer already knows the token {clash!r}, so {token!r} cannot be a new word; "
            f"choose another placeholder, such as {free!r}"
        )
    if warn:
        warn_of_torn_words(tokenizer, token)
    return tokens


def warn_of_torn_words(tokenizer: CLIPTokenizer, token: str) -> None:
    """Warn of words in the vocabulary that contain `token`, and would be split there."""
    torn = [word for word in whole_words(tokenizer) if token.lower() in word]
    if torn:
        some = ", ".join(map(repr, torn[:3])) + (", …" if len(torn) > 3 else "")
        logger.warning(
            f"{token!r} is also part of {some}, which prompts can then no longer use: these letters are read as the "
            f"new word; choose {bracketed(token)!r}"
        )


def find_clash(tokenizer: CLIPTokenizer, token: str, num_vectors: int = 1) -> str | None:
    """The known token that a new word, or one of its vectors, would be mistaken for; None if the word is free."""
    known, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    for name in _tokens(token, num_vectors):
        if name in known or f"{name.lower()}</w>" in known:  # the mark says that a word ends there
            return name
    # judged by name, `<toy>` and `<toy>_1` are one word of two vectors
    before, after = re.sub(r"_[1-9][0-9]*$", "", token), f"{token}_{num_vectors}"
    return next((name for name in (before, after) if name in added), None)


def bracketed(token: str) -> str:
    """The word in brackets, which no other word contains: `<coco>` for `coco`."""
    return f"<{token.strip('<>').lower()}>"


def _tokens(token: str, num_vectors: int) -> tuple[str, ...]:
    return (token, *(f"{token}_{i}" for i in range(1, num_vectors)))


def check_initializer(tokenizer: CLIPTokenizer, initializer_token: str) -> int:
    """The id of a word to start from, which must be a single token.

    Raises:
        InputError: the word is empty, or several tokens; names them, and similar words that are one.
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


def check_new_word(
    models: Any, token: str, initializer_token: str | None, num_vectors: int, vectors: Any
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The tokens that a new word will have, and the ids whose vectors its rows start from; no ids with `vectors`.

    Raises:
        InputError: see `check_placeholder` and `check_initializer`; or there is nothing to start from.
    """
    if vectors is not None:
        return check_placeholder(models.tokenizer, token, len(vectors)), ()
    tokens = check_placeholder(models.tokenizer, token, num_vectors)
    if initializer_token is None:
        raise InputError(
            f"the new word {token!r} needs an initializer token or vectors to start from"
        )
    return tokens, (check_initializer(models.tokenizer, initializer_token),) * num_vectors


def initializer_ids(
    tokenizer: CLIPTokenizer, token: str, num_vectors: int = 1, phrase: str | None = None
) -> tuple[int, ...]:
    """Ids of the tokens that a run's rows start from, one for each row: copies of one token, or those of a phrase.

    Raises:
        InputError: see `check_initializer`; or the phrase is empty, or its tokens are not `num_vectors`.
    """
    if phrase is None:
        return (check_initializer(tokenizer, token),) * num_vectors
    ids = tuple(tokenizer.encode(phrase, add_special_tokens=False))
    if not ids or num_vectors not in (1, len(ids)):
        raise InputError(
            f"the initializer phrase {phrase!r} is {len(ids)} tokens, and each gives one vector; use "
            f"a phrase of --num_vectors {num_vectors} tokens, or leave that flag out"
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
    """Words of the vocabulary spelled most like `text`: those that occur in it first, then by similarity."""
    import difflib

    words = whole_words(tokenizer)
    inside = [word for word in re.findall(r"\w+", text.lower()) if word in words]
    similar = difflib.get_close_matches(text.lower(), words, n=count, cutoff=0.0)
    return list(dict.fromkeys([*inside, *similar]))[:count]


def with_tokens(
    tokenizer: CLIPTokenizer, tokens: Sequence[str]
) -> tuple[CLIPTokenizer, tuple[int, ...]]:
    """A copy of the tokenizer with `tokens` added, and their ids; the original does not change."""
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


def check_encoders(learned: LearnedEmbedding, model: str, hidden_sizes: Sequence[int]) -> None:
    """Refuse a word that was learned for text encoders other than the model's.

    Raises:
        InputError: names both numbers of encoders and their widths.
    """
    if len(hidden_sizes) == len(learned.widths) == 1:
        check_width(learned.token, learned.widths[0], model, hidden_sizes[0])
    elif learned.widths != tuple(hidden_sizes):
        found, expected = (
            f"{len(widths)} text encoder{'s'[: len(widths) != 1]} ({' and '.join(map(str, widths))} wide)"
            for widths in (learned.widths, hidden_sizes)
        )
        raise InputError(
            f"{learned.token!r} was learned for {found}, but {model} has {expected}; Stable Diffusion 1.x and 2.x "
            f"have one, SDXL has two"
        )


def tokens_of(tokenizer: CLIPTokenizer, token: str) -> tuple[str, ...]:
    """All tokens of a learned word, found by their names: `<toy> <toy>_1 <toy>_2`."""
    added, count = tokenizer.get_added_vocab(), 1
    while f"{token}_{count}" in added:
        count += 1
    return _tokens(token, count)


def split_prompt(tokenizer: CLIPTokenizer, prompt: str) -> list[str]:
    """The prompt split at its learned words, as the tokenizer finds them; items 1, 3, … are the words.

    Of several words that begin at the same place, the longest wins: `charturnerv2` is never read as `charturner`.
    """
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.split(f"({'|'.join(map(re.escape, added))})", prompt) if added else [prompt]


def expand_prompt(tokenizer: CLIPTokenizer, prompt: str) -> str:
    """Write each learned word of several vectors out: `a <toy>` becomes `a <toy> <toy>_1`."""
    pieces = split_prompt(tokenizer, prompt)
    for place in range(1, len(pieces), 2):
        tokens = tokens_of(tokenizer, pieces[place])
        rest = [piece for token in tokens[1:] for piece in (" ", token)]
        if pieces[place + 1 : place + 1 + len(rest)] != rest:  # unless it is written out already
            pieces[place] = " ".join(tokens)
    return "".join(pieces)


def token_ids(tokenizer: CLIPTokenizer, prompts: Iterable[str], *, warn: bool = True) -> np.ndarray:
    """Ids of the prompts, learned words written out, padded or cut: int64 of shape `(prompts, model_max_length)`.

    Warns of `misreadings` unless `warn` is false.
    """
    prompts = list(prompts)
    if warn:
        warn_of_misreadings(tokenizer, prompts)
    ids = tokenizer(
        [expand_prompt(tokenizer, prompt) for prompt in prompts],
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="np",
    ).input_ids
    return ids.astype(np.int64)


def prompt_ids(tokenizers: Sequence[CLIPTokenizer], prompts: Sequence[str]) -> np.ndarray:
    """Ids of the prompts for each of a model's text encoders, side by side: int64 `(prompts, encoders × tokens)`."""
    first, *others = tokenizers
    ids = [token_ids(tokenizer, prompts, warn=False) for tokenizer in others]
    return np.concatenate([token_ids(first, prompts), *ids], axis=1)


def warn_of_misreadings(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> None:
    """Warn of everything in the prompts that the tokenizer reads differently from how it looks."""
    for prompt in dict.fromkeys(prompts):
        for line in misreadings(tokenizer, prompt):
            logger.warning("%s", line)


def misreadings(tokenizer: CLIPTokenizer, prompt: str) -> Iterator[str]:
    """What the tokenizer reads differently from how it looks, a line each.

    A learned word in another case, or inside a longer word; the end of a prompt that is too long.
    """
    shown = repr(prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}…")
    pieces = split_prompt(tokenizer, prompt)
    for place in range(1, len(pieces), 2):
        before, word, after = pieces[place - 1 : place + 2]
        letters_before = re.findall(r"\w+$", before) if word[0].isalnum() else []
        letters_after = re.findall(r"^\w+", after) if word[-1].isalnum() else []
        if letters_before or letters_after:
            torn = "".join([*letters_before, word, *letters_after])
            yield (
                f"the prompt {shown} has the learned word {word!r} inside {torn!r}, which is torn "
                f"apart; put spaces around the word, or learn or load it as {bracketed(word)!r}"
            )
    for word in set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens):
        found = re.search(re.escape(word), " ".join(pieces[::2]), re.IGNORECASE)
        if found:
            yield f"the prompt {shown} has {found[0]!r}, but the learned word is {word!r}: case counts"
    room = tokenizer.model_max_length - 2  # the start and end tokens
    expanded = expand_prompt(tokenizer, prompt)
    ids = tokenizer(expanded, add_special_tokens=False, verbose=False).input_ids
    if len(ids) > room:
        # some tokenizers leave the mark that ends a word in what they decode
        lost = " ".join(tokenizer.decode(ids[room:]).replace("</w>", " ").split())
        lost = lost if len(lost) <= SHOWN else f"…{lost[-SHOWN:]}"
        yield (
            f"the prompt {shown} is cut after {room} of its {len(ids)} tokens: {lost!r} is not "
            f"read; shorten it"
        )


def absent_words(
    tokenizer: CLIPTokenizer, prompts: Sequence[str], words: Iterable[str]
) -> list[str]:
    """The learned words that no truncated prompt contains with all of their vectors."""
    rows = token_ids(tokenizer, prompts, warn=False).tolist() if prompts else []
    absent = []
    for word in words:
        ids = tokenizer.convert_tokens_to_ids(list(tokens_of(tokenizer, word)))
        starts = range(tokenizer.model_max_length - len(ids) + 1)
        if not any(row[start : start + len(ids)] == ids for row in rows for start in starts):
            absent.append(word)
    return absent


def without_weights(
    name: str, *, revision: str | None = None, tokenizer_name: str | None = None, **_: Any
) -> Any:
    """The little that `read_word` needs of a model, to check words and prompts before weights are loaded."""
    folder = pretrained.locate(name, revision=revision, weights=False)
    return types.SimpleNamespace(
        name=str(name),
        tokenizer=pretrained.load_tokenizers(folder, tokenizer_name=tokenizer_name)[0],
        hidden_sizes=pretrained.hidden_sizes(folder),
    )


def read_word(models: Any, path: str | Path, token: str | None = None) -> LearnedEmbedding:
    """Read a learned embedding that can be added to `models`, of either framework.

    Args:
        models: the loaded parts; only `name`, `tokenizer`, and `hidden_sizes` are used.
        path: a file, folder or Hub repository that `embeddings.read` understands.
        token: which word, if the file has several; otherwise, a new name for the word.

    Raises:
        InputError: the file cannot be read or was learned for a model with other text encoders; or the word is taken
            or not allowed: suggests another.
    """
    found = embeddings.read_all(path)
    if len(found) == 1:
        learned = dataclasses.replace(found[0], token=token or found[0].token)
    else:
        learned = embeddings.choose(path, found, token)
    word = learned.token
    check_encoders(learned, models.name, models.hidden_sizes)
    try:
        check_placeholder(models.tokenizer, word, len(learned.vectors))
    except InputError as error:
        raise InputError(
            f"{path}: {error} (token=... in Python, --embedding 'FILE=<name>' on the command line)"
        ) from None
    return learned


def median_norm(table: np.ndarray) -> float:
    """The median norm of a table's rows, `(tokens, hidden)`; learned rows grow far beyond it unless held back."""
    return float(np.median(np.linalg.norm(table.astype(np.float32), axis=1)))
