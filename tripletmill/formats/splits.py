"""Names of splits that have a meaning."""

from collections.abc import Container

TEST, QUERY, GALLERY = "test", "query", "gallery"

# From the split that is trained on to those whose figures are reported; a split of another name
# stands after train.
HELD_OUT = ("train", "val", QUERY, GALLERY, TEST)


def default_splits(splits: Container[str]) -> tuple[str, str | None]:
    """The splits that are evaluated unless others are asked for.

    Args:
      splits: names of the splits that there are.

    Returns:
      The split whose images are queries, and the split that is searched: `query` and `gallery` if
      there are both. Otherwise `test`, and None, which means that the queries' split is searched.
    """
    return (QUERY, GALLERY) if QUERY in splits and GALLERY in splits else (TEST, None)
