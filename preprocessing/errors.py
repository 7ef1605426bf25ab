"""The one exception for mistakes of a user; command lines turn it into one line and exit code 2."""


class UsageError(Exception):
    """Says in one line what is wrong, where, and what to do about it."""
