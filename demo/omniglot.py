"""A list of Omniglot's drawings for preprocessing: who is trained on, looked at, and tested on.

python -m demo.omniglot --input=omniglot --output=omniglot.csv

Test is all of images_evaluation, characters of alphabets that training never sees; val is every
tenth character of images_background, in sorted order, train the others.
"""

import csv
import sys
from pathlib import Path

from preprocessing.arguments import Parser

TRAINED, TESTED = "images_background", "images_evaluation"
VAL_EVERY = 10


def rows(folder: Path) -> list[tuple[str, str, str]]:
    """Path, label and split of every drawing; the label is the character's folder."""
    found = []
    for part in (TRAINED, TESTED):
        for number, character in enumerate(sorted((folder / part).iterdir())):
            held_out = "val" if number % VAL_EVERY == VAL_EVERY - 1 else "train"
            split = "test" if part == TESTED else held_out
            paths = sorted(character.glob("*.png"))
            found += [(str(path.resolve()), character.name, split) for path in paths]
    return found


def main() -> None:
    parser = Parser(prog="python -m demo.omniglot", description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="the unpacked folder")
    parser.add_argument("--output", type=Path, required=True, help="the list, a .csv file")
    flags = parser.parse_args()
    for part in (TRAINED, TESTED):
        if not (flags.input / part).is_dir():
            parser.error(f"--input {flags.input}: no folder {part} there")
    found = rows(flags.input)
    with flags.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows(found)
    print(f"wrote {flags.output}: {len(found):,} drawings", file=sys.stderr)


if __name__ == "__main__":
    main()
