"""Names of splits that have a meaning."""

QUERY, GALLERY = "query", "gallery"

# In order from training data to test data. A split with another name comes after train.
HELD_OUT = ("train", "val", QUERY, GALLERY, "test")
