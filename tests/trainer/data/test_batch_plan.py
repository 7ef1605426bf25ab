"""The laws of the batch plan, for random class sizes."""

import collections
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.batch_plan import FIXED_POINT_ONE, BatchPlan, quantized
from tripletmill.errors import UsageError


def index_of(*sizes, order=None) -> SimpleNamespace:
    """An index with labels 0, 3, 6, ... and these numbers of images, in a given order."""
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes).astype(np.int32)
    return SimpleNamespace(label=labels if order is None else order(labels))


ORDERS = {
    "contiguous": None,
    "scattered": np.random.default_rng(0).permutation,
    "divided": lambda labels: np.concatenate([labels[::2], labels[1::2]]),
}


@st.composite
def plans(draw, smallest=2, largest=20, **fixed):
    sizes = draw(st.lists(st.integers(smallest, largest), min_size=2, max_size=12))
    arguments = {
        "classes_per_batch": draw(st.integers(2, len(sizes))),
        "images_per_class": draw(st.integers(2, 6)),
        "seed": draw(st.integers(-5, 2**40)),
        **fixed,
    }
    return BatchPlanWithLabels(
        index_of(*sizes, order=ORDERS[draw(st.sampled_from(list(ORDERS)))]), **arguments
    )


class BatchPlanWithLabels(BatchPlan):
    """A plan that keeps the arguments it was made of."""

    def __init__(self, index, **arguments):
        super().__init__(index, **arguments)
        self.index, self.arguments = index, arguments
        self.labels = index.label
        self.sizes = collections.Counter(self.labels.tolist())

    def lines(self, step, **more) -> np.ndarray:
        """The rows of a batch with one class a line, [P, K]."""
        return self.batch(step, **more).reshape(self.classes_per_batch, self.images_per_class)


def assert_p_classes_of_k_images(plan, lines):
    labels = plan.labels[lines]
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0].tolist())) == plan.classes_per_batch
    for label, line in zip(labels[:, 0].tolist(), lines, strict=True):
        times = collections.Counter(line.tolist())
        size, asked = plan.sizes[label], plan.images_per_class
        assert len(times) == min(size, asked)
        assert max(times.values()) - min(times.values()) <= (1 if asked > size else 0)


# ---- The laws of uniform weighting.


@settings(deadline=None)
@given(plan=plans(), first=st.integers(0, 10**12))
def test_a_batch_is_p_classes_of_k_images(plan, first):
    for step in range(first, first + 5):
        assert_p_classes_of_k_images(plan, plan.lines(step))


@settings(deadline=None)
@given(plan=plans(), first_pass=st.integers(0, 1000))
def test_classes_come_equally_often(plan, first_pass):
    """The law holds over any number of passes, from the first pass or from a later one."""
    appearances = collections.Counter(dict.fromkeys(plan.classes.tolist(), 0))
    first = first_pass * plan.steps_per_pass
    for step in range(first, first + 5 * plan.steps_per_pass):
        appearances.update(plan.labels[plan.lines(step)[:, 0]].tolist())
        if (step + 1) % plan.steps_per_pass == 0:
            assert max(appearances.values()) - min(appearances.values()) <= 1


@settings(deadline=None)
@given(plan=plans())
def test_all_images_of_a_class_come_before_any_comes_again(plan):
    seen = collections.defaultdict(list)
    for step in range(60):
        for line in plan.lines(step):
            seen[int(plan.labels[line[0]])] += line.tolist()
    for label, rows in seen.items():
        size = plan.sizes[label]
        for start in range(0, len(rows) - size + 1, size):
            assert len(set(rows[start : start + size])) == size


def test_images_meet_in_changing_company():
    """Each cycle has another order, whether or not appearances end at the end of a class."""
    plan = BatchPlanWithLabels(index_of(8, 8), classes_per_batch=2, images_per_class=4)
    cycles = [
        frozenset(frozenset(plan.lines(s)[0].tolist()) for s in (i, i + 1)) for i in (0, 2, 4)
    ]
    assert len(set(cycles)) > 1
    # Here appearances do not end at the end of the class.
    plan = BatchPlanWithLabels(index_of(9, 9), classes_per_batch=2, images_per_class=4)
    pairs = {
        frozenset(pair)
        for step in range(200)
        for line in plan.lines(step)
        if line[0] < 9
        for pair in zip(line.tolist(), line[1:].tolist(), strict=False)
    }
    assert len(pairs) == 9 * 8 / 2


