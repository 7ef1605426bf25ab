"""Each gap of TensorFlow and Keras is still there, and its workaround closes it.

A test here that fails on a new version says that a workaround can go.
"""

import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.fixtures.project import ROOT
from trainer import workarounds

# These run in processes of their own, since they change TensorFlow as a whole.
TWO_DEVICES = """
import keras, tensorflow as tf
from trainer import workarounds
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

def moved(gradient, *, summed=False, **options):
    with strategy.scope():
        weight = keras.Variable(0.0)
        optimizer = keras.optimizers.SGD(1.0, **options)
        optimizer.build([weight])
    if summed:
        workarounds.leave_gradients_as_they_are(optimizer)
    strategy.run(tf.function(lambda: optimizer.apply([tf.constant(gradient)], [weight])))
    return float(strategy.experimental_local_results(weight.value)[0])
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_keras_sums_gradients_over_the_replicas():
    code = "print(moved(3.0), moved(3.0, summed=True))"
    assert run(f"{TWO_DEVICES}\n{code}") == "-6.0 -3.0"


def test_keras_clips_before_it_sums():
    """The sum of both gradients has the norm 6. Clipped to 1, it would move the weight by 1."""
    assert run(f"{TWO_DEVICES}\nprint(moved(3.0, clipnorm=1.0))") == "-2.0"


def test_collective_operations_take_no_bytes():
    """`trainer.evaluation.inference` reads images for pictures on one device for this reason."""
    code = """
def gather():
    return tf.distribute.get_replica_context().all_gather(tf.zeros([1], tf.uint8), axis=0)
try:
    strategy.run(tf.function(gather))
except Exception as error:
    print("refused" if "uint8" in str(error) else error)
"""
    assert run(TWO_DEVICES + code) == "refused"


def test_a_learning_rate_counts_as_state_of_the_optimizer():
    """`trainer.training.optimizers` leaves it out of checkpoints for this reason."""
    optimizer = keras.optimizers.SGD(0.1)
    assert any(each is optimizer.learning_rate for each in optimizer.variables)


def test_checkpoints_of_a_model_leave_out_seeds(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)])

    def saved(checkpoint: tf.train.Checkpoint, name: str) -> list[list[int]]:
        path = checkpoint.save(str(tmp_path / name))
        shapes = [shape for key, shape in tf.train.list_variables(path) if "VARIABLE" in key]
        return sorted(shapes)

    whole = workarounds.saved_variables(model)
    assert saved(tf.train.Checkpoint(model=model), "model") == [[], [2], [3, 2]]
    assert saved(tf.train.Checkpoint(model=whole), "variables") == [[], [2], [2], [3, 2]]


def test_layers_of_a_model_within_are_hidden():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    model = keras.Sequential([keras.Input((3,)), inner])
    kind = keras.layers.BatchNormalization
    assert not any(isinstance(layer, kind) for layer in model.layers)
    assert any(isinstance(layer, kind) for layer in workarounds.all_layers(model))


def test_an_outer_training_flag_reaches_a_model_called_with_training_false():
    """`trainer.models.batch_norm` replaces the layers for this reason."""
    image = keras.Input((4,))
    inner = keras.Model(image, keras.layers.Dropout(0.5)(image))
    outer = keras.Model(image, inner(image, training=False))
    ones = tf.ones([64, 4])
    assert not np.array_equal(outer(ones, training=True), ones)


def test_keras_casts_labels_to_float32():
    """`tripletmill.losses.keras_losses` has a `__call__` of its own for this reason."""

    class Difference(keras.losses.Loss):
        def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
            return y_true[:, 0] - y_true[:, 1] + 0 * y_pred[:, 0]

    labels = tf.constant([[2**24 + 1, 2**24]], tf.int64)
    assert float(Difference()(labels, tf.zeros([1, 1]))) == 0.0


def test_no_public_function_writes_a_start_event(tmp_path):
    public = {name for name in dir(tf.summary) if not name.startswith("_")}
    assert not {name for name in public if "event" in name or "session" in name}
    writer = tf.summary.create_file_writer(str(tmp_path))
    workarounds.write_start_event(writer, 7)
    writer.close()
    [file] = tmp_path.iterdir()
    events = [tf.compat.v1.Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(file))]
    assert [e.step for e in events if e.session_log.status == tf.compat.v1.SessionLog.START] == [7]


def test_a_strategy_keeps_what_is_made_for_it():
    strategy, other = tf.distribute.OneDeviceStrategy("CPU:0"), tf.distribute.get_strategy()
    made = workarounds.kept_with(strategy, "sum", object)
    assert workarounds.kept_with(strategy, "sum", object) is made
    assert workarounds.kept_with(strategy, "mean", object) is not made
    assert workarounds.kept_with(other, "sum", object) is not made


def test_a_function_that_is_not_inlined_stays_a_call():
    inner = workarounds.not_inlined(lambda x: x + 1)
    graph = tf.function(lambda x: inner(x)).get_concrete_function(tf.TensorSpec([])).graph
    calls = [op for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
    assert len(calls) == 1
    [function] = [f for f in graph.as_graph_def().library.function if "_noinline" in f.attr]
    assert function.attr["_noinline"].b


def test_record_files_are_read_from_their_beginning_only(tmp_path):
    assert "byte_offsets" not in inspect.signature(tf.data.TFRecordDataset).parameters
    path = str(tmp_path / "records")
    with tf.io.TFRecordWriter(path) as file:
        file.write(b"first")
        file.write(b"second")
    offset = len(b"first") + 16  # the length and two checksums frame each record

    def read(offset: tf.Tensor) -> tf.Tensor:
        records = workarounds.record_at(tf.constant(path), offset, tf.constant(100, tf.int64))
        return records.take(1).get_single_element()

    [record] = tf.data.Dataset.from_tensors(tf.constant(offset, tf.int64)).map(read)
    assert record.numpy() == b"second"


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_clock_is_refused_where_operations_are_deterministic(deterministic):
    code = "from trainer import workarounds\n"
    code += "workarounds.make_sums_deterministic()\n" * deterministic
    assert run(f"{code}print(workarounds.has_clock())") == str(not deterministic)


def test_determinism_alone_leaves_several_operations_at_a_time():
    code = """
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
print(tf.config.threading.get_inter_op_parallelism_threads())
"""
    assert run(code) != "1"
