"""The exception for mistakes of a user, and the text of exceptions."""


class UsageError(Exception):
    """A mistake of a user. Its message says in one line what is wrong, where, and what to do.

    The programs print the message and end with exit code 2.
    """


def require_positive(owner: str, **values: int) -> None:
    """Raises UsageError if a value is below 1; the message calls the value OWNER.NAME."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{owner}.{name} {value}: 1 or more")


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def one_line(error: Exception) -> str:
    """Returns an exception's message in one line, without the lines that gin appends to it."""
    # Gin appends the names of the configurables that the exception passed through.
    return " ".join(str(error).split("\n  In call to configurable")[0].split())
