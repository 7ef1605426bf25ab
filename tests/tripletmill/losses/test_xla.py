"""The training step fits a TPU: XLA compiles it, all its shapes are known, its memory is bounded.

Nothing here needs a TPU. `make tpu-check` asks the TPU's own compiler (docs/tpu.md).
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tools.tpu_check.cases import product
from tools.tpu_check.compile import needed
from tools.tpu_check.export import LoneReplica
from trainer.models.embedding_model import build_model
from tripletmill.errors import UsageError
from tripletmill.losses import triplet_sums
from tripletmill.losses.global_batch import gather
from tripletmill.losses.triplet import NEGATIVES, POSITIVES, batch_triplets

ROOT = Path(__file__).parents[3]
LABELS = np.asarray([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4], np.int32)
ROWS, DIM, SIDE, REPLICAS = len(LABELS), 8, 16, 3
HARD = {"positive": "hard", "negative": "hard"}
SEMIHARD = {"positive": "all", "negative": "semihard"}

# Ops whose shape depends on values, and ops that XLA or TPUs lack or do not take in size B x B.
FORBIDDEN = re.compile(
    r"Unique.*|Where|LowerBound|UpperBound|TensorArray.*|.*TensorList.*|StatelessShuffle"
    r"|RandomShuffle|(Eager|Stateless)?PyFunc.*|DynamicPartition|ListDiff|SegmentSum"
)
WITHOUT_OUTPUT = re.compile(r"NoOp|Assign.*VariableOp|Resource.*")


def manhattan(x, y):
    return tf.reduce_sum(tf.abs(x - y), -1)


OPTIONS = [
    *({"positive": p, "negative": n} for p, n in itertools.product(POSITIVES, NEGATIVES)),
    *({**HARD, "distance_metric": metric} for metric in ("squared-L2", "angular", manhattan)),
    {**SEMIHARD, "distance_metric": manhattan},
    {**HARD, "soft": True},
    {**SEMIHARD, "nonzero_mean": True},
    {**SEMIHARD, "across_replicas": False},
]


def name_of(option: dict) -> str:
    return "-".join(getattr(value, "__name__", str(value)) for value in option.values())


def loss_and_gradient(labels, embeddings, *, lone: bool = True, **option):
    """Loss and gradient on the last of several replicas. If lone, the others send zeros."""

    def loss():
        return batch_triplets(labels, embeddings, margin=0.5, **option).loss

    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        if lone:
            with LoneReplica(REPLICAS - 1, REPLICAS):
                value = loss()
        else:
            value = loss()
    return value, tape.gradient(value, embeddings)


def random_embeddings(dtype=np.float32) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).normal(size=(ROWS, DIM)), dtype)


@pytest.fixture(autouse=True)
def _fresh_traces():
    triplet_sums._compiled.cache_clear()


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return build_model(backbone="small_conv", image_size=SIDE, embedding_dim=DIM)


def training_step(model, **option) -> Callable:
    optimizer = keras.optimizers.SGD(0.5, momentum=0.9)
    optimizer.build(model.trainable_variables)

    def step(images, labels):
        with tf.GradientTape() as tape:
            embeddings = model(images, training=True)
            with LoneReplica(REPLICAS - 1, REPLICAS):
                loss = batch_triplets(labels, embeddings, margin=0.5, **option).loss
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


# ---- XLA compiles the step, and the results stay equal.


@pytest.mark.parametrize("option", [HARD, SEMIHARD], ids=name_of)
def test_whole_step_is_the_same_with_and_without_xla(model, option):
    images = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE, 3), np.uint8)
    start, results = model.get_weights(), []
    for jit in (False, True):
        model.set_weights(start)
        step = training_step(model, **option, jit_compile=jit)
        loss = tf.function(step, jit_compile=jit)(tf.constant(images), tf.constant(LABELS))
        results.append([loss.numpy(), *(v.numpy() for v in model.trainable_variables)])
    assert results[0][0] > 0
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(results[0][1:], start, strict=True))
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS, ids=name_of)
def test_every_option_is_the_same_with_and_without_xla(option):
    embeddings, labels = random_embeddings(np.float64), tf.constant(LABELS)

    def compute(labels, embeddings):
        return loss_and_gradient(labels, embeddings, jit_compile=False, **option)

    compiled = tf.function(compute, jit_compile=True)(labels, embeddings)
    plain = tf.function(compute)(labels, embeddings)
    assert plain[0] > 0
    for x, y in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("option", [HARD, SEMIHARD], ids=name_of)
def test_unknown_batch_size_gives_the_same(option):
    def compute(labels, embeddings):
        return loss_and_gradient(labels, embeddings, lone=False, **option)

    embeddings, labels = random_embeddings(), tf.constant(LABELS)
    specs = [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, DIM])]
    unknown = tf.function(compute, input_signature=specs)
    for rows in (ROWS, ROWS - 5):
        known = compute(labels[:rows], embeddings[:rows])
        for x, y in zip(unknown(labels[:rows], embeddings[:rows]), known, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


# ---- Every shape is known, and there is no op that a TPU lacks.


def nodes(function: tf.types.experimental.ConcreteFunction) -> Iterator:
    """The nodes of a function and of the functions that it calls, with their output shapes."""
    graph = function.graph.as_graph_def(add_shapes=True)
    yield from graph.node
    for called in graph.library.function:
        yield from called.node_def


def complaints(function: tf.types.experimental.ConcreteFunction) -> list[str]:
    """Names what a TPU would not compile."""
    problems = []
    for node in nodes(function):
        if FORBIDDEN.fullmatch(node.op):
            problems.append(f"{node.op} {node.name}: forbidden")
        if "_output_shapes" not in node.attr and not WITHOUT_OUTPUT.fullmatch(node.op):
            problems.append(f"{node.op} {node.name}: says no shape")
        for shape in node.attr["_output_shapes"].list.shape:
            if shape.unknown_rank or any(axis.size < 0 for axis in shape.dim):
                problems.append(f"{node.op} {node.name}: unknown shape")
    return problems


def traced(function: Callable, *, label_type=tf.int32) -> tf.types.experimental.ConcreteFunction:
    specs = tf.TensorSpec([ROWS], label_type), tf.TensorSpec([ROWS, DIM])
    return tf.function(function, jit_compile=True).get_concrete_function(*specs)


@pytest.mark.parametrize("option", [HARD, SEMIHARD], ids=name_of)
def test_whole_step_has_known_shapes_and_allowed_ops(model, option):
    step = tf.function(training_step(model, **option), jit_compile=True)
    function = step.get_concrete_function(
        tf.TensorSpec([ROWS, SIDE, SIDE, 3], tf.uint8), tf.TensorSpec([ROWS], tf.int32)
    )
    assert complaints(function) == []
    ops = {node.op for node in nodes(function)}
    assert {
        "Conv2DBackpropFilter",
        "StatelessWhile",
        "MatMul",
    } <= ops  # the whole step was examined


@pytest.mark.parametrize("option", OPTIONS, ids=name_of)
def test_every_option_has_known_shapes_and_allowed_ops(option):
    assert complaints(traced(lambda y, x: loss_and_gradient(y, x, **option))) == []


def test_shapes_stay_known_after_batches_of_other_sizes():
    def function(labels, embeddings):
        return loss_and_gradient(labels, embeddings, lone=False, **SEMIHARD)

    for rows in (3, 5):  # `train` checks the loss with a batch of 3
        function(tf.constant(LABELS[:rows]), random_embeddings()[:rows])
    assert complaints(traced(function)) == []


@pytest.mark.parametrize(
    "function",
    [
        lambda y, x: tf.boolean_mask(x, y > 0),
        lambda y, x: tf.unique(y)[0],
        lambda y, x: tf.searchsorted(tf.sort(x), x),
        lambda y, x: tf.map_fn(tf.reduce_max, x),
        lambda y, x: x[: tf.reduce_max(y)],
        lambda y, x: tf.while_loop(
            lambda i, _: i < 2,
            lambda i, _: (i + 1, tf.reduce_sum(x[tf.where(y > i)[0, 0]])),
            (0, 0.0),
        ),
    ],
    ids=["boolean_mask", "unique", "searchsorted", "map_fn", "slice", "where in a loop"],
)
def test_the_gate_closes(function):
    assert complaints(traced(function))


def test_int32_labels_stay_int32():
    int64 = tf.int64.as_datatype_enum

    def count(label_type):
        function = traced(
            lambda y, x: loss_and_gradient(y, x, lone=False, **SEMIHARD), label_type=label_type
        )
        return sum(
            int64 in (attribute.type, *attribute.list.type)
            for node in nodes(function)
            for attribute in node.attr.values()
        )

    assert count(tf.int32) == 0
    assert count(tf.int64) > 0


# ---- Memory: even after XLA's optimization, there is no array of B x B.


def largest_array(function: Callable, rows: int) -> int:
    """The number of elements of the largest array in XLA's compiled code for the CPU."""
    hlo = tf.function(function, jit_compile=True).experimental_get_compiler_ir(
        tf.TensorSpec([rows], tf.int32), tf.TensorSpec([rows, DIM])
    )(stage="optimized_hlo")
    shapes = re.findall(r"\b(?:f32|s32|pred|s64|f64)\[([\d,]+)\]", hlo)
    return max(np.prod([int(n) for n in shape.split(",")], dtype=np.int64) for shape in shapes)


