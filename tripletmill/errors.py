"""The one exception for mistakes of a user; command lines turn it into one line, exit code 2."""


class UsageError(Exception):
    """Says in one line what is wrong, where, and what to do about it."""


def require_positive(owner: str, **values: int) -> None:
    """Raises UsageError for a value below 1, named as OWNER.NAME."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{owner}.{name} {value}: 1 or more")


def one_line(error: Exception) -> str:
    """What an exception says, as an error is shown."""
    # Gin appends the call that an exception passed through.
    return " ".join(str(error).split("\n  In call to configurable")[0].split())


def first_line(error: BaseException) -> str:
    """Of its message; TensorFlow's go on with where it was."""
    return str(error).strip().partition("\n")[0]
