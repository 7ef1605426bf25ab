"""Builds a data set from class folders with TensorFlow Datasets and Beam.

python -m benchmarks.preprocess.tfds_peer FOLDER OUTPUT --short_side=S --shards=N [Beam's flags]

The images are resized with canonical_jpeg. The data set has the features of tfds.ImageFolder, which
only reads and cannot build.
"""

import argparse

import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.preprocess.tfds_builder import PhotoFolder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--short_side", type=int)
    parser.add_argument("--shards", type=int)
    flags, beam_flags = parser.parse_known_args()
    builder = PhotoFolder(flags.folder, flags.short_side, data_dir=flags.output)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            beam_runner=FnApiRunner(),
            beam_options=PipelineOptions(beam_flags),
            num_shards=flags.shards,
        )
    )


if __name__ == "__main__":
    main()
