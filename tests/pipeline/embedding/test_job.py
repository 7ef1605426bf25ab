"""Embedding jobs: what they write from records and from images, and what they leave out."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.fixtures import exported
from tests.fixtures.datasets import make_data_set
from tests.fixtures.embedding_jobs import BATCH, MODULE, SETTINGS, run
from tests.fixtures.exported import DIM, SIDE, expected, export_model
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import ROOT, command, content
from tests.fixtures.stderr import but_for_progress, error_of
from tripletmill.errors import UsageError
from tripletmill.formats import embeddings, index
from tripletmill.formats.embeddings import Embeddings, load_embeddings
from tripletmill.formats.records import RecordWriter, decode_example, encode_example, read_records
from tripletmill.images import ImageSettings

CLASSES, IMAGES = 5, 6
CANONICAL = ImageSettings(short_side=SIDE, quality=90)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with images in images/, and a data set of these images in data/."""
    folder = tmp_path_factory.mktemp("photos")
    class_folder(folder / "images", classes=CLASSES, images=IMAGES)
    make_data_set(folder, short_side=SIDE, cycle=("train", "test"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model that takes batches of one size only, so a batch that is not filled up fails."""
    return export_model(tmp_path_factory.mktemp("run") / "export", batch_size=BATCH)


@pytest.fixture(scope="module")
def of_records(photos, model, tmp_path_factory) -> Path:
    """The embeddings of all records, made by the command in two processes."""
    output = tmp_path_factory.mktemp("records") / "embeddings"
    modes = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    flags = [f"--model_dir={model.parent}", f"--data_dir={photos / 'data'}", f"--output={output}"]
    done = command(*flags, *SETTINGS, *modes, module=MODULE)
    assert done.returncode == 0, done.stderr
    assert but_for_progress(done.stderr) == []
    assert re.search(r"30 of 12 numbers, in 4 shards\n  30 images embedded now, in ", done.stdout)
    assert "left out: nothing" in done.stdout
    index = output.parent / "index"
    last = f"next: python -m trainer.search build --embeddings={output} --index_dir={index}"
    assert done.stdout.splitlines()[-1] == last
    return output


def records_of(data: Path) -> dict[str, dict]:
    """All records of a data set by source id, read with the record reader alone."""
    found = {}
    for path in data.glob("*.tfrecord-*"):
        with open(path, "rb") as file:
            for _, payload in read_records(file):
                record = decode_example(payload)
                found[record["image/source_id"].decode()] = record
    return found


def by_id(found: Embeddings) -> dict[str, np.ndarray]:
    rows = dict(zip(found.source_id, found.embedding, strict=True))
    assert len(rows) == len(found)
    return rows


def rejected(output: Path) -> list[tuple[str, str, str]]:
    lines = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    return [(line["source_id"], line["class"], line["reason"]) for line in lines]


def test_records(photos, of_records):
    records, found = records_of(photos / "data"), load_embeddings(str(of_records))
    assert sorted(found.source_id) == sorted(records)
    assert len(found) == CLASSES * IMAGES
    for row, source_id in enumerate(found.source_id):
        record = records[source_id]
        assert found.label[row] == record["image/class/label"]
        assert found.class_name[row] == record["image/class/text"].decode()
        assert found.split[row] == ("train" if found.label[row] % 2 == 0 else "test")
        vector = expected(record["image/encoded"])
        np.testing.assert_allclose(found.embedding[row], vector, atol=1e-3)
    info = found.info
    assert (info.dim, info.model) == (DIM, exported.CARD["fingerprint"])
    assert info.input["splits"] == ["test", "train"]


def test_a_shard_for_each_of_the_records_in_their_order(photos, of_records):
    order = [
        index.load_index(str(photos / "data"), split).column("source_id").to_pylist()
        for split in ("test", "train")
    ]
    found = load_embeddings(str(of_records))
    assert found.source_id.tolist() == [name for names in order for name in names]
    lengths = index.load_info(str(photos / "data")).shard_lengths
    assert [shard.rows for shard in found.info.shards] == [*lengths["test"], *lengths["train"]]


@pytest.mark.parametrize("flags", [[], ["--direct_num_workers=3"]])
def test_the_same_bytes_from_any_number_of_workers(photos, model, of_records, tmp_path, flags):
    run(model, tmp_path / "one", *flags, data=photos / "data")
    assert content(tmp_path / "one") == content(of_records)


def test_some_splits(photos, model, of_records, tmp_path):
    run(model, tmp_path / "test", data=photos / "data", splits=["test"])
    found, both = load_embeddings(str(tmp_path / "test")), load_embeddings(str(of_records))
    assert {*found.split} == {"test"}
    np.testing.assert_array_equal(found.embedding, both.embedding[both.split == "test"])


def test_the_model_is_loaded_once(photos, model, tmp_path, monkeypatch):
    load, loaded = tf.saved_model.load, []
    monkeypatch.setattr(tf.saved_model, "load", lambda path: loaded.append(path) or load(path))
    run(model, tmp_path / "out", data=photos / "data")
    assert len(loaded) == 1


@pytest.fixture(scope="module")
def of_images(photos, model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("images") / "embeddings"
    assert run(model, output, input=photos / "images").images_embedded == CLASSES * IMAGES
    return output


def test_images_are_embedded_as_their_records(photos, of_images, of_records):
    found, records = load_embeddings(str(of_images)), load_embeddings(str(of_records))
    rows, expected_rows = by_id(found), by_id(records)
    assert rows.keys() == expected_rows.keys()
    for name, vector in rows.items():
        np.testing.assert_allclose(vector, expected_rows[name], atol=1e-6)
    assert found.class_name.tolist() == [name.split("/")[0] for name in found.source_id]
    assert {*found.split} == {None}
    assert {*found.label} == {-1}
    assert len(found.info.shards) == 4


def test_the_order_of_the_listing_does_not_matter(photos, model, of_images, tmp_path, monkeypatch):
    from preprocessing.sources.folders import FolderSource

    parts = FolderSource.parts
    monkeypatch.setattr(FolderSource, "parts", lambda self: reversed([*parts(self)]))
    run(model, tmp_path / "reversed", input=photos / "images")
    assert content(tmp_path / "reversed") == content(of_images)


def test_images_without_classes(photos, model, of_images, tmp_path):
    """A flat folder of images, and two manifests of them; one row has a label and a split."""
    flat = tmp_path / "flat"
    flat.mkdir()
    names = {}
    for path in sorted((photos / "images").rglob("*.png"))[:7]:
        names[f"{path.parent.name}-{path.name}"] = f"{path.parent.name}/{path.name}"
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    (flat / ".hidden.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"flat/{name}\n" for name in names))
    lines = [json.dumps({"path": f"flat/{name}"}) for name in names]
    lines[2] = lines[2][:-1] + ', "label": "known", "split": "val"}'
    (tmp_path / "list.jsonl").write_text("\n".join(lines))

    whole = by_id(load_embeddings(str(of_images)))
    for number, input in enumerate(("flat", "list.csv", "list.jsonl")):
        output = tmp_path / f"embeddings{number}"
        run(model, output, input=tmp_path / input)
        found = load_embeddings(str(output))
        rows = {name.removeprefix("flat/"): row for name, row in by_id(found).items()}
        assert rows.keys() == names.keys()
        for name, vector in rows.items():
            np.testing.assert_allclose(vector, whole[names[name]], atol=1e-6)
        known = [name for name in found.class_name if name is not None]
        assert known == (["known"] if input == "list.jsonl" else [])
        assert [name for name in found.split if name] == (["val"] if known else [])
    assert rejected(tmp_path / "embeddings0") == [(".hidden.png", "", "hidden file")]


def test_records_of_others(photos, model, of_images, tmp_path):
    from preprocessing.sources.tfrecords import RecordsInput

    options = RecordsInput(source_id="image/source_id")
    run(model, tmp_path / "out", input=f"tfrecord:{photos / 'data'}", records=options)
    found = load_embeddings(str(tmp_path / "out"))
    assert by_id(found).keys() == by_id(load_embeddings(str(of_images))).keys()


def test_bad_images_are_left_out(photos, model, of_images, tmp_path):
    images = shutil.copytree(photos / "images", tmp_path / "images")
    (images / "class_01/99.png").write_bytes(b"no image")
    whole = (images / "class_02/00.png").read_bytes()
    (images / "class_02/98.png").write_bytes(whole[: len(whole) // 2])
    (images / "notes.txt").write_text("beside the class folders")
    run(model, tmp_path / "out", input=images)
    left_out = rejected(tmp_path / "out")
    assert [row[:2] for row in left_out] == [
        ("class_01/99.png", "class_01"),
        ("class_02/98.png", "class_02"),
        ("notes.txt", ""),
    ]
    assert left_out[0][2] == "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"
    assert "truncated" in left_out[1][2]
    found = load_embeddings(str(tmp_path / "out"))
    assert by_id(found).keys() == by_id(load_embeddings(str(of_images))).keys()
    assert found.info.num_rejected == 3

    with pytest.raises(UsageError, match=r"2 of 32 images rejected \(at most 5% may be\)"):
        run(model, tmp_path / "strict", input=images, max_rejected_share=0.05)
    assert not embeddings.is_finished(str(tmp_path / "strict"))
    assert rejected(tmp_path / "strict") == left_out


def test_a_link_that_leads_nowhere_is_known_before(photos, model, tmp_path):
    images = shutil.copytree(photos / "images", tmp_path / "images")
    (images / "class_00/link.png").symlink_to("nowhere.png")
    with pytest.raises(UsageError, match="1 of 31 images in the input cannot be used"):
        run(model, tmp_path / "strict", input=images, max_rejected_share=0.0)
    run(model, tmp_path / "out", input=images)
    assert [row[0] for row in rejected(tmp_path / "out")] == ["class_00/link.png"]


def test_nothing_to_embed(model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.jpg").write_bytes(b"no image")
    with pytest.raises(UsageError, match="no images in the input"):
        run(model, tmp_path / "out", input=tmp_path / "empty")
    with pytest.raises(UsageError, match="the input has no readable image, 1 of 1"):
        run(model, tmp_path / "out2", input=tmp_path / "bad", max_rejected_share=1.0)


@pytest.fixture
def data_set(photos, tmp_path) -> Path:
    return shutil.copytree(photos / "data", tmp_path / "data")


def replace_last_record(path: Path, **features: bytes | int) -> str:
    """Changes the features of a shard's last record, and returns its source id."""
    with open(path, "rb") as file:
        offset, payload = list(read_records(file))[-1]
    record = decode_example(payload)
    with open(path, "r+b") as file:
        file.seek(offset)
        with RecordWriter(file) as writer:
            writer.write(encode_example({**record, **features}))
            file.truncate()
    return str(record["image/source_id"], "utf-8")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"\xff\xd8\xff no JPEG", "the model cannot decode it"),
        (7, "damaged record: it holds numbers in place of class and image"),
    ],
)
def test_a_record_that_holds_no_image(model, data_set, of_records, tmp_path, image, reason):
    path = min(data_set.glob("*-train.tfrecord-*"))
    source_id = replace_last_record(path, **{"image/encoded": image})
    run(model, tmp_path / "out", data=data_set)
    assert rejected(tmp_path / "out") == [(source_id, source_id.split("/")[0], reason)]
    rows = by_id(load_embeddings(str(tmp_path / "out")))
    whole = by_id(load_embeddings(str(of_records)))
    assert rows.keys() == whole.keys() - {source_id}
    for name, vector in rows.items():
        np.testing.assert_allclose(vector, whole[name], atol=1e-6)


