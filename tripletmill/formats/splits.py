"""The names of splits that have a meaning of their own."""

QUERY, GALLERY = "query", "gallery"

# From what is learnt from to what is reported; a split of another name comes after train.
HELD_OUT = ("train", "val", QUERY, GALLERY, "test")
