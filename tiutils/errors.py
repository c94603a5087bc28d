"""The one exception that means "you can mend this": its message is shown as it is, without a traceback."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: what was found, what was expected, what to do. The command line prints it and exits
    with status 2.
    """