def test_damaged_records_are_left_out(model, data_set, of_records, tmp_path):
    whole = load_embeddings(str(of_records))
    train = index.load_index(str(data_set), "train")
    names = train.column("source_id").to_pylist()
    # Damages the payload of one record and the length of another; no other record is lost.
    for row, offset in ((1, 40), (5, 3)):
        path = Path(train.shards[train.shard[row]])
        data = bytearray(path.read_bytes())
        data[train.offset[row] + offset] ^= 1
        path.write_bytes(data)
    run(model, tmp_path / "out", data=data_set)
    found = load_embeddings(str(tmp_path / "out"))
    lost = {names[1], names[5]}
    assert by_id(found).keys() == by_id(whole).keys() - lost
    assert {row[0] for row in rejected(tmp_path / "out")} == lost
    for source_id, class_name, reason in rejected(tmp_path / "out"):
        assert class_name == source_id.split("/")[0]
        assert reason.startswith("damaged record: the checksum of its ")
    with pytest.raises(UsageError, match="2 of 30 images rejected"):
        run(model, tmp_path / "strict", data=data_set, max_rejected_share=0.05)


def test_a_shard_of_another_data_set_is_not_taken_for_this_one(model, data_set, tmp_path):
    first, second = sorted(data_set.glob("*-train.tfrecord-*"))[:2]
    shutil.copy(second, first)
    with pytest.raises(UsageError, match=r"images rejected .* not the one that the index names"):
        run(model, tmp_path / "out", data=data_set)
    first.unlink()
    with pytest.raises(UsageError, match=f"{first.name} is missing"):
        run(model, tmp_path / "out", data=data_set)


