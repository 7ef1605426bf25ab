"""Lists images of data sets that TensorFlow Datasets (TFDS) has prepared, without using TFDS."""

import dataclasses
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from preprocessing.sources.references import ImageRef, Rejected, shortened
from preprocessing.sources.tfrecords import (
    RecordsInput,
    RecordsSource,
    check_features,
    list_records,
    read_names,
)
from preprocessing.sources.trees import open_tree
from tripletmill.errors import UsageError
from tripletmill.storage import storage

NAME = re.compile(r"(?P<name>[\w-]+)(/(?P<config>[\w+.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
MIN_SHARD_DIGITS = 5
# The names in features.json of the kinds of features, and of the entries that are not kinds.
IMAGE, CLASS_LABEL, TEXT, DICT = "image", "classLabel", "text", "featuresDict"
LISTS = ("sequence", "video")
NOT_A_KIND = ("pythonClassName", "description", "valueRange")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class TfdsInput:
    """The features of a data set that are read. A feature in a dict is called DICT/FEATURE.

    Attributes:
      image: the feature with the image. By default it is the only feature of the kind Image.
      label: the feature with the class. By default it is the only ClassLabel. If the data set has
        no ClassLabel, it is the only Text.
      use_splits: whether images keep the data set's own splits. In most data sets, these splits
        have the same classes in training and test.
      columns: features with text or numbers, which are carried into the index as text.
      group: the feature that says which images belong together (camera, visit, item). It is carried
        into the index like `columns`.
    """

    image: str | None = None
    label: str | None = None
    use_splits: bool = False
    columns: Sequence[str] = ()
    group: str | None = None

    def __post_init__(self) -> None:
        check_features(self, optional=("image", "label", "group"))


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a data set.

    Attributes:
      path: the path of the file.
      name: the path relative to the data set's folder.
      split: the split of the file's images, or None if a rule for splits decides.
      num_records: how many records the file should hold.
      records: the features that are read.
    """

    path: str
    name: str
    split: str | None
    num_records: int
    records: RecordsInput


@dataclasses.dataclass(frozen=True)
class _Feature:
    """A feature that has one value.

    Attributes:
      kind: IMAGE, CLASS_LABEL, TEXT or another kind. It is "" for an image whose pixels are class
        ids (LabeledImage).
      content: what features.json says about the feature.
      file: the first part of the names of the feature's files.
    """

    kind: str
    content: Mapping[str, Any]
    file: str


@dataclasses.dataclass(frozen=True)
class TfdsSource(RecordsSource):
    """The images of a data set in TFDS_DIR/NAME[/CONFIG]/VERSION. A source id is FILE@OFFSET.

    Attributes:
      name: NAME[/CONFIG][:VERSION]. The default version is the newest one.
      tfds_dir: the folder in which data sets have been prepared.
      options: the features that are read.
      labelled: whether images without a class are rejected. Otherwise they have the class "".
    """

    name: str
    tfds_dir: str
    options: TfdsInput = TfdsInput()
    labelled: bool = True

    def check(self) -> None:
        """Raises UsageError if the data set, a file or a feature is missing, or cannot be read."""
        shards = self.parts()
        folders = {posixpath.dirname(shard.path) for shard in shards}
        present = {info.path for folder in folders for info in storage.list_files(folder)}
        missing = [shard.path for shard in shards if shard.path not in present]
        if missing:
            raise self._error(f"{len(missing)} of its files are missing: {shortened(missing)}")

    def parts(self) -> Sequence[Shard]:
        """The files of all splits. Raises UsageError like `check`, but not for missing files."""
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
            raise self._error(f"it has no files in any split, says {folder}/dataset_info.json")
        return shards

    def list_part(self, part: Shard) -> Iterator[ImageRef | Rejected]:
        """Lists every record of a file; see `list_records`. Missing records give one Rejected."""
        count = 0
        for record in list_records(part.path, part.name, part.records, labelled=self.labelled):
            count += 1
            if isinstance(record, ImageRef):
                record = dataclasses.replace(record, split=part.split)
            yield record
        if count < part.num_records:
            yield Rejected(part.name, "", "fewer records than dataset_info.json says")

    def _error(self, problem: str) -> UsageError:
        return UsageError(f"input tfds:{self.name}: {problem}")

    def _folder(self) -> str:
        """The folder of the data set's version."""
        match = NAME.fullmatch(self.name)
        if not match:
            raise self._error("expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.0.0")
        name, config, version = match["name"], match["config"], match["version"]
        folder = storage.join(self.tfds_dir, name)
        folders = _folders(folder)
        if not folders:
            others = shortened(_folders(self.tfds_dir)) or "nothing"
            raise self._error(f"no such data set in {self.tfds_dir}, which holds {others}")
        configs = [folder_name for folder_name in folders if not VERSION.match(folder_name)]
        if config is None and configs == folders:
            raise self._error(
                f"choose one of its configurations with tfds:{name}/CONFIG: {shortened(configs)}"
            )
        if config is not None:
            if config not in configs:
                raise self._error(f"no such configuration, only {shortened(configs) or 'none'}")
            folder = storage.join(folder, config)
        versions = sorted(filter(VERSION.fullmatch, _folders(folder)), key=_numbers)
        if not versions or version not in (None, *versions):
            raise self._error(f"no such version in {folder}, only {shortened(versions) or 'none'}")
        return storage.join(folder, version or versions[-1])

    def _json(self, folder: str, name: str, parse: Callable[[Any], T]) -> T:
        """Reads and parses a JSON file of the data set."""
        path = storage.join(folder, name)
        try:
            return parse(json.loads(storage.read(path)))
        except FileNotFoundError:
            raise self._error(f"no {name} in {folder}; prepare it with TFDS 4 or later") from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise self._error(
                f"{path} is not in the form that TFDS writes today ({error!r}); prepare the data"
                " set again"
            ) from error

    def _records(self, folder: str, features: Mapping[str, _Feature]) -> RecordsInput:
        """The features of the records that are read."""
        options = self.options
        image = options.image or self._only(features, "image", IMAGE)
        has_labels = any(feature.kind == CLASS_LABEL for feature in features.values())
        label = options.label or self._only(features, "label", CLASS_LABEL if has_labels else TEXT)
        for name in (image, label, *options.columns):
            if name not in features:
                raise self._error(
                    f"no feature {name!r} of one value, only {shortened(sorted(features))};"
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
        """The name of the only feature of a kind, as the default of an option."""
        candidates = sorted(name for name, feature in features.items() if feature.kind == kind)
        if len(candidates) != 1:
            problem = f"several features may be the {option}" if candidates else f"no {option}"
            names = shortened(candidates or sorted(features))
            raise self._error(f"{problem}: set TfdsInput.{option} to one of {names}")
        return candidates[0]

    def _names(self, folder: str, label: str, feature: _Feature) -> str | None:
        """The file with the names of the classes, or None if classes have only numbers."""
        path = storage.join(folder, f"{feature.file}.labels.txt")
        if feature.kind != CLASS_LABEL or not storage.is_file(path):
            return None
        count = int(feature.content.get("numClasses", 0))
        names = read_names(path)
        if len(names) != count:
            raise self._error(
                f"{path} has {len(names)} names for the {count} classes of {label!r}; a name must"
                " not be empty and must not have a line break in it"
            )
        return path


def _files(info: Mapping[str, Any]) -> tuple[str, list[tuple[str, str, int]]]:
    """Parses dataset_info.json.

    Returns:
      The format of the files, and the name, the split and the number of records of each file.
    """
    files = []
    for split in info.get("splits", []):
        lengths = split.get("shardLengths", [])
        digits = max(MIN_SHARD_DIGITS, len(str(len(lengths))))
        num_shards = f"{len(lengths):0{digits}}"
        for shard, length in enumerate(lengths):
            index = f"{shard:0{digits}}"
            name = split["filepathTemplate"].format(
                DATASET=info["name"],
                SPLIT=split["name"],
                FILEFORMAT="tfrecord",
                SHARD_INDEX=index,
                NUM_SHARDS=num_shards,
                SHARD_X_OF_Y=f"{index}-of-{num_shards}",
            )
            files.append((name, split["name"], int(length)))
    return info.get("fileFormat", "tfrecord"), files


def _features(
    feature: Mapping[str, Any], path: tuple[str, ...] = (), file: tuple[str, ...] = ()
) -> dict[str, _Feature]:
    """Parses features.json, or a dict inside it.

    Args:
      feature: the dict, as features.json describes it.
      path: the names that lead to the dict; () for features.json itself.
      file: these names as they appear in the names of files.

    Returns:
      The features that have one value, by their names in a record.
    """
    features: dict[str, _Feature] = {}
    for name, inner in feature[DICT].get("features", {}).items():
        inner_path, inner_file = (*path, name), (*file, name.replace("/", "."))
        [(kind, content)] = [item for item in inner.items() if item[0] not in NOT_A_KIND]
        is_array = any(size != "1" for size in content.get("shape", {}).get("dimensions", []))
        if kind == DICT:
            features |= _features(inner, inner_path, inner_file)
        elif kind == IMAGE or not (kind in LISTS or is_array):
            kind = "" if kind == IMAGE and "label" in content else kind
            features["/".join(inner_path)] = _Feature(kind, content, "-".join(inner_file))
    return features


def _folders(path: str) -> list[str]:
    """The names of the finished folders in a folder, sorted; [] if the folder does not exist."""
    try:
        names, _ = open_tree(path).folders("")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if not name.startswith("incomplete.")]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
