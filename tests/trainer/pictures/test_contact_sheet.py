"""The contact sheet's layout by pixel, its captions, and the blind choice of queries."""

import numpy as np
import pytest

from trainer.pictures.contact_sheet import (
    COLOURS,
    FRAME,
    GAP,
    GREEN,
    GREY,
    LETTERBOX,
    LINE,
    MARGIN,
    PAPER,
    QUERY_GAP,
    RED,
    Tile,
    choose_queries,
    contact_sheet,
)

BLUE = (10, 20, 240)
SIDE = 64
CELL = SIDE + 2 * FRAME
TOP = MARGIN + 24 + LINE + 8 + LINE


def tile(caption="a", match=None, height=40, width=40, colour=BLUE):
    return Tile(np.full((height, width, 3), colour, np.uint8), caption, match)


def corner(row, column):
    """The top left pixel of a cell's frame."""
    x = MARGIN + column * CELL + (QUERY_GAP + (column - 1) * GAP if column else 0)
    return x, TOP + row * (CELL + 2 + LINE + GAP)


def pixel(sheet, row, column, dx, dy):
    x, y = corner(row, column)
    return sheet.getpixel((x + dx, y + dy))


def sheet_of(*rows, **kwargs):
    return contact_sheet(
        [row[0] for row in rows], [row[1:] for row in rows], title="t", tile_size=SIDE, **kwargs
    )


def test_size_grows_with_rows_and_columns():
    row = [tile()] + [tile(match=True)] * 5
    one, two = sheet_of(row), sheet_of(row, row)
    assert one.mode == "RGB"
    assert one.width == two.width == corner(0, 5)[0] + CELL + MARGIN
    assert two.height - one.height == CELL + 2 + LINE + GAP
    assert two.height == corner(1, 0)[1] + CELL + 2 + LINE + MARGIN


