"""An export loads without this project, and gives the trainer's embeddings."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tests.fixtures import forked
from trainer.data.reading import Reading
from trainer.evaluation.inference import SplitImages, embed, forward_function
from trainer.export.export import export
from trainer.export.model_card import fingerprint, read_metrics
from trainer.export.portable import portable
from trainer.models.batch_norm import freeze_batch_norm
from trainer.models.embedding_model import build_model
from trainer.models.keras_applications import PreprocessInput
from trainer.runs.checkpoints import Checkpoints, MisfitError
from trainer.runs.folder import claim_data
from trainer.training.optimizers import Optimizers
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_info
from tripletmill.formats.records import decode_example, read_record
from tripletmill.storage.storage import exclusive

ROOT = Path(__file__).parents[3]
SIZE, DIM, SHARE = 16, 8, 0.875
CONFIG = f"""
# As a run has it that is older than the export.
MODEL_DIR = 'elsewhere'
DATA_DIR = 'not there any more'
CENTRAL_SHARE = {SHARE}
build_model.backbone = 'small_conv'
build_model.image_size = {SIZE}
build_model.embedding_dim = {DIM}
"""
small = functools.partial(
    build_model, backbone="small_conv", image_size=SIZE, embedding_dim=DIM, weights=None
)
TABLE = {
    "split": "test",
    "step": 7,
    "num_classes": 3,
    "num_queries": 18,
    "results": {"trained model": {"recall_at_1": 0.5, "map_at_r": 0.25, "r_precision": 0.125}},
}


def make_run(model_dir: Path, data_dir: Path, build=small, *, step: int = 7) -> keras.Model:
    """Makes a run whose best checkpoint has the weights of the returned model."""
    claim_data(str(model_dir), load_info(str(data_dir)))
    keras.utils.set_random_seed(1)
    model = build()
    checkpoints = Checkpoints(str(model_dir), model)
    assert checkpoints.save_if_best(step, 0.5)
    best = model.get_weights()
    model.set_weights([value + 0.1 for value in best])
    checkpoints.save(step + 1, evaluated_step=step + 1)
    model.set_weights(best)
    return model


def main(*arguments: object) -> subprocess.CompletedProcess:
    return forked.run(["-m", "trainer.main", "--mode=export", *map(str, arguments)], os.environ)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def exported(data_dir, tmp_path_factory):
    """A run, the model in it, and what the command printed."""
    model_dir = tmp_path_factory.mktemp("run") / "a run"
    model = make_run(model_dir, data_dir)
    (model_dir / "config.gin").write_text(CONFIG)
    (model_dir / "evaluation").mkdir()
    (model_dir / "evaluation/test.json").write_text(json.dumps(TABLE))
    (model_dir / "evaluation/old-test.json").write_text(json.dumps({**TABLE, "step": 5}))
    done = main(f"--model_dir={model_dir}", "--gin_param=export.tflite = True")
    assert done.returncode == 0, done.stderr
    return model_dir, model, done


@pytest.fixture(scope="module")
def records(data_dir):
    """The JPEGs of the test split."""
    index = Reading().open(str(data_dir), "test")
    files = []
    for row in range(len(index)):
        with open(index.shards[index.shard[row]], "rb") as file:
            record = read_record(file, int(index.offset[row]))
        files.append(decode_example(record)["image/encoded"])
    return files


def evaluated(model: keras.Model, data_dir: Path, share: float = SHARE) -> np.ndarray:
    """The embeddings of the test split as an evaluation computes them."""
    reading = Reading()
    index = reading.open(str(data_dir), "test")
    images = SplitImages(
        index,
        reading.records(index),
        image_size=SIZE,
        central_share=share,
        batch_size=4,
    )
    return embed(forward_function(tf.distribute.get_strategy(), model), images, "test")[0]


def served(folder: Path, files: list[bytes]) -> np.ndarray:
    signatures = tf.saved_model.load(str(folder / "saved_model")).signatures
    return signatures["serving_default"](encoded=tf.constant(files))["embedding"].numpy()


def test_what_is_written_and_printed(exported):
    model_dir, _, done = exported
    folder = model_dir / "export"
    lines = done.stdout.splitlines()
    assert lines[0] == "model of step 7: 16 x 16 pixels -> 8 numbers"
    assert "old-test.json is of another step" in lines[1]
    written = {Path(line.removeprefix("wrote ")) for line in lines[2:-1]}
    assert written == {*folder.iterdir()}
    assert lines[-1].startswith("next: ")
    assert f"--model_dir='{model_dir}'" in lines[-1]
    assert done.stderr == ""
    assert not list(model_dir.glob("export.*"))


def test_the_model_card(exported, data_dir):
    model_dir, _, _ = exported
    card = json.loads((model_dir / "export/model_card.json").read_text())
    info = load_info(str(data_dir))
    assert card["format"] == 1
    assert re.fullmatch("[0-9a-f]{64}", card["fingerprint"])
    assert (card["embedding_dim"], card["image_size"], card["central_share"]) == (DIM, SIZE, SHARE)
    assert card["preprocessing"] == {
        "short_side": 32,
        "quality": 90,
        "background": [255, 255, 255],
    }
    assert card["data"] == {"name": info.name, "fingerprint": info.input_fingerprint}
    assert card["step"] == 7
    assert card["metrics"] == {"test": TABLE}
    assert "build_model.embedding_dim = 8" in card["gin"].splitlines()
    assert str(model_dir) not in json.dumps(card)
    text = (model_dir / "export/model_card.md").read_text()
    assert "| trained model | 0.500 | 0.250 | 0.125 |" in text
    for line in (*card["limits"], *card["gin"].splitlines(), card["fingerprint"]):
        assert line in text


# This code is put around a script for a process that cannot import this project, installed or not.
BLOCK = """
import sys

