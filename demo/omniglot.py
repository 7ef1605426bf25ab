"""A list of Omniglot's drawings for preprocessing: who is trained on, looked at, and tested on.

python -m demo.omniglot --input=omniglot --output=omniglot.csv

Test is all of images_evaluation, characters of alphabets that training never sees; val is every
tenth character of images_background, in sorted order, train the others.
"""

import csv
import sys
from pathlib import Path

from tripletmill.cli.arguments import Parser

TRAINED, TESTED = "images_background", "images_evaluation"
VAL_EVERY = 10


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Path, label and split of every drawing; the label is ALPHABET__CHARACTER."""
    found = []
    for part in (TRAINED, TESTED):
        characters: dict[str, list[Path]] = {}
        for path in sorted((folder / part).rglob("*.png")):
            # As published, ALPHABET/CHARACTER; or one folder of that name.
            label = "__".join(path.relative_to(folder / part).parts[:-1])
            characters.setdefault(label, []).append(path)
        for number, label in enumerate(sorted(characters)):
            held_out = "val" if number % VAL_EVERY == VAL_EVERY - 1 else "train"
            split = "test" if part == TESTED else held_out
            found += [(str(path.resolve()), label, split) for path in characters[label]]
    return found


def main() -> None:
    parser = Parser(prog="python -m demo.omniglot", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input", type=Path, required=True, help="the folder of the unpacked archives"
    )
    parser.add_argument("--output", type=Path, required=True, help="the list, a .csv file")
    flags = parser.parse_args()
    for part in (TRAINED, TESTED):
        if not (flags.input / part).is_dir():
            parser.error(f"--input {flags.input}: no folder {part} there")
    found = rows(flags.input)
    if not found:
        parser.error(f"--input {flags.input}: no .png below {TRAINED} and {TESTED}")
    with flags.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows(found)
    print(f"wrote {flags.output}: {len(found):,} drawings", file=sys.stderr)


if __name__ == "__main__":
    main()
