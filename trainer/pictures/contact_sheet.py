"""A picture of queries beside their nearest neighbours, to look at what a model finds alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

GREEN: Colour = (0, 140, 70)
RED: Colour = (205, 30, 45)
GREY: Colour = (110, 110, 110)
INK: Colour = (25, 25, 25)
PAPER: Colour = (255, 255, 255)
LETTERBOX: Colour = (232, 232, 232)

# Frames differ in width as well as in colour, and captions carry a tick or a cross: the sheet
# reads without red and green too.
FRAME = 5
WIDTHS = {True: 5, False: 2, None: 2}
COLOURS = {True: GREEN, False: RED, None: GREY}

MARGIN = 12
GAP = 8
QUERY_GAP = 25
TITLE_SIZE = 17
TEXT_SIZE = 12
LINE = 18
MARK = 9

# Unicode categories of accents, joiners and control characters, which show nothing by themselves.
UNSEEN = ("Mn", "Me", "Cf", "Cc")


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of a contact sheet.

    image: uint8 [H, W, 3], RGB.
    caption: its class's text, any Unicode.
    match: is it of the query's class? None: not known, or not asked (a query).
    """

    image: np.ndarray
    caption: str
    match: bool | None = None


def choose_queries(labels: Any, *, num: int, seed: int = 0) -> np.ndarray:
    """Rows for a contact sheet, spread over the classes and drawn blindly, not picked.

    labels: integers [N].
    Returns distinct rows, int64 [min(num, N)]: one of every class in random order, then a second
    one of every class that has two, and so on. The same arguments give the same rows, and a
    smaller `num` gives the first of them. No labels: [0].
    Raises ValueError if labels are not of rank 1 or num is negative.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels are {list(labels.shape)}, must be [N]")
    if num < 0:
        raise ValueError(f"num is {num}, must not be negative")
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))
    names, classes, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    turn = np.empty(len(rows), np.int64)
    turn[by_class] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.lexsort((rng.permutation(len(names))[classes], turn))
    return rows[order[:num]]


def contact_sheet(
    queries: Sequence[Tile],
    neighbours: Sequence[Sequence[Tile]],
    *,
    title: str,
    headings: Sequence[str] = ("query",),
    tile_size: int = 96,
) -> Image.Image:
    """A sheet with a row for each query: the query, then its neighbours, nearest first.

    neighbours: for each query its neighbours in order of distance; rows may differ in length, what
    is missing stays white.
    headings: of the first columns; the others have the number of the neighbour.
    tile_size: side in pixels of the square that holds an image, 32 and up; an image keeps its
    aspect ratio and is scaled, up too, to fill it.
    Text is drawn in Pillow's own font, which has plain Latin letters: accents are dropped, and "?"
    stands for every other character that is not ASCII. Text too long for its place ends in "…".

    Neighbours of the query's class have a thick green frame and a tick, others a thin red frame
    and a cross; queries and neighbours with match=None a thin grey one. A legend says so, except
    where no neighbour's match is known. Returns an RGB image, the same for the same arguments and
    Pillow version. No queries: title and legend only.
    Raises ValueError if queries and neighbours differ in number, on an image that is not uint8
    [H, W, 3] with at least one pixel, on a smaller tile_size.
    """
    if len(queries) != len(neighbours):
        raise ValueError(f"{len(queries)} queries, but neighbours of {len(neighbours)}")
    if tile_size < 32:
        raise ValueError(f"tile_size is {tile_size}, must be at least 32")
    found = [tile for row in neighbours for tile in row]
    for tile in [*queries, *found]:
        _check(tile)

    heading, text = _Text(TITLE_SIZE), _Text(TEXT_SIZE)
    cell = tile_size + 2 * FRAME
    lefts = [MARGIN]
    for column in range(max(map(len, neighbours), default=0)):
        lefts.append(lefts[-1] + cell + (GAP if column else QUERY_GAP))
    legend = [(True, f"same class as the {headings[0]}"), (False, "another class")]
    if found and all(tile.match is None for tile in found):
        legend = []
    legend_steps = [LINE + 4 + MARK + 5 + text.width(words) + 20 for _, words in legend]
    width = max(lefts[-1] + cell, MARGIN + sum(legend_steps)) + MARGIN
    heads_top = MARGIN + 24 + (LINE + 8 if legend else 0)
    top = heads_top + (LINE if queries else 0)
    row_height = cell + 2 + LINE + GAP
    sheet = Image.new("RGB", (width, top + row_height * len(queries) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)

    heading.draw(draw, (MARGIN, MARGIN), title, width - 2 * MARGIN)
    x, y = MARGIN, MARGIN + 24
    for (match, words), step in zip(legend, legend_steps, strict=True):
        _frame(draw, (x, y + 1), LINE - 2, match)
        _mark(draw, (x + LINE + 4, y + 4), match)
        text.draw(draw, (x + LINE + 4 + MARK + 5, y + 1), words, step)
        x += step
    if queries:
        for column, left in enumerate(lefts):
            name = headings[column] if column < len(headings) else str(column)
            text.draw(draw, (left, heads_top), name, cell)
    if queries and len(lefts) > 1:
        line = lefts[1] - QUERY_GAP // 2 - 1
        draw.line((line, heads_top, line, sheet.height - MARGIN), (190, 190, 190))

    for query, row in zip(queries, neighbours, strict=True):
        tiles = [Tile(query.image, query.caption), *row]
        for left, tile in zip(lefts, tiles, strict=False):  # a row may be short
            _frame(draw, (left, top), cell, tile.match)
            _paste(sheet, tile.image, (left + FRAME, top + FRAME), tile_size)
            caption = (left, top + cell + 2)
            if tile.match is not None:
                _mark(draw, (left, top + cell + 5), tile.match)
                caption = (left + MARK + 4, top + cell + 2)
            text.draw(draw, caption, tile.caption, left + cell - caption[0])
        top += row_height
    return sheet


def _check(tile: Tile) -> None:
    image = tile.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image of {tile.caption!r} is {image.dtype} {list(image.shape)}, "
            "must be uint8 [H, W, 3] with at least one pixel"
        )


def _frame(draw: ImageDraw.ImageDraw, at: tuple[int, int], side: int, match: bool | None) -> None:
    """The outline of a square; a thin one lies at the outer edge."""
    box = (at[0], at[1], at[0] + side - 1, at[1] + side - 1)
    draw.rectangle(box, outline=COLOURS[match], width=WIDTHS[match])


def _mark(draw: ImageDraw.ImageDraw, at: tuple[int, int], match: bool) -> None:
    """A tick or a cross, MARK pixels wide: drawn, since fonts may lack both."""
    x, y = at
    end = MARK - 1
    if match:
        points = [(x, y + 4), (x + 3, y + end - 1), (x + end, y)]
        draw.line(points, COLOURS[True], width=2, joint="curve")
    else:
        draw.line((x, y, x + end - 1, y + end - 1), COLOURS[False], width=2)
        draw.line((x, y + end - 1, x + end - 1, y), COLOURS[False], width=2)


def _paste(sheet: Image.Image, image: np.ndarray, at: tuple[int, int], side: int) -> None:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet.paste(LETTERBOX, (at[0], at[1], at[0] + side, at[1] + side))
    scaled = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    sheet.paste(scaled, (at[0] + (side - size[0]) // 2, at[1] + (side - size[1]) // 2))


class _Text:
    """Pillow's own font at one size."""

    def __init__(self, size: int) -> None:
        self._font = ImageFont.load_default(size)

    def width(self, text: str) -> int:
        return round(self._font.getlength(text))

    def fit(self, text: str, width: int) -> str:
        """The text in plain letters, or as much of its start as fits `width` pixels."""
        text = _plain(text)
        if self.width(text) <= width:
            return text
        while text and self.width(text.rstrip() + "…") > width:
            text = text[:-1]
        return text.rstrip() + "…"

    def draw(self, draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int) -> None:
        draw.text(at, self.fit(text, width), INK, self._font)


def _plain(text: str) -> str:
    """The text on one line of ASCII: without accents, and with "?" for what is not ASCII."""
    decomposed = unicodedata.normalize("NFKD", " ".join(text.split()))
    letters = "".join(char for char in decomposed if unicodedata.category(char) not in UNSEEN)
    return letters.encode("ascii", "replace").decode()