def test_frames():
    sheet = sheet_of([tile(), tile(match=True), tile(match=False), tile(match=None)])
    for column, colour in enumerate([GREY, GREEN, RED, GREY]):
        for at in [(0, 0), (CELL - 1, 0), (0, CELL - 1), (CELL - 1, CELL - 1)]:
            assert pixel(sheet, 0, column, *at) == colour
        assert pixel(sheet, 0, column, CELL // 2, CELL // 2) == BLUE
    # Frames differ without colour, too: a thick frame reaches the image, and a thin one leaves a
    # white line.
    assert pixel(sheet, 0, 1, FRAME - 1, CELL // 2) == GREEN
    assert pixel(sheet, 0, 2, FRAME - 1, CELL // 2) == PAPER
    # The captions of neighbours start with a mark in the frame's colour.
    for column, colour in [(1, GREEN), (2, RED)]:
        x, y = corner(0, column)
        mark = np.array(sheet.crop((x, y + CELL + 2, x + CELL, y + CELL + 2 + LINE)))
        assert (mark == colour).all(axis=2).sum() > 10


def test_match_may_be_a_numpy_bool():
    row = [tile(), tile(match=True), tile(match=False)]
    also = [tile(), tile(match=np.True_), tile(match=np.False_)]
    assert sheet_of(row).tobytes() == sheet_of(also).tobytes()


def test_a_query_has_a_neutral_frame_whatever_its_match():
    sheet = sheet_of([tile(match=True), tile(match=True)])
    assert pixel(sheet, 0, 0, 0, 0) == GREY


@pytest.mark.parametrize(("height", "width"), [(20, 40), (200, 100), (1, 3000), (3000, 1), (1, 1)])
def test_aspect_ratio_is_kept(height, width):
    sheet = sheet_of([tile(height=height, width=width), tile(match=True)])
    x, y = corner(0, 0)
    box = (x + FRAME, y + FRAME, x + FRAME + SIDE, y + FRAME + SIDE)
    inside = np.array(sheet.crop(box))
    image = (inside == BLUE).all(axis=2)
    assert (image | (inside == LETTERBOX).all(axis=2)).all()
    rows, columns = image.any(axis=1).sum(), image.any(axis=0).sum()
    longest = max(height, width)
    assert rows == max(1, round(SIDE * height / longest))
    assert columns == max(1, round(SIDE * width / longest))
    assert image[(SIDE - 1) // 2, (SIDE - 1) // 2]


def test_fewer_neighbours_than_columns():
    sheet = sheet_of([tile(), tile(match=True)], [tile()] + [tile(match=False)] * 3, [tile()])
    assert pixel(sheet, 0, 1, 0, 0) == GREEN
    for row, column in [(0, 2), (0, 3), (2, 1), (2, 2), (2, 3)]:
        x, y = corner(row, column)
        empty = np.array(sheet.crop((x, y, x + CELL, y + CELL + LINE)))
        assert (empty == PAPER).all()
    assert pixel(sheet, 1, 3, 0, 0) == RED


def test_no_queries_and_no_neighbours():
    assert contact_sheet([], [], title="nothing").height < TOP
    only = sheet_of([tile()])
    assert pixel(only, 0, 0, 0, 0) == GREY


def test_order_is_kept():
    shades = [(0, 0, 50 * i) for i in range(5)]
    sheet = sheet_of([tile(colour=shade, match=False) for shade in shades])
    assert [pixel(sheet, 0, i, CELL // 2, CELL // 2) for i in range(5)] == shades


def test_captions_stay_within_their_cells():
    plain = sheet_of([tile(""), tile("", True), tile("", False)])
    full = sheet_of([tile("W" * 500), tile("ÄÖ " * 99, True), tile("猫" * 99, False)])
    changed = (np.array(plain) != np.array(full)).any(axis=2)
    for column in range(3):
        x, y = corner(0, column)
        assert changed[y + CELL :, x : x + CELL].any()
        changed[y + CELL :, x : x + CELL] = False
    assert not changed.any()


def caption(text):
    """The pixels of a caption."""
    sheet = sheet_of([tile(text)])
    return np.array(sheet.crop((0, TOP + CELL, MARGIN + CELL, TOP + CELL + LINE))).tobytes()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Smörgås, café", "Smorgas, cafe"),
        ("ﬁg ｆｕｌｌ", "fig full"),
        (" a\tb\n c", "a b c"),
        ("file\udc80", "file?"),
        ("猫\u200d cat", "犬鳥 cat"),  # Pillow draws one box for each character.
        ("Golden Delicious of the North", "Golden Delicious and others"),
    ],
)
def test_how_text_is_drawn(text, shown):
    assert caption(text) == caption(shown) != caption(shown[:3])


def test_the_font_has_more_than_ascii():
    assert len({caption(text) for text in ("", "?", "猫", "“", "”", "°", "…")}) == 7


def test_same_arguments_same_bytes():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, size=(50, 70, 3)).astype(np.uint8)
    row = [Tile(image, "a"), Tile(image, "b", True), Tile(image[:20], "c", False)]
    before = image.copy()
    assert sheet_of(row, row).tobytes() == sheet_of(row, row).tobytes()
    np.testing.assert_array_equal(image, before)


def test_colours_are_told_apart_in_the_title_row():
    sheet = np.array(sheet_of([tile(), tile(match=True)]))[: TOP - LINE]
    for match in (True, False):
        assert (sheet == COLOURS[match]).all(axis=2).any()


def test_no_legend_where_no_match_is_known():
    known, unknown = sheet_of([tile(), tile(), tile(match=False)]), sheet_of([tile(), tile()])
    assert known.height - unknown.height == LINE + 8
    above = np.array(unknown)[: TOP - LINE - 8]
    assert not any((above == COLOURS[match]).all(axis=2).any() for match in (True, False))


def test_each_query_has_its_neighbours():
    with pytest.raises(ValueError, match="zip"):
        contact_sheet([tile(), tile()], [[]], title="t")


def test_queries_are_spread_over_classes():
    labels = np.repeat([5, 6, 7, 8], [1, 2, 3, 50])
    rows = choose_queries(labels, num=9)
    assert sorted(labels[rows[:4]]) == [5, 6, 7, 8]
    assert sorted(labels[rows[4:7]]) == [6, 7, 8]
    assert sorted(labels[rows[7:]]) == [7, 8]
    assert len(set(rows.tolist())) == 9


def test_queries_are_drawn_blindly_and_repeatably():
    labels = np.repeat(np.arange(40), 25)
    rows = choose_queries(labels, num=20)
    np.testing.assert_array_equal(rows, choose_queries(labels, num=20))
    np.testing.assert_array_equal(rows[:7], choose_queries(labels, num=7))
    assert set(rows) != set(choose_queries(labels, num=20, seed=1))
    # The choice is not always the first images, nor always the first classes.
    assert len(set(rows % 25)) > 5
    assert sorted(labels[rows]) != list(range(20))


def test_all_rows_and_no_rows():
    labels = [3, 1, 3, 2]
    assert sorted(choose_queries(labels, num=99)) == [0, 1, 2, 3]
    assert choose_queries(labels, num=0).shape == (0,)
    assert choose_queries([], num=3).shape == (0,)