def test_records_made_otherwise_are_told(model, photos, data_set, tmp_path):
    assert run(model, tmp_path / "same", data=data_set).warning == ""
    other = shutil.copytree(model, tmp_path / "model")
    image = {"short_side": 64, "quality": 90, "background": [255, 255, 255]}
    exported.write_card(other, preprocessing=image)
    outcome = run(other, tmp_path / "out", data=data_set)
    assert outcome.warning.endswith(": short_side 32, the model's 64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": "no/such/folder"}, "no such file or folder"),
        ({"data": "no/such/folder"}, "no such folder"),
        ({"data": "DATA", "splits": ["val"]}, "no split 'val', only test, train"),
        ({"data": "DATA", "splits": []}, "no split chosen"),
        ({"data": "DATA", "input": "DATA"}, "either --images"),
        ({}, "either --images"),
        ({"input": "IMAGES", "splits": ["test"]}, "--splits: only with --data_dir"),
        ({"data": "DATA", "output": "DATA/out"}, "lies in the data"),
        ({"input": "IMAGES", "output": "IMAGES/out"}, "lies in the input"),
        ({"data": "DATA", "output": "MODEL/out"}, "lies in the model"),
        ({"data": "DATA", "output": "s3://x"}, "local paths and gs://"),
        ({"data": "DATA", "model": "no"}, "model no: no such folder; export one"),
        ({"data": "DATA", "model": "IMAGES"}, "no model_card.json in it"),
        ({"data": "DATA", "batch_size": 0}, "embed.batch_size 0: 1 or more"),
    ],
)
def test_wrong_arguments(photos, model, tmp_path, arguments, message):
    places = {"DATA": str(photos / "data"), "IMAGES": str(photos / "images"), "MODEL": str(model)}

    def placed(value):
        for name, path in places.items() if isinstance(value, str) else ():
            value = value.replace(name, path)
        return value

    arguments = {"output": str(tmp_path / "out"), "model": str(model), **arguments}
    with pytest.raises(UsageError, match=re.escape(message)):
        run(**{name: placed(value) for name, value in arguments.items()})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"format": 2}, "format version 2, this is version 1"),
        ({"preprocessing": {}}, "not written by tripletmill"),
        ({"embedding_dim": 13}, r"gives float32 (4, 12), not float32 (4, 13)"),
    ],
)
def test_a_card_that_does_not_fit(photos, model, tmp_path, card, message):
    other = shutil.copytree(model, tmp_path / "model")
    exported.write_card(other, **card)
    with pytest.raises(UsageError, match=re.escape(message)):
        run(other, tmp_path / "out", data=photos / "data")


