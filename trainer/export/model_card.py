"""What an exported model is: for programs (model_card.json) and for people (model_card.md)."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.evaluation.results import read_results, searched_words
from trainer.runs.folder import EVALUATION_FOLDER
from tripletmill.formats.model_card import FORMAT_VERSION

_SHOWN = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R", "r_precision": "R-precision"}


def fingerprint(
    model: keras.Model, *, central_share: float, preprocessing: Mapping[str, Any]
) -> str:
    """SHA-256, hex, over all that fixes an embedding: layers, weights, what is done to an image.

    The names of layers are no part of it: Keras counts them up in each process.
    """
    digest = hashlib.sha256()
    fixed = {
        "format": FORMAT_VERSION,
        "layers": _without_names(model),
        "central_share": central_share,
        "preprocessing": preprocessing,
    }
    digest.update(json.dumps(fixed, sort_keys=True).encode())
    for variable in model.weights:
        values = np.ascontiguousarray(variable.numpy())
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _without_names(model: keras.Model) -> Any:
    """The configuration of a model, its layers numbered in place of their names."""
    number = {model.name: "model"}

    def find(value: Any) -> None:
        if isinstance(value, Mapping):
            if "inbound_nodes" in value:
                number.setdefault(value["name"], f"layer {len(number)}")
            value = list(value.values())
        for each in value if isinstance(value, list) else []:
            find(each)

    def renamed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: renamed(each) for key, each in value.items()}
        if isinstance(value, list):
            return [renamed(each) for each in value]
        return number.get(value, value) if isinstance(value, str) else value

    config = json.loads(model.to_json())
    find(config)
    return renamed(config)


def read_metrics(model_dir: str, step: int) -> tuple[dict[str, Any], list[str]]:
    """What evaluations measured of the model of a step.

    Returns:
      The tables by name, such as "test", and paths of those that are of another step.
    """
    folder = os.path.join(model_dir, EVALUATION_FOLDER)
    found, others = {}, []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        if not name.endswith(".json"):
            continue
        table = read_results(path)
        if table is None:
            continue  # what else an evaluation writes
        if table.get("step") == step:
            table.pop("classes", None)  # as long as there are classes
            found[name.removesuffix(".json")] = table
        else:
            others.append(path)
    return found, others


def card(
    *,
    fingerprint: str,
    embedding_dim: int,
    image_size: int,
    central_share: float,
    preprocessing: Mapping[str, Any],
    data: Mapping[str, str],
    step: int,
    metrics: Mapping[str, Any],
    gin: str,
) -> dict[str, Any]:
    """What is in model_card.json."""
    return {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "embedding_dim": embedding_dim,
        "image_size": image_size,
        "central_share": central_share,
        "preprocessing": dict(preprocessing),
        "data": dict(data),
        "step": step,
        "metrics": dict(metrics),
        "purpose": (
            f"Finds images alike: of two images of the same class the embeddings ({embedding_dim}"
            " numbers of unit length) lie closer together, by cosine or Euclidean distance, than of"
            " two that are not, for classes like those of the data set that it was trained on."
        ),
        "limits": _limits(data["name"], metrics),
        "made_with": {"keras": keras.__version__, "tensorflow": tf.__version__},
        "gin": gin,
    }


def _limits(data: str, metrics: Mapping[str, Any]) -> list[str]:
    measured = [
        f"Measured: retrieval among {table['num_queries']:,} images of {table['num_classes']:,}"
        f" classes ({name}), {_protocol(table)}."
        for name, table in metrics.items()
    ]
    return [
        *(measured or ["Not measured: no evaluation of this step lies in the run's folder."]),
        f"Images unlike those of {data} were not looked at, nor was any group of people, place or"
        " camera by itself.",
        "A distance is no probability: where a threshold is wanted, choose it on images of your"
        " own.",
        "Retrieval by class says nothing about other likeness, such as of colour or style.",
    ]


def _protocol(table: Mapping[str, Any]) -> str:
    against = searched_words(table.get("gallery"), table.get("num_gallery", 0))
    group = table.get("group")
    left_out = f", but for images of its class and {group}" if group else ""
    return f"each a query against {against}{left_out}"


def markdown(card: Mapping[str, Any]) -> str:
    """model_card.json for people."""
    made = card["preprocessing"]
    background = ", ".join(map(str, made["background"]))
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
        f"| made before | JPEG of quality {made['quality']}, short side {made['short_side']},"
        f" transparency over ({background}) |",
        f"| trained on | {card['data']['name']}, fingerprint `{card['data']['fingerprint']}` |",
        f"| step | {card['step']:,} |",
        f"| fingerprint | `{card['fingerprint']}` |",
        "| made with | "
        + ", ".join(f"{name} {version}" for name, version in card["made_with"].items())
        + " |",
        "",
        "## What was measured",
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
            f"{name}: {table['num_queries']:,} images of {table['num_classes']:,} classes,"
            f" {_protocol(table)}.",
            "",
            "| | " + " | ".join(_SHOWN.values()) + " |",
            "|---|" + "---|" * len(_SHOWN),
        ]
        for what, values in table["results"].items():
            known = [values.get(key) for key in _SHOWN]
            shown = ["" if value is None else f"{value:.3f}" for value in known]
            lines.append(f"| {what} | " + " | ".join(shown) + " |")
        lines.append("")
    return lines or ["Nothing: no evaluation of this step lies in the run's folder.", ""]
