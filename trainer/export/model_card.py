"""Describes an exported model: model_card.json for programs, model_card.md for people."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.evaluation.results import COLUMNS, read_results, searched_words
from trainer.runs.folder import EVALUATION_FOLDER
from tripletmill.formats.model_card import FORMAT_VERSION

_NOT_EVALUATED = "the run's folder has no evaluation of this step."
_SHOWN = ("recall_at_1", "map_at_r", "r_precision")  # Of COLUMNS.


def fingerprint(
    model: keras.Model, *, central_share: float, preprocessing: Mapping[str, Any]
) -> str:
    """SHA-256, in hex, of all that decides an embedding: layers, weights, and image processing.

    The names of layers are left out, since Keras numbers them anew in each process.

    Args:
      model: a built model.
      central_share: side of the central square of an image, as a share of its short side.
      preprocessing: short side, JPEG quality and background of the images.
    """
    digest = hashlib.sha256()
    settings = {
        "format": FORMAT_VERSION,
        "layers": _without_names(model),
        "central_share": central_share,
        "preprocessing": preprocessing,
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for variable in model.weights:
        values = np.ascontiguousarray(variable.numpy())
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _without_names(model: keras.Model) -> Any:
    """The configuration of a model, with numbers in place of the names of its layers."""
    numbered = {model.name: "model"}

    def find(value: Any) -> None:
        if isinstance(value, Mapping):
            if "inbound_nodes" in value:
                numbered.setdefault(value["name"], f"layer {len(numbered)}")
            value = list(value.values())
        for each in value if isinstance(value, list) else []:
            find(each)

    def renamed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: renamed(each) for key, each in value.items()}
        if isinstance(value, list):
            return [renamed(each) for each in value]
        return numbered.get(value, value) if isinstance(value, str) else value

    config = json.loads(model.to_json())
    find(config)
    return renamed(config)


def read_metrics(model_dir: str, step: int) -> tuple[dict[str, Any], list[str]]:
    """Reads the results of all evaluations of a run.

    Args:
      model_dir: folder of the run.
      step: step of the model that is exported.

    Returns:
      The results of this step by the name of the evaluation, such as "test"; the paths of results
      of other steps.
    """
    tables, outdated = {}, []
    for path in sorted(Path(model_dir, EVALUATION_FOLDER).glob("*.json")):
        table = read_results(str(path))
        if table is None:
            continue  # Another JSON file.
        if table["step"] == step:
            table.pop("classes", None)  # One entry for each class: too long for a card.
            tables[path.stem] = table
        else:
            outdated.append(str(path))
    return tables, outdated


def make_card(facts: Mapping[str, Any], *, gin: str) -> dict[str, Any]:
    """The content of model_card.json.

    Args:
      facts: `fingerprint` of the model, see `fingerprint`;
        `embedding_dim`, the length of an embedding;
        `image_size`, the side of the model's square input, in pixels;
        `central_share`, the side of the central square of an image that is used, as a share of its
        short side;
        `preprocessing`, the short side, JPEG quality and background of the images;
        `data`, the name and fingerprint of the data set that the model was trained on;
        `step` of the model;
        `metrics`, the results of evaluations, see `read_metrics`.
      gin: configuration of the run, as text.
    """
    return {
        "format": FORMAT_VERSION,
        **facts,
        "purpose": (
            "Finds similar images. The model gives each image an embedding of unit length, with"
            f" {facts['embedding_dim']} numbers. By cosine or Euclidean distance, two images of one"
            " class have embeddings closer together than two images of different classes, if the"
            " classes are like those of the data set that the model was trained on."
        ),
        "limits": [
            *(
                f"Measured: retrieval among {_searched(table, f' ({name})')}"
                for name, table in facts["metrics"].items()
            ),
            *([] if facts["metrics"] else [f"Not measured: {_NOT_EVALUATED}"]),
            f"The model was not tested on images unlike those of {facts['data']['name']}, nor on"
            " any group of people, place or camera separately.",
            "A distance is no probability: if you need a threshold, choose it on your own images.",
            "Retrieval by class says nothing about other kinds of similarity, such as colour or"
            " style.",
        ],
        "made_with": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "gin": gin,
    }


def _searched(table: Mapping[str, Any], name: str = "") -> str:
    """Says which images are queries, and which are ranked for each query."""
    searched = searched_words(table.get("gallery"), table.get("num_gallery", 0))
    group = table.get("group")
    left_out = f", without the images of its class and {group}" if group else ""
    return (
        f"{table['num_queries']:,} images of {table['num_classes']:,} classes{name}, each a query"
        f" against {searched}{left_out}."
    )


def markdown(card: Mapping[str, Any]) -> str:
    """The content of model_card.md.

    Args:
      card: result of `make_card`.
    """
    preprocessing = card["preprocessing"]
    background = ", ".join(map(str, preprocessing["background"]))
    lines = [
        f"# Image embeddings, trained on {card['data']['name']}",
        "",
        card["purpose"],
        "",
        "| | |",
        "|---|---|",
        f"| embedding | {card['embedding_dim']} float32 numbers, unit length |",
        f"| image | {card['image_size']} x {card['image_size']} RGB, the central square"
        f" ({card['central_share']:g} of the short side) |",
        f"| preprocessing | JPEG of quality {preprocessing['quality']}, short side"
        f" {preprocessing['short_side']}, transparent pixels over ({background}) |",
        f"| trained on | {card['data']['name']}, fingerprint `{card['data']['fingerprint']}` |",
        f"| step | {card['step']:,} |",
        f"| fingerprint | `{card['fingerprint']}` |",
        "| made with | "
        + ", ".join(f"{name} {version}" for name, version in card["made_with"].items())
        + " |",
        "",
        "## Results",
        "",
        *_tables(card["metrics"]),
        "## Limits",
        "",
        *(f"- {line}" for line in card["limits"]),
        "",
        "## Configuration",
        "",
        "```",
        card["gin"].strip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _tables(metrics: Mapping[str, Any]) -> Sequence[str]:
    lines = []
    for name, table in metrics.items():
        lines += [
            f"{name}: {_searched(table)}",
            "",
            "| | " + " | ".join(COLUMNS[key] for key in _SHOWN) + " |",
            "|---|" + "---|" * len(_SHOWN),
        ]
        for model, means in table["results"].items():
            values = [means.get(key) for key in _SHOWN]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            lines.append(f"| {model} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines or [f"None: {_NOT_EVALUATED}", ""]
