"""A small data set that is made once for all tests of the trainer."""

from pathlib import Path

import pytest

from tests.fixtures.datasets import small_data_set


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    return small_data_set(tmp_path_factory.mktemp("trainer"))
