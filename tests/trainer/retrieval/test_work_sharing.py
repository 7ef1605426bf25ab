"""Several threads share tiles of queries: each takes the next tile."""

import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from trainer.retrieval import work_sharing


def test_each_tile_once(monkeypatch):
    monkeypatch.setattr(work_sharing, "devices_of", lambda strategy: ["CPU:0"] * 3)
    done = []
    strategy = tf.distribute.get_strategy()
    work_sharing.for_each_tile(
        strategy, [np.arange(n) for n in range(50)], lambda tile: done.append(len(tile))
    )
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_one_thread_ends_the_others(monkeypatch, bad):
    """The other threads start no further tile, so Ctrl+C does not have to wait for all tiles."""
    monkeypatch.setattr(work_sharing, "devices_of", lambda strategy: ["CPU:0"] * 2)
    started, both = [], threading.Barrier(2)

    def work(tile: np.ndarray) -> None:
        started.append(tile)
        if len(started) <= 2:
            both.wait()
        if tile[0] == bad:
            raise ValueError("no")
        time.sleep(0.02)

    tiles = [np.array([n]) for n in range(300)]
    with pytest.raises(ValueError, match="no"):
        work_sharing.for_each_tile(tf.distribute.get_strategy(), tiles, work)
    assert len(started) < 150
