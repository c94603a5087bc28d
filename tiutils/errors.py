"""The one exception that means "you can mend this": its message is shown as it is, without a traceback."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: what was found, what was expected, what to do. The command line prints it and exits
    with status 2.
    """


def first_line(error: Exception) -> str:
    """What an error of another library says, in one printable line; its type if it says nothing."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])


def printable(text: str) -> str:
    """A stranger's text for a terminal: what could move its cursor or change its colors is spelled out."""
    return text if text.isprintable() else repr(text)[1:-1]


def encodable(text: str) -> str:
    """A text that every file can hold: halves of letters, as in a name that is not UTF-8, are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_text(what: str, text: str) -> None:
    """Refuse a text that no tokenizer can read.

    Raises:
        InputError: it is not UTF-8.
    """
    if encodable(text) != text:
        raise InputError(
            f"{what} is {text!r}, which is not UTF-8; write it anew in a UTF-8 terminal or file"
        )
