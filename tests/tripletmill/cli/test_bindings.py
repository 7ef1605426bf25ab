"""Gin bindings are checked before anything is called."""

import typing
from collections.abc import Callable

import gin
import pytest

from tripletmill.cli.bindings import check
from tripletmill.errors import UsageError


class Base:
    def __init__(self, rate=0.1, name=None, **kwargs):
        pass


class Derived(Base):
    def __init__(self, momentum=0.0, nesterov=False, **kwargs):
        pass


def schedule(peak, steps: int, floor: float = 0.0):
    return peak, steps, floor


def loss(labels, *, margin: float, kind: typing.Literal["hard", "easy"] = "hard"):
    return labels, margin, kind


def job(
    *,
    make: Callable[[], Derived],
    of: Callable[..., object] | None = None,
    count: int = 1,
    more: dict | None = None,
):
    return make, of, count, more


CONFIGURABLES = (Derived, schedule, loss, job)
for configurable in CONFIGURABLES:
    gin.external_configurable(configurable)
GOOD = """
STEPS = 5
job.make = @Derived
job.of = @loss
loss.margin = 1
Derived.momentum = @schedule()
schedule.peak = 2.0
schedule.steps = %STEPS
"""


@pytest.fixture(autouse=True)
def empty():
    with gin.unlock_config():
        yield
        gin.clear_config()


def checked(config: str) -> None:
    gin.clear_config()
    gin.parse_config(config)
    check(CONFIGURABLES, [job])


def test_what_is_whole_passes():
    checked(GOOD)


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("job.make = @Derived", "job.make"),
        ("loss.margin = 1", "loss.margin"),
        ("schedule.peak = 2.0", "schedule.peak"),
        ("schedule.steps = %STEPS", "schedule.steps"),
    ],
)
def test_what_is_missing_is_named(line, missing):
    assert line in GOOD
    with pytest.raises(UsageError, match=rf"gin: {missing} is missing"):
        checked(GOOD.replace(line, ""))


def test_what_a_caller_gives_and_what_nobody_calls_is_not_missed():
    # Labels are passed by position; without them the loss is never called.
    checked(GOOD.replace("job.of = @loss", "").replace("loss.margin = 1", ""))


def test_a_scope_of_its_own_counts():
    scoped = GOOD.replace("@loss", "@far/loss").replace("loss.margin", "far/loss.margin")
    checked(scoped)
    with pytest.raises(UsageError, match=r"loss\.margin is missing"):
        checked(scoped.replace("far/loss.margin = 1", "near/loss.margin = 1"))


def test_references_inside_of_lists_are_followed():
    with pytest.raises(UsageError, match=r"schedule\.peak is missing"):
        checked(GOOD.replace("schedule.peak = 2.0", "") + "job.more = {'a': [@schedule()]}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Derived.momentun = 0.5", "Derived.momentun: Derived has no parameter 'momentun'"),
        ("far/Derived.momentun = 0.5", "far/Derived.momentun: Derived has no"),
        ("Derived.momentum = 'x'", "Derived.momentum = 'x': must be float"),
        ("Derived.nesterov = 1", "Derived.nesterov = 1: must be bool"),
        ("Derived.rate = '1e-3'", "Derived.rate = '1e-3': must be float"),
        ("job.count = 1.5", "job.count = 1.5: must be int"),
        ("job.count = @schedule", "job.count = @schedule: must be int"),
        ("job.make = @Derived()", "must be an @reference, without"),
        ("loss.kind = 'soft'", "loss.kind = 'soft': must be 'hard' or 'easy'"),
        ("STEPS = 'five'", "schedule.steps = 'five': must be int"),
    ],
)
def test_a_wrong_name_or_kind_is_named(line, message):
    with pytest.raises(UsageError) as caught:
        checked(GOOD + line)
    assert message in str(caught.value)


@pytest.mark.parametrize("line", ["Derived.rate = 1", "Derived.name = None", "Derived.name = 'a'"])
def test_what_the_base_class_takes_is_known(line):
    checked(GOOD + line)
