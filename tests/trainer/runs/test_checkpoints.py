"""What a checkpoint restores."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.runs.checkpoints import Checkpoints, MisfitError
from trainer.training.optimizers import Optimizers
from tripletmill.errors import UsageError


def make(units: int = 3):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dropout(0.5)]
    model = keras.Sequential(layers)
    return model, Optimizers(model, lambda: keras.optimizers.Adam(0.1))


def built(make_optimizer, **settings):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    return model, Optimizers(model, make_optimizer, **settings)


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.1)


def checkpoints_of(
    folder: str, model: keras.Model, optimizers: Optimizers, **options
) -> Checkpoints:
    return Checkpoints(folder, model, optimizers.variables, optimizers.averages, **options)


def fit(model, optimizers, steps: int = 1) -> None:
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - 1.0) ** 2)
        optimizers.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]))


def test_everything_a_step_depends_on(tmp_path):
    """The random state of dropout is restored, which tf.train.Checkpoint(model=...) leaves out."""
    model, optimizers = make()
    fit(model, optimizers)
    checkpoints_of(str(tmp_path), model, optimizers).save(1, evaluated_step=0)
    fit(model, optimizers, steps=2)

    again, optimizers_again = make()
    checkpoints = checkpoints_of(str(tmp_path), again, optimizers_again)
    assert checkpoints.restore_latest() == 1
    assert int(checkpoints.evaluated_step) == 0
    fit(again, optimizers_again, steps=2)
    for one, other in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(optimizers.variables, optimizers_again.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_best_is_the_highest_metric_and_not_the_last(tmp_path):
    model, optimizers = make()
    checkpoints = checkpoints_of(str(tmp_path), model, optimizers)
    kernels = {}
    for step, metric, best in [(1, 0.2, True), (2, 0.5, True), (3, 0.5, False), (4, 0.4, False)]:
        fit(model, optimizers)
        kernels[step] = model.get_weights()[0]
        assert checkpoints.save_if_best(step, metric) is best
        checkpoints.save(step, evaluated_step=step)
    again, _ = make()
    assert Checkpoints(str(tmp_path), again).restore_best() == 2
    np.testing.assert_array_equal(again.get_weights()[0], kernels[2])
    assert checkpoints_of(str(tmp_path), *make()).restore_latest() == 4


def test_without_a_best_one_the_newest(tmp_path):
    model, optimizers = make()
    assert Checkpoints(str(tmp_path), model).restore_best() == 0
    assert checkpoints_of(str(tmp_path), model, optimizers).restore_latest() == 0
    fit(model, optimizers)
    checkpoints_of(str(tmp_path), model, optimizers).save(7, evaluated_step=7)
    again, _ = make()
    assert Checkpoints(str(tmp_path), again).restore_best() == 7
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_nan_is_never_best(tmp_path):
    assert not Checkpoints(str(tmp_path), make()[0]).save_if_best(1, float("nan"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("what", ["weights", "averages"])
@pytest.mark.parametrize("writes", [True, False])
def test_what_is_not_finite_is_not_saved(tmp_path, what, bad, writes):
    """Processes that do not write stop too."""
    model, optimizers = built(sgd, average_decay=0.9)
    checkpoints = checkpoints_of(str(tmp_path), model, optimizers, writes=writes)
    checkpoints.save(1, evaluated_step=1)
    variable = model.layers[0].bias.value if what == "weights" else optimizers.averages[1]
    variable.assign([0.0, bad, 0.0])
    for save in (
        lambda: checkpoints.save(2, evaluated_step=2),
        lambda: checkpoints.save_if_best(2, 0.5),
    ):
        with pytest.raises(UsageError, match=r"not finite after step 2 .* saved before is kept"):
            save()
    assert checkpoints.best_step == 0
    again = checkpoints_of(str(tmp_path), model, optimizers)
    assert again.restore_latest() == (1 if writes else 0)
    assert not list(tmp_path.rglob("ckpt-2*"))


def test_another_model_is_refused(tmp_path):
    model, optimizers = make()
    checkpoints = checkpoints_of(str(tmp_path), model, optimizers)
    checkpoints.save(1, evaluated_step=1)
    for restore in (
        checkpoints_of(str(tmp_path), *make(5)).restore_latest,
        Checkpoints(str(tmp_path), make(5)[0]).restore_best,
    ):
        with pytest.raises(
            MisfitError, match=r"does not fit the model .* \(\S+ was .*\[4, 3\], is .*\[4, 5\]\)"
        ):
            restore()


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            (sgd, 0.9),
            (sgd, None),
            r"the average of the weights \(train.average_decay\) of this configuration"
            r" \(it had 2 variables, now it has 0\)",
        ),
        ((sgd, None), (sgd, 0.9), r".*train.average_decay\) .*it had 0 variables, now it has 2"),
        ((sgd, 0.9), (keras.optimizers.Adam, 0.9), r"the optimizer \(train.make_opt.*, now "),
        ((keras.optimizers.Adam, None), (sgd, None), r"the optimizer \(train.make_opt.*, now "),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, before, now, message):
    """The model stays as it was: a checkpoint is restored as a whole or not at all."""
    model, optimizers = built(before[0], average_decay=before[1])
    fit(model, optimizers)
    checkpoints_of(str(tmp_path), model, optimizers).save(1, evaluated_step=1)
    other, optimizers = built(now[0], average_decay=now[1])
    fresh = other.get_weights()
    with pytest.raises(MisfitError, match=f"ckpt-1: does not fit {message}") as raised:
        checkpoints_of(str(tmp_path), other, optimizers).restore_latest()
    assert "the model" not in str(raised.value)
    for one, expected in zip(other.get_weights(), fresh, strict=True):
        np.testing.assert_array_equal(one, expected)
    # Restoring only the model does not depend on the optimizer or the averages.
    assert Checkpoints(str(tmp_path), other).restore_best() == 1


def test_learning_rates_are_those_of_the_configuration(tmp_path):
    """A constant rate is no state of the optimizer, though Keras counts it as state."""

    def optimizer(rate):
        return lambda: keras.optimizers.SGD(rate, momentum=0.5)

    schedule = keras.optimizers.schedules.CosineDecay(0.25, 100)
    model, optimizers = built(optimizer(0.5))
    fit(model, optimizers)
    checkpoints_of(str(tmp_path), model, optimizers).save(1, evaluated_step=1)
    for rate, expected in ((0.125, 0.125), (schedule, float(schedule(1)))):
        model, again = built(optimizer(rate))
        assert checkpoints_of(str(tmp_path), model, again).restore_latest() == 1
        assert again.learning_rates == {"learning_rate": pytest.approx(expected)}
        for one, other in zip(again.variables, optimizers.variables, strict=True):
            np.testing.assert_array_equal(one, other)


def saved_twice(folder: Path) -> dict[int, list[np.ndarray]]:
    """Makes a run with checkpoints of steps 3 and 7, and returns the weights of each."""
    model, optimizers = make()
    checkpoints = checkpoints_of(str(folder), model, optimizers)
    weights = {}
    for step in (3, 7):
        fit(model, optimizers)
        checkpoints.save(step, evaluated_step=3)
        weights[step] = model.get_weights()
    return weights


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flipped, cut, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["ckpt-7.data-00000-of-00001", "ckpt-7.index"])
def test_from_a_damaged_one_to_the_one_before(tmp_path, damage, file):
    weights = saved_twice(tmp_path)
    damage(tmp_path / "checkpoints" / file)
    model, optimizers = make()
    said: list[str] = []
    assert checkpoints_of(str(tmp_path), model, optimizers).restore_latest(said.append) == 3
    for one, other in zip(model.get_weights(), weights[3], strict=True):
        np.testing.assert_array_equal(one, other)
    # Without its index a checkpoint counts as unfinished, and no line is printed for it.
    whole = damage is not Path.unlink or not file.endswith(".index")
    assert len(said) == whole
    for line in said:
        assert "ckpt-7: cannot be read" in line
        assert "going on from the checkpoint before it, of step 3" in line
    # The damaged checkpoint can be written again.
    fit(model, optimizers)
    checkpoints_of(str(tmp_path), model, optimizers).save(7, evaluated_step=3)
    again, optimizers_again = make()
    assert checkpoints_of(str(tmp_path), again, optimizers_again).restore_latest() == 7


def test_centres_of_other_classes_are_forgotten(tmp_path):
    checkpoints = checkpoints_of(str(tmp_path), *make())
    assert not checkpoints.forget_other_centres(5)
    checkpoints.centres.assign(np.ones([5, 3], np.int8))
    assert not checkpoints.forget_other_centres(5)
    assert checkpoints.centres.numpy().shape == (5, 3)
    assert checkpoints.forget_other_centres(4)
    assert checkpoints.centres.numpy().shape == (0, 0)


def test_all_damaged(tmp_path):
    """Training does not start again over files that a person may still want to rescue."""
    saved_twice(tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.data-*"):
        cut(path)
    with pytest.raises(
        UsageError, match=r"ckpt-7: cannot be read .*, and no older checkpoint can be read"
    ):
        checkpoints_of(str(tmp_path), *make()).restore_latest()


def test_without_the_list_that_tensorflow_keeps(tmp_path):
    saved_twice(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint").unlink()
    assert checkpoints_of(str(tmp_path), *make()).restore_latest() == 7
    assert Checkpoints.exist(str(tmp_path))


def steps_saved(folder: Path) -> list[int]:
    files = (folder / "checkpoints").glob("ckpt-*.index")
    return sorted(int(path.stem.removeprefix("ckpt-")) for path in files)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_as_many_as_asked_for_are_kept(tmp_path, keep):
    model, optimizers = make()
    for steps in ((1, 2, 3), (4, 5, 6)):  # a resumed run counts the earlier ones too
        checkpoints = checkpoints_of(str(tmp_path), model, optimizers, keep=keep)
        checkpoints.restore_latest()
        for step in steps:
            checkpoints.save(step, evaluated_step=0)
    assert steps_saved(tmp_path) == [1, 2, 3, 4, 5, 6][-keep:]


def test_one_that_does_not_write(tmp_path):
    """All workers but one do not write, but they know which step is the best."""
    model, optimizers = make()
    checkpoints = checkpoints_of(str(tmp_path), model, optimizers, writes=False)
    checkpoints.save(1, evaluated_step=1)
    assert checkpoints.save_if_best(1, 0.5)
    assert not checkpoints.save_if_best(2, 0.4)
    assert checkpoints.best_step == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_averaged_weights_are_what_is_restored_for_use(tmp_path):
    """Without a best model, the newest checkpoint has the weights and their averages."""
    model, optimizers = built(sgd, average_decay=0.9)
    fit(model, optimizers, steps=3)
    checkpoints_of(str(tmp_path), model, optimizers).save(3, evaluated_step=0)
    plain = model.get_weights()
    with optimizers.averaged():
        averaged = model.get_weights()
    assert np.abs(plain[0] - averaged[0]).max() > 1e-3

    used, _ = built(sgd, average_decay=0.9)
    assert Checkpoints(str(tmp_path), used).restore_best() == 3
    trained, trained_optimizers = built(sgd, average_decay=0.9)
    assert checkpoints_of(str(tmp_path), trained, trained_optimizers).restore_latest() == 3
    for i, (one, other) in enumerate(zip(used.get_weights(), trained.get_weights(), strict=True)):
        np.testing.assert_array_equal(one, averaged[i])
        np.testing.assert_array_equal(other, plain[i])


# RLIMIT_FSIZE limits the size of files, so that writing fails as it does on a full disk.
FULL = """
import resource, sys
from tripletmill.errors import UsageError
from tests.trainer.runs.test_checkpoints import checkpoints_of, fit, make
model, optimizers = make(400_000)
checkpoints = checkpoints_of(sys.argv[1], model, optimizers)
fit(model, optimizers)
checkpoints.save(1, evaluated_step=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
for save in (checkpoints.save, checkpoints.save_if_best):
    try:
        save(2, evaluated_step=0) if save == checkpoints.save else save(2, 0.5)
    except UsageError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = checkpoints_of(sys.argv[1], *make(400_000))
print("restored", again.restore_latest())
checkpoints.save(2, evaluated_step=0)
print("restored", again.restore_latest())
"""


def test_full_disk(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    latest, best, before, after = done.stdout.splitlines()
    for line, folder in ((latest, "checkpoints"), (best, "checkpoints/best")):
        assert line.startswith(f"step 2 could not be saved in {tmp_path / folder} (")
        assert "what was saved before is kept; make room" in line
    assert (before, after) == ("restored 1", "restored 2")
    assert not list(tmp_path.rglob("*temp*"))


def test_what_a_kill_has_left_is_removed(tmp_path):
    """TensorFlow writes a checkpoint in a folder beside it, which a kill leaves behind."""
    checkpoints = checkpoints_of(str(tmp_path), *make())
    left = [tmp_path / "checkpoints" / name for name in ("ckpt-7_temp", "best/ckpt-5_temp")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "part-00000-of-00001.data-00000-of-00001.tempstate1").write_bytes(b"half")
    checkpoints.restore_latest()
    assert all(folder.exists() for folder in left)  # a process that only reads removes nothing
    checkpoints.save(1, evaluated_step=0)
    assert not any(folder.exists() for folder in left)
