"""Where each class lies in the embedding space, for hard batches."""

import numpy as np

from trainer.data.batch_plan import quantized
from trainer.data.class_rows import ClassRows
from trainer.evaluation.inference import Forward, SplitImages


def class_centres(
    forward: Forward, images: SplitImages, class_rows: ClassRows, *, images_per_centre: int
) -> np.ndarray:
    """The mean embedding of each class.

    Args:
      forward: embeds images.
      images: the images of a split.
      class_rows: the rows of each class in this split.
      images_per_centre: images of each class that are embedded, at most.

    Returns:
      [C, D] int8, see `quantized`; zeros for a class all of whose records were damaged.
    """
    rows, classes = class_rows.first_rows(images_per_centre)
    embeddings, found = images.apply(forward, "class centres", rows)
    # Rows are distinct: which class each of those that were read is of.
    class_of = classes[np.argsort(rows)[np.searchsorted(np.sort(rows), found)]]
    sums = np.zeros([class_rows.num_classes, embeddings.shape[1]], np.float64)
    np.add.at(sums, class_of, embeddings)
    return quantized(sums)