@pytest.mark.parametrize("option", [HARD, SEMIHARD, {**HARD, "negative": "all"}], ids=name_of)
@pytest.mark.parametrize("rows", [4096, 32768])
def test_no_array_is_larger_than_a_tile(option, rows):
    largest = largest_array(lambda y, x: loss_and_gradient(y, x, lone=False, **option), rows)
    assert largest <= max(triplet_sums.TILE_SIZE, 64 * rows)


def test_arrays_of_all_pairs_are_noticed():
    def naive(labels, embeddings):
        distances = tf.reduce_sum(tf.square(embeddings[:, None] - embeddings[None]), -1)
        same = labels[:, None] == labels[None]
        nearest = tf.reduce_min(tf.sort(tf.where(same, np.inf, distances)), -1)
        return tf.reduce_sum(nearest)

    assert largest_array(naive, 4096) >= 4096**2 > triplet_sums.TILE_SIZE


# ---- What make tpu-check compiles, and its messages.


def test_a_lone_replica_finds_its_rows_among_all():
    embeddings = random_embeddings()
    with LoneReplica(REPLICAS - 1, REPLICAS):
        batch = gather(tf.constant(LABELS), embeddings)
    np.testing.assert_array_equal(batch.rows, np.arange((REPLICAS - 1) * ROWS, REPLICAS * ROWS))
    np.testing.assert_array_equal(tf.gather(batch.embeddings, batch.rows), embeddings)
    np.testing.assert_array_equal(tf.gather(batch.labels, batch.rows), LABELS)
    assert len(batch.embeddings) == len(batch.labels) == REPLICAS * ROWS


