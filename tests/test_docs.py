"""The worked examples of docs/losses.md are computed, and their tables checked by the oracle.

The tests that pages for developers name exist.
"""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import triplet_oracle

ROOT = Path(__file__).parents[1]
LOSSES = ROOT / "docs/losses.md"
POINTS = {0.0: "A", 2.0: "A", 3.0: "B", 7.0: "B", 8.0: "C", 20.0: "C"}


def test_examples():
    failed, tried = doctest.testfile(str(LOSSES), module_relative=False)
    assert tried >= 10
    assert failed == 0


def rows(first_cell: str) -> list[list[str]]:
    """The cells of the table whose heading starts with this cell."""
    text = LOSSES.read_text(encoding="utf-8")
    table = text[text.index(f"| {first_cell} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")[2:]]


@pytest.mark.parametrize(
    ("heading", "loss"), [("anchor", "hard"), ("anchor, positive", "semihard")]
)
def test_tables_of_the_six_points(heading, loss):
    terms = []
    for who, to_positive, to_negative, term in rows(heading):
        anchor, *positive = (float(x) for x in who.split(", "))
        positives = positive or [x for x in POINTS if POINTS[x] == POINTS[anchor] and x != anchor]
        negatives = [abs(x - anchor) for x in POINTS if POINTS[x] != POINTS[anchor]]
        reach = max(abs(x - anchor) for x in positives)
        assert float(to_positive) == reach
        (chosen,) = triplet_oracle.choose_negatives(reach, negatives, loss, margin=2.0)
        assert chosen in [float(number) for number in re.findall(r"\d+", to_negative)]
        assert re.match(rf"2 \+ {reach:.0f} - {chosen:.0f} ", term)
        terms.append(max(0.0, 2 + reach - chosen))
        assert float(re.findall(r"\d+$", term)[0]) == terms[-1]
    labels, points = [*POINTS.values()], np.array([*POINTS])[:, None]
    expected = getattr(triplet_oracle, loss)(labels, points, margin=2.0, metric="L2")
    assert np.mean(terms) == pytest.approx(expected)


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_tests_that_a_page_names_exist(page):
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8")))
    assert named
    assert named <= set(re.findall(r"def (test_\w+)\(", tests))
