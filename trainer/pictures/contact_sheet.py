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
      num: number of rows, 0 or more.
      seed: equal seeds give equal rows.

    Returns:
      Distinct rows, int64 [min(num, N)]; [0] where there are no labels.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))
    labels = np.asarray(labels)[rows]
    names, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
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

    Text is drawn in Pillow's own font, which has the letters A to Z without accents. Accents are
    dropped, and a box stands for every character that the font lacks. Text that is too long ends in
    "…".

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
      ValueError: queries and neighbours differ in number.
    """
    matches = [tile.match for row in neighbours for tile in row]
    explained = not matches or any(match is not None for match in matches)
    legend = [f"same class as the {headings[0]}", "another class"] if explained else []
    font = ImageFont.load_default(TEXT_SIZE)
    legend_widths = [LEGEND_TEXT + round(font.getlength(words)) + 20 for words in legend]
    cell = tile_size + 2 * FRAME
    lefts = [MARGIN]
    for column in range(max(map(len, neighbours), default=0)):
        lefts.append(lefts[-1] + cell + (GAP if column else QUERY_GAP))
    headings_top = MARGIN + 24 + (LINE + 8 if legend else 0)
    top = headings_top + (LINE if queries else 0)
    row_height = cell + 2 + LINE + GAP
    width = max(lefts[-1] + cell, MARGIN + sum(legend_widths)) + MARGIN
    height = top + row_height * len(queries) + MARGIN - GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(TITLE_SIZE)
    _text(draw, (MARGIN, MARGIN), title, width - 2 * MARGIN)
    draw.font = font
    x, y = MARGIN, MARGIN + 24
    for match, words, width in zip((True, False), legend, legend_widths, strict=False):
        _frame(draw, (x, y + 1), LINE - 2, match)
        _mark(draw, (x + LINE + 4, y + 4), match)
        _text(draw, (x + LEGEND_TEXT, y + 1), words, width)
        x += width
    for column, left in enumerate(lefts if queries else []):
        heading = headings[column] if column < len(headings) else str(column)
        _text(draw, (left, headings_top), heading, cell)
    if len(lefts) > 1:
        x = lefts[1] - QUERY_GAP // 2 - 1
        draw.line((x, headings_top, x, height - MARGIN), RULE)
    for query, row in zip(queries, neighbours, strict=True):
        for left, tile in zip(lefts, [Tile(query.image, query.caption), *row], strict=False):
            _draw_tile(sheet, draw, (left, top), tile, tile_size)
        top += row_height
    return sheet


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], tile: Tile, side: int
) -> None:
    """Draws an image in its frame, and its caption below the frame."""
    (left, top), cell = at, side + 2 * FRAME
    _frame(draw, at, cell, tile.match)
    square = Image.new("RGB", (side, side), LETTERBOX)
    height, width = tile.image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = Image.fromarray(tile.image).resize(size, Image.Resampling.LANCZOS)
    square.paste(scaled, ((side - size[0]) // 2, (side - size[1]) // 2))
    sheet.paste(square, (left + FRAME, top + FRAME))
    caption_left = left
    if tile.match is not None:
        _mark(draw, (left, top + cell + 5), tile.match)
        caption_left += MARK + 4
    _text(draw, (caption_left, top + cell + 2), tile.caption, left + cell - caption_left)


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


def _text(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int) -> None:
    """Draws text on one line, without accents, shortened to `width` pixels."""
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    # Names of files that are not UTF-8 have surrogates, which Pillow cannot draw.
    shown = text = text.encode(errors="replace").decode()
    while text and round(draw.textlength(shown)) > width:
        text = text[:-1]
        shown = text.rstrip() + "…"
    draw.text(at, shown, INK)