# ---- The laws of every plan.

KINDS = [
    {},
    {"class_weighting": "sqrt"},
    {"class_weighting": "size"},
    {"hard_share": 0.5},
]


def centres_of(plan, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return quantized(rng.normal(size=(plan.num_classes, 5)))


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), step=st.integers(0, 10**6))
def test_every_kind_has_distinct_classes_and_images(data, kind, step):
    plan = data.draw(plans(smallest=1, min_images=1, **kind))
    centres = centres_of(plan) if kind.get("hard_share") else None
    assert_p_classes_of_k_images(plan, plan.lines(step, centres=centres))


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), step=st.integers(0, 10**6))
def test_hosts_share_a_batch(data, kind, step):
    """Hosts have disjoint slots and parts of one shape, which make up the whole batch."""
    plan = data.draw(plans(**kind))
    divisors = [n for n in range(1, plan.batch_size + 1) if plan.batch_size % n == 0]
    num_hosts = data.draw(st.sampled_from(divisors))
    more = {"centres": centres_of(plan)} if kind.get("hard_share") else {}
    hosts = [
        BatchPlan(plan.index, num_hosts=num_hosts, host=host, **plan.arguments)
        for host in range(num_hosts)
    ]
    parts = [host.batch(step, fallbacks=2, **more) for host in hosts]
    assert {part.shape for part in parts} == {(3, plan.batch_size // num_hosts)}
    np.testing.assert_array_equal(np.hstack(parts), plan.batch(step, fallbacks=2, **more))
    slots = np.concatenate([host.slots for host in hosts])
    np.testing.assert_array_equal(slots, np.arange(plan.batch_size))
    again = plan.for_host(num_hosts - 1, num_hosts)
    np.testing.assert_array_equal(again.batch(step, fallbacks=2, **more), parts[-1])


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), step=st.integers(0, 1000))
def test_a_function_of_seed_and_step_alone(data, kind, step):
    """Earlier calls do not change a batch."""
    plan = data.draw(plans(**kind))
    more = {"centres": centres_of(plan)} if kind.get("hard_share") else {}
    for before in data.draw(st.lists(st.integers(0, 1000), max_size=5)):
        plan.batch(before, **more)
    again = BatchPlan(plan.index, **plan.arguments)
    np.testing.assert_array_equal(plan.batch(step, **more), again.batch(step, **more))


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), step=st.integers(0, 10**6))
def test_fallbacks_are_other_images_of_the_class(data, kind, step):
    plan = data.draw(plans(smallest=1, largest=30, min_images=1, **kind))
    rows, *fallbacks = plan.batch(step, fallbacks=3)
    for fallback in fallbacks:
        np.testing.assert_array_equal(plan.labels[fallback], plan.labels[rows])
        for row, other in zip(rows.tolist(), fallback.tolist(), strict=True):
            assert row != other or plan.sizes[int(plan.labels[row])] == 1
    for line, first in zip(
        rows.reshape(plan.classes_per_batch, -1),
        fallbacks[0].reshape(plan.classes_per_batch, -1),
        strict=True,
    ):
        if plan.sizes[int(plan.labels[line[0]])] >= 2 * plan.images_per_class:
            assert not {*line.tolist()} & {*first.tolist()}


# ---- Which classes, how often.


@settings(deadline=None)
@given(data=st.data(), weighting=st.sampled_from(["sqrt", "size"]), first=st.integers(0, 100))
def test_weighted_classes_come_as_often_as_stated(data, weighting, first):
    """In each pass the appearances match the rates to within one; the rates are checked too."""
    plan = data.draw(plans(largest=400, class_weighting=weighting))
    rates = plan._rates / FIXED_POINT_ONE
    counts = np.array([plan.sizes[label] for label in plan.classes.tolist()])
    weights = np.sqrt(counts) if weighting == "sqrt" else counts.astype(float)
    np.testing.assert_allclose(rates, capped_rates(weights, plan.classes_per_batch), atol=1e-9)
    appearances = collections.Counter()
    for step in range(first * plan.steps_per_pass, (first + 1) * plan.steps_per_pass):
        appearances.update(plan.labels[plan.lines(step)[:, 0]].tolist())
    for label, rate in zip(plan.classes.tolist(), rates, strict=True):
        assert abs(appearances[label] - rate * plan.steps_per_pass) < 1 + 1e-6


