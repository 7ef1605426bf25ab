"""An exported model's embeddings of image files keep their order, with bad files in between."""

import json
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from tests.fixtures.embedded import COLOUR_MODEL, colour_model, mean_colour, unit_vectors
from tests.fixtures.images import encode, pixels
from trainer.export.embedder import Embedder
from tripletmill.errors import UsageError
from tripletmill.formats.model_card import load_card
from tripletmill.images import BadImage, ImageSettings, canonical_jpeg

SETTINGS = ImageSettings(short_side=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return colour_model(tmp_path_factory.mktemp("embedder") / "run")


@pytest.fixture(scope="module")
def embedder(run):
    return Embedder(load_card(str(run)), batch_size=3)


def expected(image: bytes) -> np.ndarray:
    return mean_colour(pixels(canonical_jpeg(image, SETTINGS).jpeg))


def test_card(run):
    card = load_card(str(run))
    assert card == load_card(str(run / "export"))
    assert (card.fingerprint, card.dim, card.image) == (COLOUR_MODEL, 3, SETTINGS)


def test_embeddings_are_those_of_canonical_jpegs(embedder):
    """More than one batch, in several formats and modes, with bad images in between."""
    images = [encode("RGB"), b"", encode("L"), encode("RGBA"), encode("P"), b"GIF89a", encode("LA")]
    found = embedder.embed_all(images)
    for image, result in zip(images, found, strict=True):
        if len(image) < 10:
            assert isinstance(result, BadImage)
        else:
            assert result.dtype == np.float32
            np.testing.assert_allclose(result, expected(image), atol=1e-5)
    assert found[1].reason == "empty file"
    np.testing.assert_allclose(embedder.embed(images[0]), expected(images[0]), atol=1e-5)
    with pytest.raises(BadImage, match="empty file"):
        embedder.embed(b"")
    assert embedder.embed_all([]) == []


def test_many_threads_beside_faiss(embedder):
    """Both libraries have threads of their own; neither disturbs the other."""
    images = [encode("RGB", (40 + 8 * n, 64)) for n in range(8)]
    vectors = unit_vectors(2_000, 32)
    _, alone = faiss.knn(vectors[:50], vectors, 5)

    def work(image: bytes):
        return embedder.embed(image), faiss.knn(vectors[:50], vectors, 5)[1]

    with ThreadPoolExecutor(4) as pool:
        for image, (embedding, rows) in zip(images, pool.map(work, images), strict=True):
            np.testing.assert_allclose(embedding, expected(image), atol=1e-5)
            np.testing.assert_array_equal(rows, alone)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format version 2, this is version 1"),
        ({"preprocessing": 3}, "not written by tripletmill"),
    ],
)
def test_other_cards_are_refused(run, tmp_path, change, words):
    card = {**json.loads((run / "export/model_card.json").read_text()), **change}
    (tmp_path / "model_card.json").write_text(json.dumps(card))
    with pytest.raises(UsageError, match=words):
        load_card(str(tmp_path))


def test_a_model_that_does_not_load(run, tmp_path):
    (tmp_path / "model_card.json").write_bytes((run / "export/model_card.json").read_bytes())
    with pytest.raises(UsageError, match="saved_model: cannot be loaded"):
        Embedder(load_card(str(tmp_path)))
