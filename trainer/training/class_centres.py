"""Where each class lies in the embedding space. Hard batches are drawn by this."""

import numpy as np

from trainer.data.batch_plan import quantized
from trainer.data.class_rows import ClassRows
from trainer.evaluation.inference import Forward, SplitImages


def class_centres(
    forward: Forward, images: SplitImages, class_rows: ClassRows, *, images_per_centre: int
) -> np.ndarray:
    """Computes the mean embedding of each class.

    Args:
      forward: embeds images.
      images: images of a split.
      class_rows: the rows of each of the C classes in this split.
      images_per_centre: largest number of images of a class that are embedded.

    Returns:
      [C, D] int8, see `quantized`; zeros for a class if none of its records could be read.
    """
    rows, classes = class_rows.first_rows(images_per_centre)
    embeddings, rows_read = images.apply(forward, "class centres", rows)
    # The rows are distinct, so the class of each row that was read can be looked up.
    class_of = classes[np.argsort(rows)[np.searchsorted(np.sort(rows), rows_read)]]
    sums = np.zeros([class_rows.num_classes, embeddings.shape[1]], np.float64)
    np.add.at(sums, class_of, embeddings)
    return quantized(sums)