def capped_rates(weights: np.ndarray, classes: int) -> np.ndarray:
    """Rates proportional to the weights but at most 1, found by bisection of the factor."""
    low, high = 0.0, classes / weights.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if np.minimum(1, middle * weights).sum() > classes else (middle, high)
        )
    return np.minimum(1, high * weights)


def test_weighted_rates_by_hand():
    """With 9, 4, 1 and 2 images and two classes a batch, the first is always there by size."""
    index = index_of(9, 4, 1, 2)
    arguments = {"classes_per_batch": 2, "images_per_class": 2, "min_images": 1}
    by_size = BatchPlan(index, class_weighting="size", **arguments)
    np.testing.assert_allclose(by_size._rates / FIXED_POINT_ONE, [1, 4 / 7, 1 / 7, 2 / 7])
    by_root = BatchPlan(index_of(9, 4, 1), class_weighting="sqrt", **arguments)
    np.testing.assert_allclose(by_root._rates / FIXED_POINT_ONE, [1, 2 / 3, 1 / 3])


def test_weighted_classes_meet_in_changing_company():
    plan = BatchPlanWithLabels(
        index_of(*range(2, 22)), classes_per_batch=4, images_per_class=2, class_weighting="sqrt"
    )
    pairs = set()
    for step in range(600):
        labels = sorted(plan.labels[plan.lines(step)[:, 0]].tolist())
        pairs |= {(a, b) for a in labels for b in labels if a < b}
    assert len(pairs) == 20 * 19 / 2


