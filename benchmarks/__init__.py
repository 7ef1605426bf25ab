"""One script a claim; each prints a table, none asserts a time."""
