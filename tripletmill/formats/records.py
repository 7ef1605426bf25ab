"""Reads and writes tf.train.Example and the framing of TFRecord files without TensorFlow.

Workers that write records start faster and need less memory without TensorFlow.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Self, SupportsIndex

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

_HEADER = struct.Struct("<QI")  # length of the payload, masked CRC of those eight bytes
_FOOTER = struct.Struct("<I")  # masked CRC of the payload
_LENGTH_BYTES = 8
_MAX_PAYLOAD = 2**31 - 1  # the limit of a protobuf message; a longer payload means damage
_MASK_DELTA = 0xA282EAD8

FRAMING_BYTES = _HEADER.size + _FOOTER.size
"""Bytes of a record in a file in addition to its payload."""


class DamagedRecord(Exception):  # noqa: N818
    """A record cannot be read as it was written.

    Attributes:
      offset: offset in bytes at which the record's framing starts.
      problem: one short line; all problems of one kind have the same text.
      next_offset: offset at which the next record starts; None if it is unknown.
    """

    def __init__(self, offset: int, problem: str, next_offset: int | None = None) -> None:
        super().__init__(offset, problem, next_offset)
        self.offset, self.problem, self.next_offset = offset, problem, next_offset

    def __str__(self) -> str:
        """Says the offset and the problem in one line."""
        return f"damaged record at offset {self.offset}: {self.problem}"


def encode_example(features: Mapping[str, bytes | str | SupportsIndex]) -> bytes:
    """Serializes a tf.train.Example with one value for each feature.

    Keys are sorted, so the order of `features` does not change the result.

    Args:
      features: values by key. bytes and str (as UTF-8) become a bytes_list, and an integer becomes
        an int64_list.

    Raises:
      TypeError: a value has another type.
      ValueError: an integer does not fit in 64 bits.
    """
    example = _Example()
    for key, value in features.items():
        feature = example.features.feature[key]
        if isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            feature.bytes_list.value.append(data)
        else:
            feature.int64_list.value.append(value)
    return example.SerializeToString(deterministic=True)


def decode_example(payload: bytes) -> dict[str, bytes | int]:
    """Parses what `encode_example` wrote.

    Returns:
      bytes (text as UTF-8) or int by key, with sorted keys; empty for an Example without features.

    Raises:
      ValueError: the payload is not an Example, or a feature holds floats, no value, or several
        values.
    """
    features: dict[str, bytes | int] = {}
    for key, feature in _features(payload):
        kind = feature.WhichOneof("kind")
        if kind not in ("bytes_list", "int64_list"):
            raise ValueError(f"feature {key!r} holds {kind or 'nothing'}, not bytes or an integer")
        values = getattr(feature, kind).value
        if len(values) != 1:
            raise ValueError(f"feature {key!r} holds {len(values)} values, not one")
        features[key] = values[0]
    return features


def example_features(payload: bytes) -> dict[str, list[Any]]:
    """Parses any tf.train.Example.

    Returns:
      A list of bytes, ints or floats (of 32-bit precision) by key, with sorted keys. The list of a
      feature without values is empty.

    Raises:
      ValueError: the payload is not an Example.
    """
    return {
        key: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else []
        for key, feature in _features(payload)
    }


def _features(payload: bytes) -> list[tuple[str, Any]]:
    """Parses an Example to pairs of a key and a Feature message, sorted by key."""
    try:
        return sorted(_Example.FromString(payload).features.feature.items())
    except DecodeError as error:
        raise ValueError("not a serialized tf.train.Example") from error


class RecordWriter:
    """Appends records to a buffered binary file, which the caller closes.

        with open(path, "wb") as file, RecordWriter(file) as writer:
            offset = writer.write(payload)

    Offsets count from the start of the file. If the file is not seekable, they count from the
    first record. The end of the block flushes the file, unless an exception ended the block.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = _position(file)

    def __enter__(self) -> Self:
        """Returns the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Flushes the file, which stays open."""
        if kind is None:
            self._file.flush()

    def write(self, payload: bytes) -> int:
        """Writes a record and returns the offset of its framing.

        Raises:
          ValueError: the payload has 2 GiB or more.
          OSError: the file cannot be written.
        """
        if len(payload) > _MAX_PAYLOAD:
            raise ValueError(f"a record of {len(payload)} bytes; the limit is {_MAX_PAYLOAD}")
        length = len(payload).to_bytes(_LENGTH_BYTES, "little")
        header = _HEADER.pack(len(payload), _masked_crc(length))
        record = b"".join((header, payload, _FOOTER.pack(_masked_crc(payload))))
        self._file.write(record)
        offset = self._offset
        self._offset += len(record)
        return offset