def test_a_model_that_cannot_be_used(photos, model, tmp_path):
    other = shutil.copytree(model, tmp_path / "model")
    shutil.rmtree(other / "saved_model")
    with pytest.raises(UsageError, match="saved_model: cannot be loaded"):
        run(other, tmp_path / "out", data=photos / "data")
    infinite = export_model(tmp_path / "infinite", scale=float("inf"))
    with pytest.raises(UsageError, match="gives an embedding that is not finite"):
        run(infinite, tmp_path / "out", data=photos / "data")


def test_without_tensorflow(photos, model, tmp_path):
    """The error comes at the start, or on a worker if only the worker lacks TensorFlow."""
    at_start = "sys.modules['tensorflow'] = None"
    on_worker = (
        "from pipeline.embedding import model, settings\n"
        "sys.modules['tensorflow'] = None\n"
        "settings.importlib.util.find_spec = lambda name: name"
    )
    for hide, said in (
        (at_start, "TensorFlow is missing, which the exported model needs; pip install"),
        (on_worker, "TensorFlow cannot be imported on a worker"),
    ):
        code = f"import sys\n{hide}\nimport pipeline.embed\nsys.exit(pipeline.embed.main())"
        flags = [
            f"--model_dir={model}",
            f"--data_dir={photos / 'data'}",
            f"--output={tmp_path / 'out'}",
        ]
        done = subprocess.run(
            [sys.executable, "-c", code, *flags, *SETTINGS],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert error_of(done).startswith(said)


def test_nothing_imports_tensorflow_before_a_worker_embeds(of_records, photos, model):
    """A command that finds everything finished imports no TensorFlow either."""
    code = (
        "import sys, pipeline.embed\n"
        "import atexit; atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "sys.exit(pipeline.embed.main())"
    )
    flags = [f"--model_dir={model}", f"--data_dir={photos / 'data'}", f"--output={of_records}"]
    before = {path: path.stat().st_mtime_ns for path in of_records.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, *SETTINGS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "embedded now" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in of_records.iterdir()} == before


def test_wrong_flags_are_one_line(photos, model):
    done = command(f"--model_dir={model}", module=MODULE)
    assert error_of(done) == "--output is missing; see --help"