def test_minings_matmul_has_the_highest_precision_only_if_asked():
    def precisions() -> set[str]:
        hlo = tf.function(
            lambda y, x: loss_and_gradient(y, x, **SEMIHARD), jit_compile=True
        ).experimental_get_compiler_ir(tf.TensorSpec([ROWS], tf.int32), tf.TensorSpec([ROWS, DIM]))(
            stage="hlo"
        )
        [matmul] = re.findall(r" dot\(.*", hlo)
        return set(re.findall(r"operand_precision={(\w+,\w+)}", matmul))

    assert precisions() == set()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        assert precisions() == {"highest,highest"}
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(True)


def test_lists_of_flags_are_combined():
    combined = product({"backbone": ["small_conv", "resnet50"], "batch": [8, 16]})
    assert [(c.backbone, c.batch, c.image_size) for c in combined] == [
        ("small_conv", 8, 48),
        ("small_conv", 16, 48),
        ("resnet50", 8, 224),
        ("resnet50", 16, 224),
    ]


def test_memory_is_read_out_of_a_refusal():
    old = "Ran out of memory in memory space hbm. Used 27.00G of 15.75G hbm."
    new = "memory required for HLO temporaries (20.40G) exceeds available HBM (15.75G)."
    assert needed(f"RESOURCE_EXHAUSTED: {old}") == 27 * 2**30
    assert needed(f"RESOURCE_EXHAUSTED: {new}") == pytest.approx(20.4 * 2**30)
    assert needed("UNIMPLEMENTED: no such op") is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch=8,x"], "argument --batch: 'x': whole numbers, 1 or more; see --help"),
        (["--loss=easy"], "argument --loss: 'easy': choose from semihard, hard; see --help"),
        (["--size=8"], "unrecognized arguments: --size=8 (did you mean --image_size?); see --help"),
        (["--jax_python=no/python"], "--jax_python no/python: No such file or directory"),
        (
            [],
            "jax and libtpu are not installed: run `make tpu-check`, or pip install '.[tpu-check]'",
        ),
    ],
)
def test_mistakes_are_said_in_one_line(flags, message, tmp_path):
    without_jax = tmp_path / "python"
    without_jax.write_text("#!/bin/sh\nexit 1\n")
    without_jax.chmod(0o755)
    command = [sys.executable, "-m", "tools.tpu_check", f"--jax_python={without_jax}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


# ---- A batch that a TPU cannot take.


@pytest.mark.parametrize("function", [gather, lambda y, x: batch_triplets(y, x, **SEMIHARD).loss])
def test_a_tpu_needs_a_batch_of_fixed_size(function):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, DIM])])
    def on_a_tpu(labels, embeddings):
        with LoneReplica(0, REPLICAS):
            function(labels, embeddings)

    with pytest.raises(UsageError, match=r"no fixed size, which TPUs need: .*drop_remainder=True"):
        on_a_tpu.get_concrete_function()
