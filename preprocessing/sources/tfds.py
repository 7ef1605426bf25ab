"""Data sets that TensorFlow Datasets has prepared, read without it."""

import dataclasses
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from preprocessing.sources.references import ImageRef, Rejected
from preprocessing.sources.tfrecords import (
    RecordsInput,
    check_features,
    checked_columns,
    list_records,
    listing,
    read_names,
)
from preprocessing.sources.trees import open_tree
from tripletmill.errors import UsageError
from tripletmill.storage import storage

NAME = re.compile(r"(?P<name>[\w-]+)(/(?P<config>[\w+.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
SHARD_DIGITS = 5  # at least
IMAGE, CLASS_LABEL, TEXT, DICT = "image", "classLabel", "text", "featuresDict"
LISTS = ("sequence", "video")
NOT_A_KIND = ("pythonClassName", "description", "valueRange")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TfdsInput:
    """Which features of a data set are read; those in a dict are called DICT/FEATURE.

    Attributes:
      image: by default the only Image.
      label: the class; by default the only ClassLabel or, if there is none, the only Text.
      use_splits: whether images keep the data set's own splits. Most of these have the same classes
        in training and test.
      columns: text or numbers that are carried into the index as text.
      group: what tells images that belong together (camera, visit, item); carried like `columns`.
    """

    image: str | None = None
    label: str | None = None
    use_splits: bool = False
    columns: Sequence[str] = ()
    group: str | None = None

    def __post_init__(self) -> None:
        check_features(self, "image", "label", "group", optional=True)
        object.__setattr__(self, "columns", checked_columns(self))


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a data set.

    Attributes:
      path: where it lies.
      name: the same, relative to the data set.
      split: that its images ask for, or None.
      num_records: how many it should hold.
      records: how it is read.
    """

    path: str
    name: str
    split: str | None
    num_records: int
    records: RecordsInput


@dataclasses.dataclass(frozen=True)
class _Feature:
    """A feature of one value.

    Attributes:
      kind: IMAGE, CLASS_LABEL, TEXT or another; "" for an image of class ids (LabeledImage).
      content: what features.json says about the feature.
      file: first part of the names of the feature's files.
    """

    kind: str
    content: Mapping[str, Any]
    file: str


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A data set in TFDS_DIR/NAME[/CONFIG]/VERSION. A source id is FILE@OFFSET.

    Attributes:
      name: NAME[/CONFIG][:VERSION]; by default the newest version.
      tfds_dir: where data sets have been prepared.
      options: what is read.
      labelled: whether an image without a class is left out, or has the class "".
    """

    name: str
    tfds_dir: str
    options: TfdsInput = TfdsInput()
    labelled: bool = True

    named_by = None

    @property
    def columns(self) -> Sequence[str]:
        return self.options.columns

    @property
    def group(self) -> str | None:
        return self.options.group

    def check(self) -> None:
        """Raises UsageError: no such data set, one in another format, files or features missing."""
        shards = self.parts()
        folders = {posixpath.dirname(shard.path) for shard in shards}
        there = {info.path for folder in folders for info in storage.list_files(folder)}
        missing = [shard.path for shard in shards if shard.path not in there]
        if missing:
            raise self._error(f"{len(missing)} of its files are missing: {listing(missing)}")

    def parts(self) -> Sequence[Shard]:
        """Files of all splits. Raises UsageError as check does, but for missing files."""
        folder = self._folder()
        file_format, files = self._json(folder, "dataset_info.json", _files)
        if file_format != "tfrecord":
            raise self._error(f"its files are {file_format}; only tfrecord can be read")
        records = self._records(folder, self._json(folder, "features.json", _features))
        shards = [
            Shard(
                path=storage.join(folder, name),
                name=name,
                split=split if self.options.use_splits else None,
                num_records=num_records,
                records=records,
            )
            for name, split, num_records in files
        ]
        if not shards:
            raise self._error(f"no files in any split, says {folder}/dataset_info.json")
        return shards

    def list_part(self, part: Shard) -> Iterator[ImageRef | Rejected]:
        """Every record of one file, as list_records, and one Rejected if there are too few."""
        count = 0
        listed = list_records(part.path, part.name, part.records, labelled=self.labelled)
        for found in listed:
            count += 1
            if isinstance(found, ImageRef):
                found = dataclasses.replace(found, split=part.split)
            yield found
        if count < part.num_records:
            yield Rejected(part.name, "", "fewer records than dataset_info.json says")

    def _error(self, problem: str) -> UsageError:
        return UsageError(f"input tfds:{self.name}: {problem}")

    def _folder(self) -> str:
        """Where the version of the data set lies."""
        match = NAME.fullmatch(self.name)
        if not match:
            raise self._error("expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0")
        if not self.tfds_dir:
            raise self._error("say in which folder it lies: --tfds_dir")
        name, config, version = match["name"], match["config"], match["version"]
        folder = storage.join(self.tfds_dir, name)
        folders = _folders(folder)
        if not folders:
            there = listing(_folders(self.tfds_dir)) or "nothing"
            raise self._error(f"no such data set in {self.tfds_dir}, which holds {there}")
        configs = [found for found in folders if not VERSION.match(found)]
        if config is None and configs == folders:
            raise self._error(
                f"say which of its configurations: tfds:{name}/CONFIG with {listing(configs)}"
            )
        if config is not None:
            if config not in configs:
                raise self._error(f"no such configuration, only {listing(configs) or 'none'}")
            folder = storage.join(folder, config)
        versions = sorted(filter(VERSION.fullmatch, _folders(folder)), key=_numbers)
        if not versions or version not in (None, *versions):
            raise self._error(f"no such version in {folder}, only {listing(versions) or 'none'}")
        return storage.join(folder, version or versions[-1])

    def _json(self, folder: str, name: str, parse: Callable[[Any], T]) -> T:
        path = storage.join(folder, name)
        try:
            return parse(json.loads(storage.read(path)))
        except FileNotFoundError:
            raise self._error(f"no {name} in {folder}; prepare it with TFDS 4 or later") from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._error(
                f"{path}: not in the form that TFDS writes today ({error!r}); prepare the data set"
                " again"
            ) from error

    def _records(self, folder: str, features: Mapping[str, _Feature]) -> RecordsInput:
        """How the files are read."""
        options = self.options
        image = options.image or self._only(features, "image", IMAGE)
        has_labels = any(feature.kind == CLASS_LABEL for feature in features.values())
        label = options.label or self._only(features, "label", CLASS_LABEL if has_labels else TEXT)
        for name in (image, label, *options.columns):
            if name not in features:
                raise self._error(
                    f"no feature {name!r} of one value, only {listing(sorted(features))};"
                    " see TfdsInput"
                )
        if features[image].content.get("dtype") == "float32":
            raise self._error(f"{image!r} is an image of floats, which cannot be read")
        return RecordsInput(
            image=image,
            label=label,
            label_names=self._names(folder, label, features[label]),
            columns=options.columns,
            group=options.group,
        )

    def _only(self, features: Mapping[str, _Feature], option: str, kind: str) -> str:
        found = sorted(name for name, feature in features.items() if feature.kind == kind)
        if len(found) != 1:
            problem = f"several features that may be the {option}" if found else f"no {option}"
            names = listing(found or sorted(features))
            raise self._error(f"{problem}: set TfdsInput.{option} to one of {names}")
        return found[0]

    def _names(self, folder: str, label: str, feature: _Feature) -> str | None:
        """File with the names of the classes; None where they have numbers only."""
        path = storage.join(folder, f"{feature.file}.labels.txt")
        if feature.kind != CLASS_LABEL or not storage.is_file(path):
            return None
        count = int(feature.content.get("numClasses", 0))
        names = read_names(path)
        if len(names) != count:
            raise self._error(
                f"{len(names)} names in {path} for the {count} classes of {label!r}; a name may"
                " neither be empty nor have a line break in it"
            )
        return path


def _files(info: Mapping[str, Any]) -> tuple[str, list[tuple[str, str, int]]]:
    """The files' format, and the name, split and number of records of each file."""
    files = []
    for split in info.get("splits", []):
        lengths = split.get("shardLengths", [])
        digits = max(SHARD_DIGITS, len(str(len(lengths))))
        total = f"{len(lengths):0{digits}}"
        for shard, length in enumerate(lengths):
            index = f"{shard:0{digits}}"
            name = split["filepathTemplate"].format(
                DATASET=info["name"],
                SPLIT=split["name"],
                FILEFORMAT="tfrecord",
                SHARD_INDEX=index,
                NUM_SHARDS=total,
                SHARD_X_OF_Y=f"{index}-of-{total}",
            )
            files.append((name, split["name"], int(length)))
    return info.get("fileFormat", "tfrecord"), files


def _features(
    feature: Mapping[str, Any], path: tuple[str, ...] = (), file: tuple[str, ...] = ()
) -> dict[str, _Feature]:
    """The features of one value in a dict of features.json, by their names in a record."""
    found: dict[str, _Feature] = {}
    for name, inner in feature[DICT].get("features", {}).items():
        inner_path, inner_file = (*path, name), (*file, name.replace("/", "."))
        [(kind, content)] = [item for item in inner.items() if item[0] not in NOT_A_KIND]
        is_array = any(size != "1" for size in content.get("shape", {}).get("dimensions", []))
        if kind == DICT:
            found |= _features(inner, inner_path, inner_file)
        elif kind == IMAGE or not (kind in LISTS or is_array):
            kind = "" if kind == IMAGE and "label" in content else kind
            found["/".join(inner_path)] = _Feature(kind, content, "-".join(inner_file))
    return found


def _folders(path: str) -> list[str]:
    """Names of the finished folders in a folder, sorted; none if that does not exist."""
    try:
        names, _ = open_tree(path).folders("")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if not name.startswith("incomplete.")]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
