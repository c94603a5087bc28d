"""Reduce CLIP's byte-pair merges to a small vocabulary in which the world's words stay single tokens."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import pairwise
from pathlib import Path

from ..world import collect, lexicon, places, tables
from .presets import Preset

START, END = "<|startoftext|>", "<|endoftext|>"
# Words that prompts of Textual Inversion and of this course need, besides the world's own.
MORE_WORDS = [row["word"] for row in tables.read(Path(__file__).parent / "words.tsv")]


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(byte) for byte in printable]
    return symbols + [chr(256 + extra) for extra in range(256 - len(printable))]


def merges_of(word: str, rank: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges CLIP applies to a word, in the order in which it applies them."""
    parts, used = [*word[:-1], word[-1] + "</w>"], []
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda p: rank.get(p, len(rank)))
        if pair not in rank:
            break
        used.append(pair)
        merged, i = [], 0
        while i < len(parts):
            two = tuple(parts[i : i + 2]) == pair
            merged.append("".join(parts[i : i + 2]) if two else parts[i])
            i += 2 if two else 1
        parts = merged
    return used


def caption_words() -> list[str]:
    """Every word that the world's captions can contain."""
    phrases = [
        *lexicon.TEMPLATES,
        *lexicon.PLAIN_TEMPLATES,
        *places.COLORS,
        *places.PLACES,
        *lexicon.COUNTS.values(),
    ]
    known = [*lexicon.nouns(), *lexicon.names()]
    phrases += [form for noun in known for form in noun.forms]
    words = " ".join(phrases).replace("{}", "").replace("-", " ").split()
    return list(dict.fromkeys([*words, "background"]))


def choose(words: list[str], vocabulary: int | None = None) -> list[tuple[str, str]]:
    """The merges that these words use, in CLIP's order, each after those of its parts; then CLIP's first merges."""
    lines = (
        gzip.decompress(collect.MERGES.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    )
    merges = [tuple(line.split()) for line in lines]
    rank = {pair: number for number, pair in enumerate(merges)}
    keep = {rank[pair] for word in words for pair in merges_of(word, rank)}
    if vocabulary is not None:
        if len(keep) > vocabulary - 512 - 2:
            raise ValueError(f"{len(keep) + 514} tokens are needed, {vocabulary} were asked for")
        for number in range(len(merges)):
            if len(keep) == vocabulary - 512 - 2:
                break
            keep.add(number)
    return [merges[number] for number in sorted(keep)]


def build(preset: Preset) -> None:
    """The pipeline's tokenizer, with `preset.vocabulary` tokens, and the evaluator's, with the captions' words only."""
    spoken = caption_words()
    words = list(dict.fromkeys(spoken + MORE_WORDS))
    for name, merges in (
        ("tokenizer", choose(words, preset.vocabulary)),
        ("evaluator-tokenizer", choose(spoken)),
    ):
        write(preset.folder / name, merges)
        whole = load(preset, name)
        several = [word for word in words if len(whole.tokenize(word)) != 1]
        print(f"{name}: {len(whole)} tokens; {len(several)} words in several pieces: {several[:9]}")


def write(folder: Path, merges: list[tuple[str, str]]) -> None:
    """Write vocab.json and merges.txt (transformers 4) and tokenizer.json (transformers 5), without indentation.

    Single bytes come first, so that any text can be spelled.
    """
    from transformers import CLIPTokenizer

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    symbols = byte_symbols()
    tokens = [
        *symbols,
        *(s + "</w>" for s in symbols),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocab = {token: number for number, token in enumerate(tokens)}
    assert len(vocab) == len(tokens), "two merges make the same token"
    plain = folder.with_name(folder.name + "-plain")
    plain.mkdir(exist_ok=True)
    (plain / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")))
    (plain / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    tokenizer = CLIPTokenizer.from_pretrained(
        plain, bos_token=START, eos_token=END, unk_token=END, pad_token=END, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    whole = folder / "tokenizer.json"
    whole.write_text(
        json.dumps(json.loads(whole.read_text()), ensure_ascii=False, separators=(",", ":"))
    )
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(plain / name, folder / name)


def load(preset: Preset, name: str = "tokenizer"):
    from transformers import CLIPTokenizer

    folder = Path(preset.start) if preset.start else preset.folder
    return CLIPTokenizer.from_pretrained(folder / name)
