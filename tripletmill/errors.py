"""The one exception for mistakes of a user; command lines turn it into one line, exit code 2."""


class UsageError(Exception):
    """Says in one line what is wrong, where, and what to do about it."""


def require_positive(owner: str, **values: int) -> None:
    """Raises UsageError for a value below 1, named as OWNER.NAME."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{owner}.{name} {value}: 1 or more")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has no message."""
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def one_line(error: Exception) -> str:
    """What an exception says, as an error is shown."""
    # Gin appends the call that an exception passed through.
    return " ".join(str(error).split("\n  In call to configurable")[0].split())
