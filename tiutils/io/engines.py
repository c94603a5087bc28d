"""The programs that people draw with: the file that each wants of a word, its name, and what to write in a prompt.

In most of them the word is the *file's name*, whatever the file says. This table is the one place for
it: `tiutils convert --for`, the last lines of `tiutils train`, the model card and docs/engines.md say
what stands here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiutils.errors import InputError
from tiutils.io import embeddings
from tiutils.io.embeddings import LearnedEmbedding

SOME_WORDS = tuple(  # in which short names stand, as examples for a warning
    word
    for line in (
        "background beautiful cardboard carpet category caterpillar cathedral",
        "catfish celebrate chair chocolate coconut cartoon dogma",
        "education elephant flowerpot forest hotdog horseback lantern",
        "location market mountain painting panther pencil person",
        "photograph portrait sculpture season standing starfish strawberry",
        "sunflower toyshop vacation watercolor window",
    )
    for word in line.split()
)
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no files on Windows


@dataclass(frozen=True)
class Engine:
    """A program, and how a word is taken to it.

    Attributes:
        name: on the command line.
        title: as people know it.
        version: that was tried or read.
        was_run: whether it was run; else its source was read.
        form: of the file: "diffusers", or "emb_params", which most others take.
        place: where the file goes.
        prompt: what to write for the word; {word} is the word, {stem} the file's name.
        stem: the file's name without its ending.
        inside_words: whether a bare name is also found inside of longer words.
        beware: what goes wrong without a message.
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
        """The file's name for a word, without its ending."""
        plain = file_name_of(word)
        in_brackets = self.stem == "{word}" and word.startswith("<") and word.endswith(">")
        return f"<{plain}>" if in_brackets else plain

    def file_name(self, word: str) -> str:
        """The file's name for a word."""
        return f"{self.file_stem(word)}.safetensors"

    def written(self, word: str) -> str:
        """What to write in a prompt for the word."""
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
            "a full stop behind the name drops the word, and so does a comma or a letter right before `embedding:`; "
            "put a space on either side",
        ),
        Engine(
            "a1111", "A1111's web UI", "1.10", False, "emb_params", "`embeddings/`", "{stem}",
            "{plain}", False, "the plain word of the same name can no longer be drawn",
        ),
        Engine(
            "invokeai", "InvokeAI", "6.14.2", True, "emb_params",
            "the model manager, Import Models", "<{stem}>", "{plain}", False,
            "diffusers' own form is refused at the door: *unrecognized token dimension*",
        ),
        Engine(
            "sd.cpp", "stable-diffusion.cpp", "its Python binding 0.4.7", True, "emb_params",
            "the folder of `--embd-dir`", "{stem}", "{word}", True,
            "a file in half precision is read as noise; the name is found in lower case, and anywhere in the text",
        ),
    )
}  # fmt: skip


def engine_of(name: str) -> Engine:
    """The program of that name.

    Raises:
        InputError: it is not in the table.
    """
    if name not in ENGINES:
        raise InputError(f"--for {name!r}: expected one of {', '.join(ENGINES)}")
    return ENGINES[name]


def file_name_of(word: str) -> str:
    """A word as the name of a file that every system and prompt takes: `<wood toy>` is `wood-toy`."""
    name = re.sub(r"[^\w.-]+", "-", word.strip("<>"))[:60].strip("-.")
    return f"{name}-word".lstrip("-") if not name or RESERVED.fullmatch(name) else name


def lines(word: str, source: str | Path) -> list[str]:
    """What the end of a training says of other programs: a line for each, and the command that makes its file."""
    width = max(map(len, ENGINES))
    return [
        "in a prompt it is written, once `tiutils convert "
        f"{source} --for NAME` has made the program's file:",
        *(f"  {engine.name:<{width}}  {engine.written(word)}" for engine in ENGINES.values()),
    ]


def table(word: str) -> str:
    """The programs as a table of Markdown: file, place, prompt. Of any word, as code that ends where it should."""

    def code(text: str) -> str:
        text = " ".join(text.split()).replace("|", "\\|")
        ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
        return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"

    rows = [
        f"| {engine.title} | {code(engine.file_name(word))} | {engine.place} | {code(engine.written(word))} |"
        for engine in ENGINES.values()
    ]
    return "\n".join(["| program | file | where | in the prompt |", "|---|---|---|---|", *rows])


def pitfalls() -> str:
    """What goes wrong in each program, as a table of Markdown, and how it is known."""
    rows = [
        f"| {engine.title} | {engine.version} | {'run' if engine.was_run else 'read'} | {engine.beware} |"
        for engine in ENGINES.values()
    ]
    return "\n".join(["| program | version | | beware |", "|---|---|---|---|", *rows])


def warning(engine: Engine, word: str, vocabulary: Sequence[str] = ()) -> str | None:
    """What a name does to other words, where the program finds it inside of them; None if nothing."""
    name = (engine.file_stem(word) if engine.stem == "{word}" else word).lower()
    if not engine.inside_words or not name.isalpha():
        return None
    words = sorted({w.lower() for w in (*SOME_WORDS, *vocabulary)}, key=lambda w: (len(w), w))
    examples = [each for each in words if name in each and each != name][-3:]
    if not examples and len(name) > 4:
        return None
    found = f", as in {', '.join(map(repr, examples))}" if examples else ""
    return (
        f"{engine.title} finds {name!r} inside of other words as well{found}: a name in brackets, such as "
        f"{f'<{name}>'!r}, is found alone (--token gives one)"
    )


def write(folder: str | Path, learned: LearnedEmbedding, engine: Engine) -> Path:
    """Write the word in the form, and under the name, that the program wants; returns the path.

    Raises:
        InputError: such a file is there, cannot be written, or the program has no form for the word.
    """
    path = Path(folder) / engine.file_name(learned.token)
    if path.exists() or path.is_symlink():
        raise InputError(
            f"{str(path)!r} is there already: choose another folder, or name it anew by --token"
        )
    if learned.others and engine.name == "sd.cpp":
        learned.refuse_pair()
    if engine.form == "emb_params" and not learned.others:
        return embeddings.write_emb_params(path, learned)
    return embeddings.write(path, learned)
