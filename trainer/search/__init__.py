"""Finding the images of a collection that are most like another: python -m trainer.search.

For programs:

    index = SearchIndex.load("index")
    index.nearest_of("cats/tom.jpg")

and `trainer.export.embedder` for images that are in no index. Neither `SearchIndex` nor what
builds an index imports TensorFlow.
"""

from trainer.search.index import Entry, Neighbour, SearchIndex

__all__ = ["Entry", "Neighbour", "SearchIndex"]
