"""Programs that generate images: the file format and name that each expects of a word, and how to prompt for it.

In most of them, the word is the *file's name*, whatever the file says. `tiutils convert --for`, the last lines of
`tiutils train`, the model card, and docs/engines.md all use this table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiutils.errors import InputError
from tiutils.io import embeddings
from tiutils.io.embeddings import LearnedEmbedding

# words that contain short names, as examples for a warning
SOME_WORDS = """
    background beautiful cardboard carpet category caterpillar cathedral catfish celebrate chair chocolate coconut
    cartoon dogma education elephant flowerpot forest hotdog horseback lantern location market mountain painting
    panther pencil person photograph portrait sculpture season standing starfish strawberry sunflower toyshop
    vacation watercolor window
"""
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows


@dataclass(frozen=True)
class Engine:
    """A program, and how to use a word in it.

    Attributes:
        name: on the command line.
        title: its full name.
        version: the one that was examined.
        was_run: whether it was run, rather than its source read.
        form: of the file, see `embeddings.write`.
        place: where the file goes.
        prompt: what to write in a prompt; {word} is the word, {stem} the file's name.
        stem: the file's name without its extension: "{plain}", or "{word}" to keep the word's brackets.
        inside_words: whether a bare name is also found inside longer words.
        beware: what goes wrong without an error message.
    """

    name: str
    title: str
    version: str
    was_run: bool
    form: str
    place: str
    prompt: str
    stem: str
    inside_words: bool
    beware: str

    def file_stem(self, word: str) -> str:
        """The name of a word's file, without its extension."""
        plain = file_name_of(word)
        in_brackets = self.stem == "{word}" and word.startswith("<") and word.endswith(">")
        return f"<{plain}>" if in_brackets else plain

    def file_name(self, word: str) -> str:
        """The name of a word's file."""
        return f"{self.file_stem(word)}.safetensors"

    def written(self, word: str) -> str:
        """What to write in a prompt."""
        return self.prompt.format(word=word, stem=self.file_stem(word))


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "diffusers", "diffusers", "0.42.1", True, "diffusers",
            'anywhere: `pipeline.load_textual_inversion("FILE")`', "{word}", "{plain}", True,
            "a word in capitals keeps only the first of its vectors; unloading a word of several vectors needs all "
            "of their names",
        ),
        Engine(
            "comfyui", "ComfyUI", "0.3.64", True, "emb_params", "`models/embeddings/`",
            "embedding:{stem}", "{plain}", False,
            "the word is ignored if a period follows it directly, or a comma or letter precedes `embedding:`; put a "
            "space on either side",
        ),
        Engine(
            "a1111", "A1111's web UI", "1.10", False, "emb_params", "`embeddings/`", "{stem}",
            "{plain}", False, "an ordinary word of the same name can no longer be used",
        ),
        Engine(
            "invokeai", "InvokeAI", "6.14.2", True, "emb_params",
            "the model manager, Import Models", "<{stem}>", "{plain}", False,
            "the import refuses diffusers' own form: *unrecognized token dimension*",
        ),
        Engine(
            "sd.cpp", "stable-diffusion.cpp", "its Python binding 0.4.7", True, "emb_params",
            "the folder of `--embd-dir`", "{stem}", "{word}", True,
            "a file in half precision is read as noise; the name is found in lower case, and anywhere in the text",
        ),
    )
}  # fmt: skip


def engine_of(name: str) -> Engine:
    """Look up a program.

    Raises:
        InputError: there is none of that name.
    """
    if name not in ENGINES:
        raise InputError(f"--for {name!r}: expected one of {', '.join(ENGINES)}")
    return ENGINES[name]


def file_name_of(word: str) -> str:
    """A word as a file name that works on every system and in every prompt: `<wood toy>` becomes `wood-toy`."""
    name = re.sub(r"[^\w.-]+", "-", word.strip("<>"))[:60].strip("-.")
    return f"{name}-word".lstrip("-") if not name or RESERVED.fullmatch(name) else name


def table(word: str) -> str:
    """A Markdown table of the programs: file, place, prompt; for any word, even one with backticks."""

    def code(text: str) -> str:
        text = " ".join(text.split()).replace("|", "\\|")
        ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
        return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"

    rows = [
        f"| {engine.title} | {code(engine.file_name(word))} | {engine.place} | {code(engine.written(word))} |"
        for engine in ENGINES.values()
    ]
    return "\n".join(["| program | file | where | in the prompt |", "|---|---|---|---|", *rows])


def place_of(engine: Engine, learned: LearnedEmbedding) -> str:
    """Where a word's file goes; in diffusers, a word for SDXL is loaded into one text encoder at a time."""
    if engine.name == "diffusers" and learned.others:
        return "each part to one text encoder, as docs/engines.md shows"
    return engine.place.replace("`", "")


def pitfalls() -> str:
    """A Markdown table of what goes wrong in each program, and how that is known."""
    rows = [
        f"| {engine.title} | {engine.version} | {'run' if engine.was_run else 'read'} | {engine.beware} |"
        for engine in ENGINES.values()
    ]
    return "\n".join(["| program | version | | beware |", "|---|---|---|---|", *rows])


def warning(engine: Engine, word: str, vocabulary: Sequence[str] = ()) -> str | None:
    """A warning if the program also finds the name inside other words; None if it does not."""
    name = (engine.file_stem(word) if engine.stem == "{word}" else word).lower()
    if not engine.inside_words or not name.isalpha():
        return None
    words = sorted(
        {w.lower() for w in (*SOME_WORDS.split(), *vocabulary)}, key=lambda w: (len(w), w)
    )
    examples = [each for each in words if name in each and each != name][-3:]
    if not examples and len(name) > 4:
        return None
    found = f", as in {', '.join(map(repr, examples))}" if examples else ""
    return (
        f"{engine.title} also finds {name!r} inside other words{found}: use --token to give it a name in "
        f"brackets, such as {f'<{name}>'!r}"
    )


def write(folder: str | Path, learned: LearnedEmbedding, engine: Engine) -> Path:
    """Write a word's file as the program expects it; return the path.

    Raises:
        InputError: the file exists, cannot be written, or the program cannot read such a word.
    """
    path = Path(folder) / engine.file_name(learned.token)
    if path.exists() or path.is_symlink():
        raise InputError(
            f"{str(path)!r} already exists: choose another folder, or another name with --token"
        )
    if learned.others and engine.name == "sd.cpp":
        learned.refuse_pair()
    return embeddings.write(path, learned, form=engine.form)