OURS = {"trainer", "preprocessing", "pipeline", "tests"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Block())
for name in OURS:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
"""
AFTER_TENSORFLOW = """
import numpy as np

assert np.allclose(np.diag(similarity), 1, atol=1e-5)
files = np.load("records.npy", allow_pickle=True).tolist()
of_files = model.signatures["serving_default"](encoded=tf.constant(files))["embedding"]
pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
of_pixels = model.signatures["pixels"](image=tf.constant(pixels))["embedding"]
"""
AFTER_KERAS = """
assert embedding.shape == (2, 8)
by_keras = model(pixels, training=False)
for layer in model._flatten_layers():
    assert type(layer).__module__.partition(".")[0] == "keras", layer
"""
AFTER_LITERT = """
assert embedding.shape == (2, 8)
with_own_layers = keras.models.load_model("own_layers.keras")(pixels, training=True)
np.savez(
    "found.npz", files=of_files, pixels=of_pixels, keras=by_keras, own_layers=with_own_layers
)
assert not OURS & {name.partition(".")[0] for name in sys.modules}
"""


def test_it_loads_without_this_project(exported, records, data_dir, tmp_path):
    """Runs the snippets of docs/export.md, and more, without this project."""
    model_dir, model, _ = exported
    shutil.copytree(model_dir / "export", tmp_path / "runs/photos/export")
    (tmp_path / "photos/class_00").mkdir(parents=True)
    for place in range(2):
        (tmp_path / f"photos/class_00/{place:02d}.png").write_bytes(records[place])
    own_layers = make_run(tmp_path / "own_layers", data_dir, with_own_layers)
    export(model_dir=str(tmp_path / "own_layers"), build_model=with_own_layers)
    (tmp_path / "own_layers/export/model.keras").rename(tmp_path / "own_layers.keras")
    np.save(tmp_path / "records.npy", np.array(records, object), allow_pickle=True)
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    by_tensorflow, by_keras, by_litert, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = (
        f"{BLOCK}{by_tensorflow}{AFTER_TENSORFLOW}{by_keras}{AFTER_KERAS}{by_litert}{AFTER_LITERT}"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],  # -I ignores PYTHONPATH and the folder
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["files"], evaluated(model, data_dir), atol=1e-5)
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    expected = model(pixels, training=False)
    np.testing.assert_allclose(found["pixels"], expected, atol=1e-5)
    np.testing.assert_allclose(found["keras"], expected, atol=1e-5)
    np.testing.assert_allclose(found["own_layers"], own_layers(pixels), rtol=1e-5, atol=1e-5)


def test_tensorflow_lite(exported):
    model_dir, model, _ = exported
    embed = Interpreter(str(model_dir / "export/model.tflite")).get_signature_runner("pixels")
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3)).astype(np.uint8)
    for number in (1, 5):
        found = embed(image=images[:number])["embedding"]
        np.testing.assert_allclose(found, model(images[:number], training=False), atol=1e-5)


def test_again_gives_the_same_bytes_and_replaces_all(exported, tmp_path):
    """Exports to another folder, and over an older export."""
    model_dir, _, _ = exported
    again = tmp_path / "moved"
    shutil.copytree(model_dir, again)
    (again / "export/saved_model/stray").write_text("")
    done = main(f"--model_dir={again}", "--gin_param=export.tflite = True")
    assert done.returncode == 0, done.stderr
    assert content(again / "export") == content(model_dir / "export")


def test_a_checkpoint_of_another_model_is_one_line(exported):
    """The old export stays."""
    model_dir, _, _ = exported
    before = content(model_dir / "export")
    done = main(f"--model_dir={model_dir}", "--gin_param=build_model.embedding_dim = 9")
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: checkpoint .*: does not fit the model .*\[256, 9\].*\n", done.stderr
    )
    assert content(model_dir / "export") == before


def test_bfloat16_computes_as_evaluation_does(data_dir, records, tmp_path):
    build = functools.partial(small, dtype_policy="mixed_bfloat16")
    model = make_run(tmp_path, data_dir, build)
    export(model_dir=str(tmp_path), build_model=build)
    expected = evaluated(model, data_dir, share=1.0)
    np.testing.assert_allclose(served(tmp_path / "export", records), expected, atol=1e-5)
    in_float32 = small()
    in_float32.set_weights(model.get_weights())
    assert np.abs(evaluated(in_float32, data_dir, share=1.0) - expected).max() > 1e-4


def test_averaged_weights_where_the_run_kept_them(data_dir, records, tmp_path):
    """A run without an evaluation has no best checkpoint; the newest one has averages."""
    claim_data(str(tmp_path), load_info(str(data_dir)))
    keras.utils.set_random_seed(1)
    model = small()
    updates = Optimizers(model, lambda: keras.optimizers.SGD(0.1), average_decay=0.5)
    for average in updates.averages:
        average.assign(average + 0.1)
    checkpoints = Checkpoints(str(tmp_path), model, updates.variables, updates.averages)
    checkpoints.save(3, evaluated_step=0)
    export(model_dir=str(tmp_path), build_model=small)
    found = served(tmp_path / "export", records)
    assert np.abs(found - evaluated(model, data_dir, share=1.0)).max() > 1e-3
    with updates.averaged():
        expected = evaluated(model, data_dir, share=1.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_errors_of_use(data_dir, tmp_path):
    folder = str(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint to export; train first"):
        export(model_dir=folder, build_model=small)
    make_run(tmp_path, data_dir)
    with pytest.raises(UsageError, match=r"central_share 0: above 0"):
        export(model_dir=folder, build_model=small, central_share=0)
    with pytest.raises(MisfitError):
        export(model_dir=folder, build_model=functools.partial(small, embedding_dim=9))
    with (
        exclusive(str(tmp_path / ".export.lock"), "test"),
        pytest.raises(UsageError, match=r"export of .* another process is writing there"),
    ):
        export(model_dir=folder, build_model=small)
    (tmp_path / "export").mkdir()
    (tmp_path / "export/thesis.txt").write_text("")
    with pytest.raises(UsageError, match=r"something else than an export lies there"):
        export(model_dir=folder, build_model=small)
    assert content(tmp_path / "export") == {"thesis.txt": b""}
    (tmp_path / "export/model_card.json").write_text("")
    with pytest.raises(UsageError, match=r"export: thesis.txt beside the export would be lost"):
        export(model_dir=folder, build_model=small)
    (tmp_path / "checkpoints/data.json").unlink()
    (tmp_path / "export/thesis.txt").unlink()
    with pytest.raises(UsageError, match=r"which data the run was trained on is not noted"):
        export(model_dir=folder, build_model=small)


def test_metrics_of_the_step_alone(tmp_path):
    assert read_metrics(str(tmp_path), 7) == ({}, [])
    folder = tmp_path / "evaluation"
    folder.mkdir()
    tables = {"test": TABLE, "other-val": TABLE, "val": {**TABLE, "step": 6}}
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    (folder / "thresholds.json").write_text("[1]")
    (folder / "test-neighbours.png").write_bytes(b"")
    found, others = read_metrics(str(tmp_path), 7)
    assert found == {"other-val": TABLE, "test": TABLE}
    assert others == [str(folder / "val.json")]
    (folder / "test.json").write_text(json.dumps(TABLE)[:-1])
    with pytest.raises(UsageError, match=r"test.json: cannot be read .*; evaluate again"):
        read_metrics(str(tmp_path), 7)


def test_the_fingerprint_follows_what_fixes_an_embedding():
    settings = {"central_share": 1.0, "preprocessing": {"short_side": 32, "quality": 90}}

    def made(**changes: str) -> keras.Model:
        keras.utils.set_random_seed(1)
        return portable(with_own_layers(**changes))

    model, again = made(), made()
    first = fingerprint(model, **settings)
    # Keras numbers the names on.
    assert [x.name for x in model.layers] != [x.name for x in again.layers]
    assert fingerprint(again, **settings) == first
    others = [
        fingerprint(model, **{**settings, "central_share": 0.9}),
        fingerprint(model, **{**settings, "preprocessing": {"short_side": 33, "quality": 90}}),
        # The weights are equal, but the computation differs.
        fingerprint(made(dtype_policy="mixed_bfloat16"), **settings),
    ]
    weights = model.get_weights()
    weights[0].flat[0] = np.nextafter(weights[0].flat[0], np.float32(9))
    model.set_weights(weights)
    others.append(fingerprint(model, **settings))
    assert len({first, *others}) == 5


def with_own_layers(
    weights: None = None, *, module: str = "resnet", dtype_policy: str = "float32"
) -> keras.Model:
    """A small model that scales pixels and has batch norm and dropout, like large backbones."""
    image = keras.Input((SIZE, SIZE, 3))
    x = PreprocessInput(module, dtype="float32", name="preprocess_input")(image)
    x = keras.layers.Conv2D(4, 3, dtype=dtype_policy)(x)
    x = keras.layers.BatchNormalization(dtype=dtype_policy)(x)
    x = keras.layers.Dropout(0.5, dtype=dtype_policy)(keras.ops.relu(x))
    trunk = freeze_batch_norm(keras.Model(image, keras.layers.Flatten()(x)))
    outer = keras.Input((SIZE, SIZE, 3))
    return keras.Model(outer, keras.layers.Dense(3)(trunk(outer)))


@pytest.mark.parametrize("dtype_policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("module", ["resnet", "mobilenet_v2", "densenet", "efficientnet"])
def test_layers_of_this_project_are_replaced(module, dtype_policy):
    """Tests the four ways in which networks of keras.applications scale pixels."""
    keras.utils.set_random_seed(0)
    model = with_own_layers(module=module, dtype_policy=dtype_policy)
    shifted = [value + 0.1 for value in model.get_weights()]
    model.set_weights(shifted)

    made = portable(model)
    shape = (2, SIZE, SIZE, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    for training in (False, True):
        np.testing.assert_array_equal(made(pixels, training=training), model(pixels))
    for layer in made._flatten_layers():
        assert type(layer).__module__.partition(".")[0] == "keras"
    for one, other in zip(model.get_weights(), shifted, strict=True):
        np.testing.assert_array_equal(one, other)
