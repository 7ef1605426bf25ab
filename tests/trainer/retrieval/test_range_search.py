"""The fast range search leaves out no row that it must return, and its distances are exact."""

import numpy as np
import pytest

from trainer.retrieval.distances import all_distances, distances, sort_keys
from trainer.retrieval.range_search import RangeSearch


def exact(left, right):
    """Computes with twice as many bits and rounds once."""
    difference = left[:, None].astype(np.longdouble) - right[None].astype(np.longdouble)
    with np.errstate(over="ignore"):
        return (difference**2).sum(axis=2).astype(np.float32)


def pairs(rows, columns):
    return np.indices((rows, columns)).reshape(2, -1)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e19, 1e25])
@pytest.mark.parametrize("dim", [1, 3, 130])
def test_distances_are_rounded_once(scale, dim):
    rng = np.random.default_rng(dim)
    rows = (scale * rng.normal(size=(60, dim))).astype(np.float32)
    rows[7] = rows[3]
    rows[8] = rows[3] * np.float32(1 + 2**-20)
    i, j = pairs(60, 60)
    found = distances(rows, rows, i, j).reshape(60, 60)
    np.testing.assert_array_equal(found, exact(rows, rows))
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(all_distances(rows[:23], rows), found[:23])
    # The result of a row does not depend on the other rows.
    np.testing.assert_array_equal(
        distances(rows, rows, i[59:3:-7], j[59:3:-7]), found.ravel()[59:3:-7]
    )
    assert np.array_equal(distances(rows, rows, i[99:100], j[99:100]), found.ravel()[99:100])


def test_distances_far_from_the_origin():
    rng = np.random.default_rng(0)
    rows = (1000 + 1e-3 * rng.normal(size=(90, 16))).astype(np.float32)
    np.testing.assert_array_equal(all_distances(rows, rows), exact(rows, rows))


def test_order_of_queries_and_distances():
    distance = np.array([0, 1e-45, 1e-38, 0.1, 1, 3e38, np.inf], np.float32)
    query = np.repeat([0, 1, 70_000], 7)
    keys = sort_keys(query, np.tile(distance, 3))
    assert (np.diff(keys) > 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("dim", [2, 128, 1500])
def test_range(scale, dim):
    """The bounds are themselves distances, so nothing can be closer to a bound."""
    rng = np.random.default_rng(dim)
    gallery = scale * (3 + rng.normal(size=(150, dim)))
    gallery = gallery.astype(np.float32)
    queries = gallery[:12] + (scale * 1e-5 * rng.normal(size=(12, dim))).astype(np.float32)
    distance = exact(queries, gallery)
    sorted_ = np.sort(distance, axis=1)
    least, most = sorted_[:, 5], sorted_[:, 40]
    range_search = RangeSearch(queries, gallery, tile=50)
    tile = range_search.query_tile(np.arange(12))
    seen = np.zeros(distance.shape, bool)
    nearer = np.zeros(12, int)
    for number, part in enumerate(range_search.tiles):
        places = range_search.positions(np.arange(150))
        own = np.flatnonzero((part.start <= places) & (places < part.stop))
        left_out = np.stack([np.full(len(own), 4), places[own]], axis=1)
        near = range_search.within(tile, number, least, most, left_out)
        seen[near.query, near.row] = True
        nearer += near.nearer
    inside = (least[:, None] <= distance) & (distance <= most[:, None])
    inside[4] = False
    assert (seen | ~inside).all()
    below = (distance < least[:, None]).sum(axis=1)
    below[4] = 0
    # Rows below the lower bound are counted or returned.
    np.testing.assert_array_equal(nearer + (seen & (distance < least[:, None])).sum(axis=1), below)
    if scale == 1.0:
        assert (seen & ~inside).sum() <= 3
        assert nearer.sum() > 40


def test_tiles_hold_every_row_once_and_grow():
    range_search = RangeSearch(
        np.ones((1, 2), np.float32), np.ones((1000, 2), np.float32), tile=300
    )
    assert [part.stop - part.start for part in range_search.tiles] == [64, 64, 128, 256, 300, 188]
    assert sorted(range_search.positions(np.arange(1000))) == list(range(1000))
