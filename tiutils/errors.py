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
