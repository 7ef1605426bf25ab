"""The augmentations that are drawn for each image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.pixels import jpeg, run, smooth
from trainer.data.augmentation import MAX_ERASED_ASPECT, MIN_ERASED_AREA, Augmentation
from tripletmill.errors import UsageError

COLOURS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.6, "hue": 0.2}
ALL = Augmentation(min_area=0.2, rotate=25, shear=10, **COLOURS, erase=0.5)
SLOTS = np.arange(4000)


def draw(augmentation, *, seed=0, step=0, slots=SLOTS, height=400, width=400, image_size=64):
    size = (np.broadcast_to(height, np.shape(slots)), np.broadcast_to(width, np.shape(slots)))
    return augmentation.draw(seed, step, slots, *size, image_size)


def assert_same(one, other) -> None:
    assert [*one] == [*other]
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


# ---- Which numbers are drawn.


def test_names_types_and_shapes():
    found = {name: (array.shape, array.dtype.name) for name, array in draw(ALL).items()}
    assert found == {
        "window": ((4000, 4), "int32"),
        "flip": ((4000,), "bool"),
        "affine": ((4000, 8), "float32"),
        "colour": ((4000, 3, 4), "float32"),
        "erased": ((4000, 7), "int32"),
    }


def test_only_what_is_asked_for():
    assert [*draw(Augmentation(flip=False))] == ["window"]
    turning = Augmentation(flip=False, class_turns=True)
    classes = SLOTS // 4
    assert [*turning.draw(0, 0, SLOTS, SLOTS + 9, SLOTS + 9, 64, classes)] == ["window", "affine"]
    assert [*draw(Augmentation())] == ["window", "flip"]
    for name, share in COLOURS.items():
        assert [*draw(Augmentation(flip=False, **{name: share}))] == ["window", "colour"]
    for name in ("rotate", "shear"):
        assert [*draw(Augmentation(flip=False, **{name: 5}))] == ["window", "affine"]
    assert [*draw(Augmentation(flip=False, erase=0.1))] == ["window", "erased"]


@settings(deadline=None)
@given(
    seed=st.integers(-(2**65), 2**65),
    step=st.integers(0, 10**9),
    hosts=st.sampled_from([1, 2, 3, 4, 6, 8, 24]),
)
def test_hosts_draw_their_part_of_the_whole_batch(seed, step, hosts):
    """Draws depend on seed, step and slot alone, so hosts may draw any slots in any order."""
    slots = np.arange(24)
    height = 20 + slots
    whole = ALL.draw(seed, step, slots, height, 2 * height, 64)
    part = 24 // hosts
    for host in range(hosts):
        here = slots[host * part : (host + 1) * part]
        own = ALL.draw(seed, step, here, height[here], 2 * height[here], 64)
        assert_same(own, {name: values[here] for name, values in whole.items()})
    back = ALL.draw(seed, step, slots[::-1], height[::-1], 2 * height[::-1], 64)
    assert_same(back, {name: values[::-1] for name, values in whole.items()})


def test_slots_steps_and_seeds_draw_differently():
    """Hardly any two of a thousand draws are equal, for each kind of augmentation."""
    augmentation = Augmentation(min_area=0.1, max_area=0.5, **COLOURS, erase=0.5)
    keys = [(seed, step) for seed in (0, 1, -1) for step in (0, 1, 2, 10**6)]
    drawn = [draw(augmentation, seed=seed, step=step, slots=SLOTS[:100]) for seed, step in keys]
    for name in ("window", "colour", "erased"):
        values = np.concatenate([each[name].reshape(100, -1) for each in drawn])
        if name == "erased":
            values = values[values[:, 2] > 0]
        assert len(np.unique(values, axis=0)) > 0.99 * len(values)
    flips = {tuple(each["flip"].tolist()) for each in drawn}
    assert len(flips) == len(keys)


def test_numbers_do_not_move_together():
    """The position of a crop is independent of its size, its mirroring and its colours."""
    drawn = draw(Augmentation(min_area=0.1, max_area=0.4, brightness=0.4))
    columns = [*drawn["window"].T, drawn["flip"], drawn["colour"][:, 0, 0]]
    correlation = np.corrcoef(np.array(columns, float))
    correlation[:4, :4] = np.eye(4)  # larger crops lie nearer to the corner
    assert np.abs(correlation - np.eye(6)).max() < 0.06
    room = 401 - drawn["window"][:, 2:]
    places = (drawn["window"][:, :2] / room).T
    assert np.abs(np.corrcoef(places)[0, 1]) < 0.06
    for place in places:
        assert np.abs(np.histogram(place, bins=8, range=(0, 1))[0] - 500).max() < 120


def test_candidates_of_a_slot_are_drawn_alike():
    """With sizes [C, N] each row is drawn as if it were alone; only windows depend on sizes."""
    height = np.array([[30, 50, 70, 90], [90, 50, 1, 2], [30, 50, 70, 90]])
    slots = np.arange(4) + 17
    together = ALL.draw(5, 6, slots, height, 2 * height, 64)
    assert together["window"].shape == (3, 4, 4)
    for line, window in zip(height, together["window"], strict=True):
        assert_same({**together, "window": window}, ALL.draw(5, 6, slots, line, 2 * line, 64))


def test_known_draws():
    """Pins the random stream: a change would break the resume of runs that are under way."""
    drawn = draw(ALL, seed=1, step=2, slots=np.arange(3, 5))
    assert drawn["window"].tolist() == [[14, 31, 193, 234], [43, 21, 292, 367]]
    assert drawn["flip"].tolist() == [True, True]
    assert drawn["erased"].tolist() == [
        [8, 2, 25, 14, 26, 75, 93],
        [16, 5, 20, 13, 190, 157, 190],
    ]
    colour = [
        [1.0222, -0.1617, -0.0785, -15.756],
        [-0.1240, 0.9183, -0.0122, -15.756],
        [0.0084, -0.2771, 1.0508, -15.756],
    ]
    np.testing.assert_allclose(drawn["colour"][0], colour, atol=1e-4)


# ---- Windows.


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    areas=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    max_aspect=st.floats(1, 20),
    seed=st.integers(0, 2**32),
)
def test_windows_lie_in_the_image(size, areas, max_aspect, seed):
    augmentation = Augmentation(
        min_area=min(areas), max_area=max(areas), max_aspect=max_aspect, flip=False
    )
    windows = draw(augmentation, seed=seed, slots=SLOTS[:50], height=size[0], width=size[1])
    top, left, height, width = windows["window"].T
    assert (np.minimum(height, width) >= 1).all()
    assert (np.minimum(top, left) >= 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


def test_area_and_aspect():
    """If nothing is clipped, areas and aspects spread evenly over their ranges."""
    augmentation = Augmentation(min_area=0.1, max_area=0.4, max_aspect=2)
    windows = draw(augmentation, height=3000, width=4000)["window"]
    height, width = windows[:, 2:].T
    area = height * width / (3000 * 4000)
    aspect = np.log2(width / height)
    for values, least, most in ((area, 0.1, 0.4), (aspect, -1, 1)):
        assert values.min() > least - 0.002
        assert values.max() < most + 0.002
        parts = np.histogram(values, bins=8, range=(least, most))[0]
        assert np.abs(parts - 500).max() < 120
    assert np.abs(np.corrcoef(area, aspect)[0, 1]) < 0.06


def test_the_whole_image():
    whole = Augmentation(min_area=1.0, max_aspect=1.0)
    assert (draw(whole, height=33, width=33)["window"] == [0, 0, 33, 33]).all()
    # Windows of a wide image have its whole height and lie at each position along its width.
    windows = draw(whole, height=30, width=120)["window"]
    assert (windows[:, [0, 2, 3]] == [0, 30, 60]).all()
    assert set(windows[:, 1].tolist()) == set(range(61))


def test_every_place_is_drawn():
    """The positions include the last row and column."""
    windows = draw(Augmentation(min_area=0.25, max_area=0.25, max_aspect=1.0), height=8, width=8)
    top, left, height, width = windows["window"].T
    assert set(zip(top.tolist(), left.tolist(), strict=True)) == {
        (y, x) for y in range(5) for x in range(5)
    }
    assert {*height.tolist(), *width.tolist()} == {4}


def test_half_are_mirrored():
    assert abs(draw(Augmentation())["flip"].mean() - 0.5) < 0.03


# ---- Colours.

RGB = np.random.default_rng(0).uniform(0, 255, (50, 3))
GREYS = np.repeat(np.linspace(0, 255, 9)[:, None], 3, axis=1)


def matrices(**shares) -> np.ndarray:
    return draw(Augmentation(**shares))["colour"].astype(float)


def applied(matrix, rgb) -> np.ndarray:
    return np.array([matrix[:, :3] @ colour + matrix[:, 3] for colour in rgb])


def luma(rgb) -> np.ndarray:
    return 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]


def chroma(rgb) -> np.ndarray:
    """I + iQ, computed from the differences to luma (FCC, 1953)."""
    red, blue = rgb[:, 0] - luma(rgb), rgb[:, 2] - luma(rgb)
    return (0.74 * red - 0.27 * blue) + 1j * (0.48 * red + 0.41 * blue)


def assert_spread(values, least, most) -> None:
    """The values spread evenly over the whole range."""
    assert values.min() >= least - 1e-5
    assert values.max() <= most + 1e-5
    parts = np.histogram(values, bins=8, range=(least - 1e-5, most + 1e-5))[0]
    assert np.abs(parts - len(values) / 8).max() < 120


@pytest.mark.parametrize(("name", "fixed"), [("brightness", 0), ("contrast", 127.5)])
def test_brightness_and_contrast(name, fixed):
    """Both multiply the distance to one value, which stays as it is."""
    share = COLOURS[name]
    found = matrices(**{name: share})
    factors = found[:, 0, 0]
    assert_spread(factors, 1 - share, 1 + share)
    for matrix, factor in zip(found[:20], factors, strict=False):
        expected = fixed + factor * (RGB - fixed)
        np.testing.assert_allclose(applied(matrix, RGB), expected, atol=1e-3)


def test_saturation():
    found = matrices(saturation=0.6)
    factors = (np.trace(found[:, :, :3], axis1=1, axis2=2) - 1) / 2
    assert_spread(factors, 0.4, 1.6)
    grey = luma(RGB)[:, None]
    for matrix, factor in zip(found[:20], factors, strict=False):
        expected = grey + factor * (RGB - grey)
        np.testing.assert_allclose(applied(matrix, RGB), expected, atol=1e-3)
        np.testing.assert_allclose(applied(matrix, GREYS), GREYS, atol=1e-3)


def test_hue():
    """Luma stays the same, and all colours turn by one angle."""
    found = matrices(hue=0.2)
    angles = []
    for matrix in found:
        turn = chroma(applied(matrix, RGB[:3])) / chroma(RGB[:3])
        np.testing.assert_allclose(turn, turn[0], atol=0.02)
        angles.append(np.angle(turn[0]) / (2 * np.pi))
    assert_spread(np.array(angles).clip(-0.2, 0.2), -0.2, 0.2)
    assert np.abs(angles).max() < 0.203
    for matrix in found[:20]:
        turned = applied(matrix, RGB)
        np.testing.assert_allclose(luma(turned), luma(RGB), atol=0.01)
        np.testing.assert_allclose(np.abs(chroma(turned)), np.abs(chroma(RGB)), rtol=0.02)
        np.testing.assert_allclose(applied(matrix, GREYS), GREYS, atol=0.01)


def test_colours_by_hand():
    """At the ends of saturation and hue, red becomes grey and its complement of equal luma."""
    red = np.array([[255.0, 0, 0]])
    found = matrices(saturation=1.0)
    least = found[np.argmin(np.trace(found[:, :, :3], axis1=1, axis2=2))]
    np.testing.assert_allclose(applied(least, red), [[76.245] * 3], atol=0.3)
    found = matrices(hue=0.5)
    half = found[np.argmin(np.trace(found[:, :, :3], axis1=1, axis2=2))]
    np.testing.assert_allclose(applied(half, red), [[-102.51, 152.49, 152.49]], atol=0.3)


def test_all_colours_are_each_after_the_other():
    """The order is saturation, hue, contrast, brightness; each draws as if it were alone."""
    together = matrices(**COLOURS)
    alone = {name: matrices(**{name: share}) for name, share in COLOURS.items()}
    for slot in range(20):
        expected = RGB
        for name in ("saturation", "hue", "contrast", "brightness"):
            expected = applied(alone[name][slot], expected)
        np.testing.assert_allclose(applied(together[slot], RGB), expected, atol=1e-2)


def test_colours_are_drawn_apart():
    """Each colour change has random numbers of its own."""
    hue = matrices(hue=0.2)
    numbers = [
        *(matrices(**{n: 0.4})[:, 0, 0] for n in ("brightness", "contrast", "saturation")),
        hue[:, 0, 1] - hue[:, 0, 2],  # grows about like the sine of the angle
    ]
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.06


def test_a_share_of_nothing_changes_nothing():
    tiny = matrices(**dict.fromkeys(COLOURS, 1e-9))
    np.testing.assert_allclose(tiny, np.tile(np.eye(3, 4), (4000, 1, 1)), atol=1e-5)


# ---- Erased rectangles.


@pytest.mark.parametrize(("share", "most"), [(0.3, 0.2), (1.0, 0.05), (1.0, 1.0)])
@pytest.mark.parametrize("size", [1, 8, 500])
def test_erased_rectangles_lie_in_the_crop(share, most, size):
    erased = draw(Augmentation(erase=share, erase_max_area=most), image_size=size)["erased"]
    top, left, height, width = erased[:, :4].T
    there = height > 0
    assert abs(there.mean() - share) < 0.03
    assert (erased[:, :2] >= 0).all()
    assert (width[there] >= 1).all()
    # Rectangles reach the last row and column.
    assert (top + height)[there].max() == size
    assert (left + width)[there].max() == size
    assert erased[:, 4:].min() == 0
    assert erased[:, 4:].max() == 255


def test_erased_area_and_aspect():
    erased = draw(Augmentation(erase=1.0, erase_max_area=0.2), image_size=2000)["erased"]
    top, left, height, width = erased[:, :4].T
    assert_spread(height * width / 2000**2, MIN_ERASED_AREA - 2e-4, 0.2 + 2e-4)
    aspect = np.log(width / height) / np.log(MAX_ERASED_ASPECT)
    assert_spread(aspect, -1.01, 1.01)
    for place in (top / (2001 - height), left / (2001 - width)):
        assert_spread(place, 0, 1)
    assert len(np.unique(erased[:, 4:], axis=0)) > 3990


def test_angles_about_the_centre():
    """Area and centre stay; crops are rotated by up to 30 and sheared by up to 20 degrees."""
    a, b, c, d, e, f, *zeros = draw(Augmentation(rotate=30, shear=20), image_size=33)["affine"].T
    assert not np.any(zeros)
    np.testing.assert_allclose(a * e - b * d, 1, atol=1e-6)
    np.testing.assert_allclose((a * 16 + b * 16 + c, d * 16 + e * 16 + f), 16, atol=1e-4)
    assert_spread(np.rad2deg(np.arctan2(d, a)), -30.01, 30.01)
    assert_spread(np.rad2deg(np.arctan(a * b + d * e)), -20.01, 20.01)


def test_angles_are_drawn_apart():
    a, b, _, d, e, *_ = draw(Augmentation(rotate=30, shear=20))["affine"].T
    assert abs(np.corrcoef(np.arctan2(d, a), a * b + d * e)[0, 1]) < 0.05


# ---- Whole classes.


def test_a_class_is_turned_as_a_whole():
    """Each class gets its own exact quarter turns, new in each step and equal on all hosts."""
    turning = Augmentation(min_area=1.0, max_aspect=1.0, flip=False, class_turns=True)
    data, classes = jpeg(smooth(40, 40)), np.arange(48) // 4
    size = np.full(48, 40)
    [upright] = run([data], 40, [[0, 0, 40, 40]])
    by_step = []
    for step in range(30):
        drawn = turning.draw(7, step, np.arange(48), size, size, 40, classes)
        found = run([data] * 48, 40, **drawn)
        turns = [
            next(k for k in range(4) if np.abs(np.rot90(upright, k) - image.astype(int)).max() <= 1)
            for image in found[::4].astype(int)
        ]
        for image, turn in zip(found, np.repeat(turns, 4), strict=True):
            np.testing.assert_allclose(image.astype(int), np.rot90(upright, turn), atol=1)
        by_step.append(turns)
        half = turning.draw(7, step, np.arange(24, 48), size[24:], size[24:], 40, classes[24:])
        np.testing.assert_array_equal(half["affine"], drawn["affine"][24:])
    counts = np.bincount(np.ravel(by_step), minlength=4)
    assert counts.sum() == 360
    assert (abs(counts - 90) < 40).all()
    assert len({tuple(turns) for turns in by_step}) == 30


def test_a_class_is_mirrored_as_a_whole():
    """With turns, a class gets one of the eight symmetries of a square."""
    both = Augmentation(
        min_area=1.0, max_aspect=1.0, flip=False, class_turns=True, class_mirrors=True
    )
    data, classes = jpeg(smooth(40, 40)), np.arange(256) // 2
    size = np.full(256, 40)
    [upright] = run([data], 40, [[0, 0, 40, 40]])
    symmetries = [np.rot90(image, k) for image in (upright, upright[:, ::-1]) for k in range(4)]
    found = run([data] * 256, 40, **both.draw(7, 3, np.arange(256), size, size, 40, classes))
    which = [
        next(n for n, image in enumerate(symmetries) if np.abs(image - one.astype(int)).max() <= 1)
        for one in found
    ]
    assert which[::2] == which[1::2]
    counts = np.bincount(which[::2], minlength=8)
    assert (abs(counts - 16) < 12).all()
    turned = Augmentation(min_area=1.0, max_aspect=1.0, flip=False, class_turns=True)
    found = run([data] * 256, 40, **turned.draw(7, 3, np.arange(256), size, size, 40, classes))
    for image, symmetry in zip(found, which, strict=True):
        np.testing.assert_allclose(image.astype(int), np.rot90(upright, symmetry % 4), atol=1)


@pytest.mark.parametrize("name", ["class_turns", "class_mirrors"])
def test_whole_classes_need_the_classes(name):
    with pytest.raises(ValueError, match="classes are needed"):
        Augmentation(**{name: True}).draw(0, 0, np.arange(2), np.ones(2), np.ones(2), 8)


# ---- Wrong arguments.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_area": 0}, "0 < min_area <= max_area <= 1, not 0 and 1.0"),
        ({"min_area": -0.1}, "min_area"),
        ({"min_area": 0.9, "max_area": 0.5}, "not 0.9 and 0.5"),
        ({"max_area": 1.1}, "max_area"),
        ({"min_area": float("nan")}, "min_area"),
        ({"max_aspect": 0.5}, "max_aspect: 1 or more, not 0.5"),
        ({"max_aspect": float("nan")}, "max_aspect"),
        ({"max_aspect": float("inf")}, "max_aspect"),
        ({"rotate": 181}, "rotate: 0 to 180, not 181"),
        ({"shear": -1}, "shear: 0 to 45, not -1"),
        ({"brightness": 1.5}, "brightness: 0 to 1, not 1.5"),
        ({"contrast": -0.1}, "contrast: 0 to 1, not -0.1"),
        ({"saturation": 2}, "saturation: 0 to 1, not 2"),
        ({"hue": 0.6}, "hue: 0 to 0.5, not 0.6"),
        ({"erase": 1.1}, "erase: 0 to 1, not 1.1"),
        ({"erase_max_area": 0.01}, "erase_max_area: 0.02 to 1, not 0.01"),
        ({"erase_max_area": 1.01}, "erase_max_area: 0.02 to 1, not 1.01"),
    ],
)
def test_wrong_arguments(values, message):
    with pytest.raises(UsageError, match=f"Augmentation.*{message}"):
        Augmentation(**values)


def test_the_ends_of_the_ranges_are_right_arguments():
    Augmentation(min_area=1.0, max_area=1.0, max_aspect=1.0, erase_max_area=0.02)
    Augmentation(rotate=180, shear=45)
    Augmentation(brightness=1, contrast=1, saturation=1, hue=0.5, erase=1, erase_max_area=1)
