"""Results come in order and not too far ahead, and errors are raised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tripletmill.storage.parallel import AHEAD_PER_THREAD, AT_ONCE, map_ahead


@given(count=st.integers(0, 100), threads=st.integers(1, 5))
def test_in_order(count, threads):
    assert list(map_ahead(lambda i: -i, range(count), threads=threads)) == [
        -i for i in range(count)
    ]


def test_not_further_ahead_than_said():
    done, threads = [], 2
    results = map_ahead(done.append, range(10_000), threads=threads)
    next(results)
    results.close()
    assert len(done) <= (threads * AHEAD_PER_THREAD + 1) * AT_ONCE


def test_an_error_comes_in_its_place_and_ends_it():
    def work(i):
        if i == 40:
            raise ValueError("forty")
        return i

    seen: list[int] = []
    with pytest.raises(ValueError, match="forty"):
        seen.extend(map_ahead(work, range(1000), threads=3))
    # The items that its thread had already taken are lost.
    assert seen == list(range(40 // AT_ONCE * AT_ONCE))
