"""What a model card says about the measured results."""

import pytest

from trainer.export.model_card import make_card, markdown

TABLE = {
    "num_classes": 3,
    "num_queries": 1800,
    "num_gallery": 2000,
    "results": {"raw pixels": {"recall_at_1": None, "map_at_r": 0.25}},
}


def card_of(table):
    facts = {"embedding_dim": 4, "image_size": 8, "central_share": 1.0, "fingerprint": "f"}
    facts["preprocessing"] = {"quality": 90, "short_side": 8, "background": [0, 0, 0]}
    facts |= {"data": {"name": "birds", "fingerprint": "g"}, "step": 7, "metrics": {"a": table}}
    return make_card(facts, gin="")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, "each a query against all others."),
        ({"gallery": None, "group": None}, "each a query against all others."),
        ({"gallery": "gallery"}, "each a query against the 2,000 of gallery."),
        (
            {"gallery": "shop", "group": "visit"},
            "each a query against the 2,000 of shop, without the images of its class and visit.",
        ),
    ],
)
def test_what_queries_were_held_against(how, words):
    made = card_of({**TABLE, **how})
    assert made["limits"][0] == f"Measured: retrieval among 1,800 images of 3 classes (a), {words}"
    assert f"a: 1,800 images of 3 classes, {words}" in markdown(made).splitlines()


def test_what_was_not_measured_is_left_empty():
    assert "| raw pixels |  | 0.250 |  |" in markdown(card_of(TABLE)).splitlines()