def test_hard_batches_hold_the_nearest_classes():
    """The centres lie on a circle, so the neighbours lie next to the first class."""
    angles = np.arange(24) * 2 * np.pi / 24
    centres = quantized(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    plan = BatchPlanWithLabels(
        index_of(*[5] * 24), classes_per_batch=8, images_per_class=2, hard_share=0.5
    )
    for step in range(50):
        classes = plan.labels[plan.lines(step, centres=centres)[:, 0]] // 3
        first, hard, drawn = classes[0], classes[1:5], classes[5:]
        distance = np.minimum((np.arange(24) - first) % 24, (first - np.arange(24)) % 24)
        allowed = sorted(d for c, d in enumerate(distance) if c not in {first, *drawn})
        assert sorted(distance[hard].tolist()) == allowed[:4]
    # The first class and the classes that are no neighbours are drawn evenly, whatever the centres.
    appearances = collections.Counter()
    for step in range(6):
        classes = plan.labels[plan.lines(step, centres=centres)[:, 0]]
        appearances.update(classes[[0, 5, 6, 7]].tolist())
    assert set(appearances.values()) == {1}


def test_hard_batches_without_a_table_are_plain():
    arguments = {"classes_per_batch": 4, "images_per_class": 2}
    hard = BatchPlanWithLabels(index_of(*[5] * 9), hard_share=0.5, **arguments)
    plain = BatchPlanWithLabels(index_of(*[5] * 9), **arguments)
    for step in range(9):
        one, other = hard.lines(step), plain.lines(step)
        assert (hard.labels[one[:, 0]] == plain.labels[other[:, 0]]).all()


def test_a_table_of_another_size_is_refused():
    plan = BatchPlan(index_of(*[5] * 9), classes_per_batch=4, images_per_class=2, hard_share=0.5)
    with pytest.raises(ValueError, match=r"\[9, D\]"):
        plan.batch(0, centres=np.zeros((8, 3), np.int8))


def test_quantized():
    found = quantized(np.array([[3.0, 4.0], [0.0, 0.0], [-1e-3, 0.0]], np.float32))
    assert found.tolist() == [[76, 102], [0, 0], [-127, 0]]
    assert found.dtype == np.int8


# ---- Which classes take part.


def test_classes_with_few_images():
    index = index_of(1, 2, 3, 4, 8)
    arguments = {"classes_per_batch": 2, "images_per_class": 4}
    for min_images, classes in ((1, [0, 3, 6, 9, 12]), (2, [3, 6, 9, 12]), (4, [9, 12])):
        plan = BatchPlan(index, min_images=min_images, **arguments)
        assert plan.classes.tolist() == classes
        assert plan.num_skipped == 5 - len(classes)


def test_a_lone_image_is_repeated_where_that_is_asked_for():
    plan = BatchPlan(index_of(1, 1), classes_per_batch=2, images_per_class=3, min_images=1)
    assert sorted(plan.batch(5).tolist()) == [0, 0, 0, 1, 1, 1]


def test_seeds_differ():
    one, other = (
        BatchPlan(index_of(*[10] * 20), classes_per_batch=5, images_per_class=2, seed=seed)
        for seed in (0, 1)
    )
    assert (one.batch(0) != other.batch(0)).any()


def test_known_batch():
    """Pins the random stream: a change would break the resume of runs that are under way."""
    plan = BatchPlan(index_of(4, 2, 3, 9, 5), classes_per_batch=3, images_per_class=2, seed=7)
    assert plan.batch(0).tolist() == [20, 22, 1, 0, 16, 9]
    assert plan.batch(12345).tolist() == [21, 18, 14, 11, 3, 1]


PRINT_BATCHES = """
import hashlib, sys
from types import SimpleNamespace
import numpy as np
from trainer.data.batch_plan import BatchPlan, quantized
rng = np.random.default_rng(0)
index = SimpleNamespace(label=np.repeat(np.arange(500), rng.integers(2, 30, 500)))
centres = quantized(rng.normal(size=(500, 64)))
for kind in ({}, {"class_weighting": "sqrt"}, {"class_weighting": "size"}, {"hard_share": 0.25}):
    plan = BatchPlan(index, classes_per_batch=24, images_per_class=4, seed=3, **kind)
    digest = hashlib.sha256()
    for step in range(int(sys.argv[1]), 300):
        rows = plan.batch(step, centres=centres if kind.get("hard_share") else None)
        if step >= 100:
            digest.update(rows.astype("<i8").tobytes())
    print(digest.hexdigest())
"""


def test_two_processes_agree():
    """A process that begins at step 100 draws the batches of one that begins at step 0."""
    found = [
        subprocess.run(
            [sys.executable, "-c", PRINT_BATCHES, start],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": start, "OMP_NUM_THREADS": n},
        ).stdout
        for start, n in (("0", "1"), ("100", "2"))
    ]
    assert found[0] == found[1]
    assert len(set(found[0].split())) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes_per_batch": 4}, "only 3 classes with two images or more.*1 more have fewer"),
        ({"min_images": 3}, "only 0 classes with 3 images or more.*at least 2 are needed"),
        ({"images_per_class": 1}, "images_per_class is 1; it must be at least 2"),
        ({"classes_per_batch": 1}, "classes_per_batch is 1; it must be at least 2"),
        ({"min_images": 0}, "min_images is 0; it must be at least 1"),
        (
            {"class_weighting": "log"},
            "class_weighting is 'log'; it must be one of uniform, sqrt, size",
        ),
        ({"hard_share": 1.0}, "hard_share is 1.0; it must be at least 0 and below 1"),
        (
            {"hard_share": 0.5, "class_weighting": "size"},
            "hard_share is 0.5; it must be 0 unless class_weighting is 'uniform'",
        ),
        (
            {"host": 2, "num_hosts": 2},
            "host is 2; it must be at least 0 and below num_hosts, which is 2",
        ),
        ({"num_hosts": 3}, "2 x 2 images cannot be divided evenly among 3 hosts"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UsageError, match=message):
        BatchPlan(
            index_of(2, 2, 2, 1), **{"classes_per_batch": 2, "images_per_class": 2, **arguments}
        )


def test_an_empty_index():
    with pytest.raises(UsageError, match="only 0 classes"):
        BatchPlan(
            SimpleNamespace(label=np.empty(0, np.int32)), classes_per_batch=2, images_per_class=2
        )
