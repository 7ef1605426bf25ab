"""Draws contact sheets: pictures of queries beside their nearest neighbours."""

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

# Frames differ in width as well as in colour, and captions start with a tick or a cross, so that
# the sheet can be read without telling red from green.
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
LEGEND_TEXT = LINE + 4 + MARK + 5  # From a frame of the legend to its text.
RULE: Colour = (190, 190, 190)

# Unicode categories of accents, joiners and control characters, which show nothing by themselves.
UNSEEN = ("Mn", "Me", "Cf", "Cc")


@dataclass(frozen=True, eq=False)
class Tile:
    """One image of a contact sheet.

    Attributes:
      image: uint8 [H, W, 3], RGB, with at least one pixel.
      caption: name of its class, any Unicode text.
      match: whether the image is of the query's class; None if that is unknown, and for a query.
    """

    image: np.ndarray
    caption: str
    match: bool | None = None


def choose_queries(labels: Any, *, num: int, seed: int = 0) -> np.ndarray:
    """Draws rows for a contact sheet at random, spread over the classes.

    The first rows are one of every class, in random order; then comes a second one of every class
    that has two, and so on. A smaller `num` gives the first of the rows.

    Args:
      labels: integers [N].
      num: number of rows.
      seed: equal seeds give equal rows.

    Returns:
      Distinct rows, int64 [min(num, N)]; [0] where there are no labels.

    Raises:
      ValueError: labels are not of rank 1, or num is negative.
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
    """Draws a sheet with a row for each query: the query, then its neighbours, nearest first.

    Neighbours of the query's class have a thick green frame and a tick, others a thin red frame and
    a cross. Queries, and neighbours whose match is unknown, have a thin grey frame. A legend
    explains the frames, unless no neighbour's match is known.

    Text is drawn in Pillow's own font, which has plain Latin letters: accents are dropped, and "?"
    replaces every other character that is not ASCII. Text that is too long ends in "…".

    Args:
      queries: one tile for each row.
      neighbours: for each query its neighbours, nearest first. Rows may differ in length; a row
        that is shorter ends in white.
      title: text above the sheet.
      headings: of the first columns; other columns are numbered by neighbour.
      tile_size: side of the square that holds an image, in pixels, at least 32. An image keeps its
        aspect ratio, and is scaled to fit the square.

    Returns:
      An RGB image; equal arguments and versions of Pillow give equal images. Without queries it has
      a title and a legend only.

    Raises:
      ValueError: queries and neighbours differ in number, an image is not uint8 [H, W, 3] with at
        least one pixel, or tile_size is below 32.
    """
    if len(queries) != len(neighbours):
        raise ValueError(f"{len(queries)} queries, but neighbours of {len(neighbours)}")
    if tile_size < 32:
        raise ValueError(f"tile_size is {tile_size}, must be at least 32")
    all_neighbours = [tile for row in neighbours for tile in row]
    for tile in [*queries, *all_neighbours]:
        _check(tile)
    explained = not all_neighbours or any(tile.match is not None for tile in all_neighbours)
    legend = [f"same class as the {headings[0]}", "another class"] if explained else []
    num_columns = 1 + max(map(len, neighbours), default=0)
    painter = _Painter(tile_size, len(queries), num_columns, legend)
    painter.draw_head(title, headings)
    for number, (query, row) in enumerate(zip(queries, neighbours, strict=True)):
        painter.draw_row(number, [Tile(query.image, query.caption), *row])
    return painter.sheet


class _Painter:
    """Lays out and draws a contact sheet.

    Args:
      tile_size: side of an image, in pixels.
      num_rows: number of queries.
      num_columns: one for the query, and one for each neighbour.
      legend: texts for the frames of matches and of other neighbours; empty for no legend.
    """

    def __init__(
        self, tile_size: int, num_rows: int, num_columns: int, legend: Sequence[str]
    ) -> None:
        self._tile_size, self._num_rows = tile_size, num_rows
        self._title_text, self._text = _Text(TITLE_SIZE), _Text(TEXT_SIZE)
        self._cell = tile_size + 2 * FRAME
        self._row_height = self._cell + 2 + LINE + GAP
        self._lefts = [MARGIN]
        for column in range(num_columns - 1):
            self._lefts.append(self._lefts[-1] + self._cell + (GAP if column else QUERY_GAP))
        self._legend = [(words, LEGEND_TEXT + self._text.width(words) + 20) for words in legend]
        legend_width = sum(width for _, width in self._legend)
        self._headings_top = MARGIN + 24 + (LINE + 8 if legend else 0)
        self._top = self._headings_top + (LINE if num_rows else 0)
        width = max(self._lefts[-1] + self._cell, MARGIN + legend_width) + MARGIN
        height = self._top + self._row_height * num_rows + MARGIN - GAP
        self.sheet = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.sheet)

    def draw_head(self, title: str, headings: Sequence[str]) -> None:
        """Draws the title, the legend and the headings of the columns."""
        width = self.sheet.width - 2 * MARGIN
        self._title_text.draw(self._draw, (MARGIN, MARGIN), title, width)
        x, y = MARGIN, MARGIN + 24
        for match, (words, width) in zip((True, False), self._legend, strict=False):
            _frame(self._draw, (x, y + 1), LINE - 2, match)
            _mark(self._draw, (x + LINE + 4, y + 4), match)
            self._text.draw(self._draw, (x + LEGEND_TEXT, y + 1), words, width)
            x += width
        if not self._num_rows:
            return
        for column, left in enumerate(self._lefts):
            heading = headings[column] if column < len(headings) else str(column)
            self._text.draw(self._draw, (left, self._headings_top), heading, self._cell)
        if len(self._lefts) > 1:
            x = self._lefts[1] - QUERY_GAP // 2 - 1
            self._draw.line((x, self._headings_top, x, self.sheet.height - MARGIN), RULE)

    def draw_row(self, number: int, tiles: Sequence[Tile]) -> None:
        """Draws a query and its neighbours."""
        top = self._top + number * self._row_height
        for left, tile in zip(self._lefts, tiles, strict=False):  # A row may be shorter.
            _frame(self._draw, (left, top), self._cell, tile.match)
            _paste(self.sheet, tile.image, (left + FRAME, top + FRAME), self._tile_size)
            caption_left = left
            if tile.match is not None:
                _mark(self._draw, (left, top + self._cell + 5), tile.match)
                caption_left += MARK + 4
            caption_width = left + self._cell - caption_left
            at = (caption_left, top + self._cell + 2)
            self._text.draw(self._draw, at, tile.caption, caption_width)


def _check(tile: Tile) -> None:
    image = tile.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image of {tile.caption!r} is {image.dtype} {list(image.shape)}, "
            "must be uint8 [H, W, 3] with at least one pixel"
        )


def _frame(draw: ImageDraw.ImageDraw, at: tuple[int, int], side: int, match: bool | None) -> None:
    """Draws the outline of a square; a thin outline lies at the outer edge."""
    box = (at[0], at[1], at[0] + side - 1, at[1] + side - 1)
    draw.rectangle(box, outline=COLOURS[match], width=WIDTHS[match])


def _mark(draw: ImageDraw.ImageDraw, at: tuple[int, int], match: bool) -> None:
    """Draws a tick or a cross, MARK pixels wide, with lines, since fonts may lack both."""
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
        """The text in plain letters, shortened to `width` pixels."""
        text = _plain(text)
        if self.width(text) <= width:
            return text
        while text and self.width(text.rstrip() + "…") > width:
            text = text[:-1]
        return text.rstrip() + "…"

    def draw(self, draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int) -> None:
        draw.text(at, self.fit(text, width), INK, self._font)


def _plain(text: str) -> str:
    """The text on one line, without accents, and with "?" for characters that are not ASCII."""
    decomposed = unicodedata.normalize("NFKD", " ".join(text.split()))
    letters = "".join(char for char in decomposed if unicodedata.category(char) not in UNSEEN)
    return letters.encode("ascii", "replace").decode()