def read_record(file: BinaryIO, offset: int) -> bytes:
    """Reads the payload of the record whose framing starts at `offset` of a seekable file.

    Raises:
      DamagedRecord: there is no whole record at this offset, or one of its two checksums is wrong.
      OSError: the file cannot be read.
    """
    file.seek(offset)
    payload = _next_payload(file, offset)
    if payload is None:
        raise DamagedRecord(offset, "the file ends before it")
    return payload


def read_records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, payload) of every record from the file's position to its end.

    Offsets are those that `RecordWriter` returns. The file is read in order, and it need not be
    seekable. If DamagedRecord gives `next_offset`, the file's position is this offset, and another
    call continues there.

    Raises:
      DamagedRecord: as `read_record` does.
      OSError: the file cannot be read.
    """
    offset = _position(file)
    while (payload := _next_payload(file, offset)) is not None:
        yield offset, payload
        offset += len(payload) + FRAMING_BYTES


def _position(file: BinaryIO) -> int:
    return file.tell() if file.seekable() else 0


def _next_payload(file: BinaryIO, offset: int) -> bytes | None:
    """Reads the payload of the next record; None at the end of the file."""
    header = file.read(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise DamagedRecord(offset, "the file ends within it")
    length, length_crc = _HEADER.unpack(header)
    if length_crc != _masked_crc(header[:_LENGTH_BYTES]) or length > _MAX_PAYLOAD:
        raise DamagedRecord(offset, "the checksum of its length is wrong, or no record starts here")
    payload = file.read(length)
    footer = file.read(_FOOTER.size)
    if len(footer) < _FOOTER.size:
        raise DamagedRecord(offset, "the file ends within it")
    if _FOOTER.unpack(footer)[0] != _masked_crc(payload):
        end = offset + len(payload) + FRAMING_BYTES
        raise DamagedRecord(offset, "the checksum of its payload is wrong", end)
    return payload


def _masked_crc(data: bytes) -> int:
    """CRC-32C as TFRecord files have it.

    It is rotated and a constant is added, because the CRC of data that contains CRCs is weak.
    """
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _example_class() -> Any:
    """Builds the message class tensorflow.Example."""
    file = text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto())
    # TensorFlow registers the same names in the default pool, so this class needs another one.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


# The published field numbers and types of tensorflow.Example. Labels: 1 is optional, 3 repeated.
# Types: 2 is float, 3 is int64, 9 is string, 11 is a message, and 12 is bytes.
_EXAMPLE_PROTO = """
name: "tripletmill/example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: 3 type: 12 } }
message_type { name: "FloatList" field { name: "value" number: 1 label: 3 type: 2 } }
message_type { name: "Int64List" field { name: "value" number: 1 label: 3 type: 3 } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 label: 1 type: 11 type_name: "BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 label: 1 type: 11 type_name: "FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 label: 1 type: 11 type_name: "Int64List" oneof_index: 0 }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 label: 3 type: 11 type_name: "FeatureEntry" }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: 1 type: 9 }
    field { name: "value" number: 2 label: 1 type: 11 type_name: "Feature" }
  }
}
message_type {
  name: "Example" field { name: "features" number: 1 label: 1 type: 11 type_name: "Features" }
}
"""
_Example = _example_class()
