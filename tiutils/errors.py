"""The exceptions for mistakes that a user can fix: their message is shown as it is, without a traceback."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: what was found, what was expected, what to do. The command line prints it and exits
    with status 2.
    """


class OutOfMemory(InputError):
    """A training step did not fit into memory, and nothing leaner is left to try; its run state is unchanged."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one printable line; its type if it says nothing."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str) -> str:
    """Untrusted text for a terminal: what could move the cursor or change colors is escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def encodable(text: str) -> str:
    """Text that can be written as UTF-8: surrogates, as in file names that are not UTF-8, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_text(what: str, text: str) -> None:
    """Refuse a text that no tokenizer can read.

    Raises:
        InputError: it is not UTF-8.
    """
    if encodable(text) != text:
        raise InputError(
            f"{what} is {text!r}, which is not UTF-8; retype it in a UTF-8 terminal or file"
        )


# What PyTorch, CUDA's libraries, oneDNN, XLA and the system report when memory runs out, in lower case.
OUT_OF_MEMORY = (
    "out of memory", "out_of_memory", "can't allocate memory", "cannot allocate memory", "not enough memory",
    "_status_alloc_failed", "resource_exhausted", "bad_alloc", "bad allocation",
    "could not create a primitive", "could not create a memory object", "could not execute a primitive",  # oneDNN
)  # fmt: skip


def out_of_memory(error: BaseException) -> BaseException | None:
    """The error in this one's chain of causes that says memory ran out; None if there is none.

    Libraries hide it: when memory runs out while a file is read, they say "unable to load weights".
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        if isinstance(link, MemoryError) or any(s in str(link).lower() for s in OUT_OF_MEMORY):
            return link
        seen.append(link)
        link = link.__cause__ or link.__context__
    return None
