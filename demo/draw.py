"""Draws the demo images: a class is a character, an image is that character in one font.

  python -m demo.draw --output=data/demo-images

The fonts come from Python packages, which `make setup` installs. LICENSES.md lists them. A face is
one font file, for instance Lato Bold; a family is all faces of a typeface.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import shutil
import string
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from tripletmill.errors import UsageError

SIDE = 64
# With these two values, the highest accent and the lowest descender just fit into the image.
CAP_HEIGHT = 30
BASELINE = 47
# Two drawings count as equal if their squared difference, relative to the ink of both, is below
# this value. Measured in these faces: pairs that coincide, such as some I and l, are below 0.014;
# other pairs, such as bold D and Ð, are above 0.021.
MAX_TWIN_DIFFERENCE = 0.016

CHARACTERS = (
    string.ascii_uppercase
    + string.ascii_lowercase
    + string.digits
    + string.punctuation
    + "ÆæØøŒœÞþÐðßŁłÇçÑñÅåéèöü"
    + "¡¿«»§¶†‡•·…©®°¬¦¢£¤¥€±×÷¼½¾≠≤≥∞√∫◊"
    + "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθικλμνξπρςστυφχψω"
)

# The package of each family, and its font files there. Variable and symbol fonts are left out.
FAMILIES = {
    "Amatic SC": ("font-amatic-sc", "font_amatic_sc/files/*.ttf"),
    "Caladea": ("font-caladea", "font_caladea/files/*.ttf"),
    "DejaVu Sans": ("matplotlib", "matplotlib/mpl-data/fonts/ttf/DejaVuSans[-.]*"),
    "DejaVu Sans Mono": ("matplotlib", "matplotlib/mpl-data/fonts/ttf/DejaVuSansMono[-.]*"),
    "DejaVu Serif": ("matplotlib", "matplotlib/mpl-data/fonts/ttf/DejaVuSerif[-.]*"),
    "Fredoka One": ("font-fredoka-one", "font_fredoka_one/files/*.ttf"),
    "Hanken Grotesk": ("font-hanken-grotesk", "font_hanken_grotesk/files/*.otf"),
    "Intuitive": ("font-intuitive", "font_intuitive/files/*.ttf"),
    # Thin is left out, because its strokes are thinner than a pixel.
    "Lato": ("font-lato", "font_lato/files/Lato-[!T]*.ttf"),
    "Manrope": ("font-manrope", "font_manrope/files/Manrope-[!V]*.ttf"),
    "Open Sans": ("ttf-opensans", "ttf_opensans/ttf/*.ttf"),
    "Red Hat Display": ("font-rhd", "font_rhd/files/*.ttf"),
    "Roboto": ("font-roboto", "font_roboto/files/*.ttf"),
    "Source Sans Pro": ("font-source-sans-pro", "font_source_sans_pro/files/*.ttf"),
    "Source Serif Pro": ("font-source-serif-pro", "font_source_serif_pro/files/*.ttf"),
    "STIX General": ("matplotlib", "matplotlib/mpl-data/fonts/ttf/STIXGeneral*.ttf"),
}
# In these families the lower case looks like a small upper case, so it is not drawn.
SMALL_CAPITALS = {"Amatic SC"}


@dataclasses.dataclass
class Summary:
    """What was drawn and what was not.

    Attributes:
      classes: how many characters were drawn.
      faces: how many faces were used.
      images: how many images there are.
      skipped: how many drawings were skipped, by reason.
      left_out: characters that too few faces have.
    """

    classes: int
    faces: int
    images: int
    skipped: Counter[str]
    left_out: list[str]


def find_faces(families: Mapping[str, tuple[str, str]] = FAMILIES) -> dict[Path, str]:
    """Finds the font files.

    Returns:
      The family of each font file.

    Raises:
      UsageError: a package or its font files are missing.
    """
    faces = {}
    for family, (package, pattern) in families.items():
        root = Path(str(_package(package).locate_file("")))
        paths = sorted(root.glob(pattern))
        if not paths:
            raise UsageError(f"{package} {_package(package).version} has no {pattern}")
        faces.update(dict.fromkeys(paths, family))
    return faces


def _package(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"package {name} is missing: run `make setup`, or pip install {name}"
        ) from None


def class_name(character: str) -> str:
    """Returns a readable folder name.

    Names differ even on file systems that ignore case.
    """
    name = unicodedata.name(character).lower().replace(" ", "-")
    return f"U+{ord(character):04X}_{name}"


def draw_face(
    path: Path, characters: str, *, small_capitals: bool = False
) -> tuple[dict[str, Image.Image], Counter[str]]:
    """Draws characters in the face of one font file.

    If the face draws two characters alike, only the first one is kept.

    Args:
      path: the font file.
      characters: the characters to draw.
      small_capitals: whether lower case is skipped.

    Returns:
      Grey images of SIDE x SIDE pixels by character, black on white; and how many characters were
      skipped, by reason.
    """
    from fontTools.ttLib import TTFont  # only the extra "demo" has it

    with TTFont(path) as tables:
        glyphs = tables.getBestCmap()
        # A face may map characters to a copy of its box for missing glyphs. The copy is found by
        # its drawing, which equals the drawing of a character that the face lacks.
        absent = next(chr(code) for code in range(0xE000, 0x110000) if code not in glyphs)
    height = -_font(path, 1000).getbbox("H", anchor="ls")[1]
    font = _font(path, 1000 * CAP_HEIGHT / height)
    box = _draw(font, absent)

    images: dict[str, Image.Image] = {}
    skipped: Counter[str] = Counter()
    for character in characters:
        if glyphs.get(ord(character), ".notdef") == ".notdef":
            skipped["not in the face"] += 1
        elif small_capitals and character.islower():
            skipped["lower case as small capital"] += 1
        elif (ink := (image := _draw(font, character)).getbbox()) is None:
            skipped["blank"] += 1
        elif image == box:
            skipped["a box for a missing glyph"] += 1
        elif min(ink[:2]) < 1 or max(ink[2:]) > SIDE - 1:
            skipped["too large"] += 1
        else:
            images[character] = image

    for twin in _twins(images):
        del images[twin]
        skipped["drawn like another character of the face"] += 1
    black_on_white = {name: ImageChops.invert(image) for name, image in images.items()}
    return black_on_white, skipped


def _font(path: Path, size: float) -> ImageFont.FreeTypeFont:
    # The basic layout, because the other one depends on libraries of the machine.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def _draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Draws a character in white on black, so that the ink is not zero."""
    image = Image.new("L", (SIDE, SIDE))
    left, _, right, _ = font.getbbox(character, anchor="ls")
    position = ((SIDE - left - right) // 2, BASELINE)
    ImageDraw.Draw(image).text(position, character, fill=255, font=font, anchor="ls")
    return image


def _twins(images: Mapping[str, Image.Image]) -> set[str]:
    """Returns the characters that are drawn like an earlier one."""
    twins = set()
    names = list(images)
    boxes = np.array([image.getbbox() for image in images.values()]).reshape(-1, 1, 4)
    near = np.abs(boxes - boxes.reshape(1, -1, 4)).max(axis=2) <= 2
    for later, earlier in np.argwhere(np.tril(near, -1)):
        a, b = (np.asarray(images[names[k]], np.float32) for k in (later, earlier))
        if ((a - b) ** 2).sum() < MAX_TWIN_DIFFERENCE * (a**2 + b**2).sum():
            twins.add(names[later])
    return twins


def draw(
    output: Path,
    characters: str = CHARACTERS,
    families: Mapping[str, tuple[str, str]] = FAMILIES,
    min_faces: int = 20,
) -> Summary | None:
    """Writes OUTPUT/CLASS/FACE.png, and OUTPUT.json with the settings and the package versions.

    The folder appears only when all images are written.

    Args:
      output: the folder.
      characters: the characters to draw.
      families: the package and the file pattern of each family.
      min_faces: a character that fewer faces have is left out.

    Returns:
      None if the images are complete already.

    Raises:
      UsageError: the folder holds something else, or a package is missing.
    """
    faces = find_faces(families)
    settings: dict[str, object] = {
        "drawing": [SIDE, CAP_HEIGHT, BASELINE, MAX_TWIN_DIFFERENCE],
        "min_faces": min_faces,
        "characters": characters,
        "faces": [path.name for path in faces],
        "packages": {
            name: _package(name).version
            for name in ("fonttools", "pillow", *(package for package, _ in families.values()))
        },
    }
    settings_file = output.parent / f"{output.name}.json"
    if output.exists():
        settings["images"] = sum(1 for _ in output.glob("*/*.png"))
        if settings_file.is_file() and settings_file.read_text() == json.dumps(settings, indent=1):
            return None
        raise UsageError(f"{output} exists and is not this set of images: move or remove it")

    partial = output.parent / f"{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    count, skipped = _draw_faces(partial, characters, faces)
    left_out = [character for character in characters if count[character] < min_faces]
    for character in left_out:
        shutil.rmtree(partial / class_name(character))
        del count[character]
    # The folder gets its name last: a folder of this name is always complete.
    settings_file.write_text(json.dumps({**settings, "images": count.total()}, indent=1))
    partial.rename(output)
    return Summary(len(count), len(faces), count.total(), skipped, left_out)


def _draw_faces(
    folder: Path, characters: str, faces: Mapping[Path, str]
) -> tuple[Counter[str], Counter[str]]:
    """Writes FOLDER/CLASS/FACE.png; returns images by character, and skipped drawings by reason."""
    count: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    seen: set[tuple[str, bytes]] = set()
    for character in characters:
        (folder / class_name(character)).mkdir(parents=True)
    for path, family in faces.items():
        images, reasons = draw_face(path, characters, small_capitals=family in SMALL_CAPITALS)
        skipped.update(reasons)
        for character, image in images.items():
            # An oblique face often has the same signs as its upright face.
            if (drawing := (character, image.tobytes())) in seen:
                skipped["drawn like this in another face"] += 1
                continue
            seen.add(drawing)
            count[character] += 1
            image.save(folder / class_name(character) / f"{path.stem.lower()}.png")
    return count, skipped


def main() -> int:
    """Draws the images; returns the exit code."""
    parser = argparse.ArgumentParser("python -m demo.draw", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="the folder for the images; OUTPUT.json gets the settings",
    )
    output = parser.parse_args().output
    start = time.perf_counter()
    try:
        summary = draw(output)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to draw the images", file=sys.stderr)
        return 130
    if summary is None:
        print(f"{output} is complete: there is nothing to do")
        return 0
    for reason, drawings in summary.skipped.most_common():
        print(f"skipped {drawings} drawings: {reason}")
    if summary.left_out:
        names = " ".join(map(class_name, summary.left_out))
        print(f"left out, because too few faces have them: {names}")
    print(
        f"{summary.images} images of {summary.classes} characters, in {summary.faces} faces of "
        f"{len(FAMILIES)} families, in {time.perf_counter() - start:.1f} s: {output}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
