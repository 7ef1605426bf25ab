"""What a finished job tells the person who started it."""

import os
import shlex

from preprocessing import index


def print_summary(info: index.DatasetInfo) -> None:
    """Prints the splits, what was left out, and what to run next."""
    print(f"\ndata set {info.name} in {info.directory}")
    print(f"  {'split':10} {'classes':>10} {'images':>12} {'shards':>8}")
    first = ("train", "val", "test")
    for split in [
        *(s for s in first if s in info.num_shards),
        *sorted({*info.num_shards} - {*first}),
    ]:
        classes, images = info.num_classes[split], info.num_images[split]
        print(f"  {split:10} {classes:>10,} {images:>12,} {info.num_shards[split]:>8,}")
    rejected = os.path.join(info.directory, index.REJECTED_FILE)
    if info.num_rejected:
        print(f"  left out: {info.num_rejected:,} files, each with its reason in {rejected}")
    else:
        print("  left out: nothing")
    data_dir = shlex.quote(info.directory)
    print(
        f"next: python -m trainer.main --gin_file=gin/small_conv.gin --data_dir={data_dir}"
        " --model_dir=runs/first"
    )
