"""Prints the summary of a finished preprocessing job."""

import shlex
import unicodedata
from collections.abc import Iterable

from pipeline.beam.outputs import left_out_line
from pipeline.preprocess.job import Outcome
from preprocessing.writing import duplicates
from tripletmill.formats import index
from tripletmill.storage import storage

NAMES_SHOWN = 10


def print_summary(outcome: Outcome) -> None:
    """Prints the splits, what was left out, and what to run next."""
    info = outcome.info
    print(f"\ndata set {info.name} in {info.directory}")
    print(f"  {'split':10} {'classes':>10} {'images':>12} {'shards':>8}")
    usual = [split for split in ("train", "val", "test") if split in info.num_shards]
    for split in [*usual, *sorted({*info.num_shards} - {*usual})]:
        classes, images = info.num_classes[split], info.num_images[split]
        print(f"  {split:10} {classes:>10,} {images:>12,} {info.num_shards[split]:>8,}")
    if outcome.images_reused:
        print(
            f"  {outcome.images_reused:,} images lay in finished shards;"
            f" {outcome.images_read:,} were read now"
        )
    print(left_out_line(info.num_rejected, info.directory))
    _print_duplicates(info)
    _print_classes(info)
    data_dir = shlex.quote(info.directory)
    print(
        f"next: python -m trainer.main --gin_file=gin/small_conv.gin --data_dir={data_dir}"
        " --model_dir=runs/first"
    )


def _print_duplicates(info: index.DatasetInfo) -> None:
    counts = [f"{count:,} {kind}" for kind, count in info.duplicates.items() if count]
    if not counts:
        return
    listed = storage.join(info.directory, index.DUPLICATES_FILE)
    print(f"  images that occur more than once: {', '.join(counts)}; see {listed}")
    kept = info.settings["duplicates"] == duplicates.KEEP
    if kept and info.duplicates.get(duplicates.ACROSS_SPLITS):
        print(
            "  warning: some images are in more than one split, so evaluation results are too good;"
            " --duplicates=drop keeps them only in the split that is held out most"
        )


def _print_classes(info: index.DatasetInfo) -> None:
    min_images = info.settings["min_images"]
    if info.classes_left_out:
        names = _shortened(info.classes_left_out)
        print(f"  classes left out with fewer than {min_images} images: {names}")
    if info.classes_fallen_below:
        names = _shortened(info.classes_fallen_below)
        print(f"  classes with fewer than {min_images} images that can be read: {names}")
    for alike in _alike({*index.read_classes(info)["name"].to_pylist()}):
        print(f"  warning: classes that differ only in case or Unicode form: {_shortened(alike)}")


def _shortened(names: Iterable[str]) -> str:
    quoted = [ascii(name) if not name.isprintable() else name for name in names]
    more = f" and {len(quoted) - NAMES_SHOWN:,} more" if len(quoted) > NAMES_SHOWN else ""
    return ", ".join(quoted[:NAMES_SHOWN]) + more


def _alike(names: Iterable[str]) -> list[list[str]]:
    """Returns groups of names that differ only in case or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(unicodedata.normalize("NFKC", name).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
