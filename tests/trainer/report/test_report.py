"""The real command on a small data set: what the page says and shows, and what it can lack."""

import base64
import contextlib
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import jobs
from tests.fixtures.retrieval import oracle
from tests.fixtures.written import edit_rows
from tests.trainer.report import conftest as planted
from tests.trainer.report.test_findings import nearest, plain_near_duplicates, plain_wrong_labels
from trainer.pictures.source_images import RecordPictures
from trainer.report.__main__ import main
from trainer.report.report import write_report
from tripletmill.formats.index import index_file, load_index, load_info

CUTOFFS = [1, 2, 4, 8]
METRICS = [*(f"recall_at_{k}" for k in CUTOFFS), "map_at_r", "r_precision", "mean_reciprocal_rank"]


class Page(HTMLParser):
    """The page's elements with attributes, its table cells, and the articles of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.cells: dict[tuple[str, str], str] = {}
        self.articles: dict[str, list[dict]] = {}
        self._cell = self._section = None
        self._within: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self._within.append(tag)
        if "data-metric" in attributes:
            self._cell = attributes["data-of"], attributes["data-metric"]
            self.cells[self._cell] = ""
        if tag == "h2":
            self._section = ""
        if tag == "article":
            self.articles.setdefault(self._section, []).append(
                {"h3": "", "p": "", "img": [], "figures": []}
            )
        if tag == "figure":
            self.articles[self._section][-1]["figures"].append([attributes["class"], "", ""])
        if tag == "img":
            self.articles[self._section][-1]["img"].append(attributes)

    def handle_endtag(self, tag):
        while self._within and self._within.pop() != tag:
            pass
        if tag == "td":
            self._cell = None

    def handle_data(self, data):
        if self._within and self._within[-1] in ("b", "figcaption") and "figure" in self._within:
            place = 1 if self._within[-1] == "b" else 2
            self.articles[self._section][-1]["figures"][-1][place] += data
        if self._cell:
            self.cells[self._cell] += data
        if self._within and self._within[-1] == "h2":
            self._section += data
        if self._within and self._within[-1] in ("h3", "p") and "article" in self._within:
            self.articles[self._section][-1][self._within[-1]] += data


@pytest.fixture(scope="module")
def page(reported) -> Page:
    return Page(reported.html)


def test_the_page_needs_no_other_file(reported, page):
    sources = [
        value for _, of in page.tags for name, value in of.items() if name in ("src", "href")
    ]
    assert any(value.startswith("data:image/jpeg;base64,") for value in sources)
    assert all(value.startswith(("data:", "#")) for value in sources)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"url\(|@import|https?:", reported.html)


def test_links_within_the_page_lead_somewhere(page):
    ids = {of["id"] for _, of in page.tags if "id" in of}
    links = {of["href"][1:] for _, of in page.tags if of.get("href", "").startswith("#")}
    assert links
    assert links <= ids


def test_names_are_text(page, reported):
    """No element and no attribute comes from the name of a class or of a file."""
    assert not [of for _, of in page.tags if "onerror" in of]
    assert not [tag for tag, of in page.tags if tag == "img" and of["src"] == "x"]
    titles = [each["h3"] for articles in page.articles.values() for each in articles]
    assert any(planted.MARKUP_CLASS in title for title in titles)
    shown = [of.get("alt") for tag, of in page.tags if tag == "img"]
    assert any(planted.MARKUP_IMAGE in alt for alt in shown)


def test_metrics_are_those_of_the_embeddings(page, reported):
    of = reported.embeddings
    here = of.split == "test"
    values = oracle.metrics(of.embedding[here], of.label[here].tolist(), CUTOFFS)
    expected = np.mean([*values.values()], axis=0)
    for name, value in zip(METRICS, expected, strict=True):
        shown, *interval = re.findall(r"\d\.\d{3}", page.cells["trained model", name])
        assert shown == f"{value:.3f}"
        low, high = map(float, interval)
        assert low - 0.001 <= value <= high + 0.001


def test_others_are_those_of_the_evaluation(page, reported):
    assert page.cells["raw pixels", "recall_at_1"].split() == ["0.125", "0.111–0.222"]
    assert page.cells["raw pixels", "map_at_r"] == "0.062"
    assert page.cells["raw pixels", "r_precision"] == "–"
    assert page.cells["raw pixels", "recall_at_8"] == "–"
    # The evaluation is of another model, which its figure shows.
    assert "MAP@R 0.312 of the trained model" in reported.html


def test_the_planted_wrong_label_is_first_but_for_the_copy(page, reported):
    of = reported.embeddings
    expected = plain_wrong_labels(of.embedding, of.label, nearest(of.embedding, 10)[0])
    assert f"{len(expected):,} of {len(of)} images sit amid another class" in reported.html
    articles = page.articles["Likely wrong labels"]
    assert len(articles) == len(expected)
    firsts = [article["p"] for article in articles[:2]]
    assert any(planted.WRONG in text for text in firsts)
    assert any(planted.COPY in text for text in firsts)
    [article] = [each for each in articles if planted.WRONG in each["p"]]
    assert article["h3"] == "labelled class_02, sits in class_06"
    row = of.source_id.tolist().index(planted.WRONG)
    _, votes, score = expected[row]
    assert f"score {score:.3f}; {votes} of its 10 nearest are class_06" in article["p"]


def test_the_planted_near_duplicate_is_found(page, reported):
    of = reported.embeddings
    pictures = RecordPictures(str(reported.data))
    names = list(zip(of.source_id, of.split, strict=True))

    def alike(i, j):
        both = [Image.open(io.BytesIO(pictures.of(*names[row]))) for row in (i, j)]
        small = [np.asarray(each.resize((16, 16), Image.BOX), float) for each in both]
        return np.corrcoef([(each - each.mean((0, 1))).ravel() for each in small])[0, 1]

    count = len(plain_near_duplicates(of.embedding, of.label, of.split, 10, alike))
    assert f"that correlate by .99): {count}." in " ".join(reported.html.split())
    articles = page.articles["Near-duplicates across classes and splits"]
    assert len(articles) == count
    both = (planted.COPY, planted.COPIED)
    [article] = [each for each in articles if all(name in each["p"] for name in both)]
    assert "two classes and two splits" in article["p"]
    assert len(article["img"]) == 2


def test_matches_are_marked(page):
    """Matches have their own frame and sign beside each query; both kinds occur."""
    marks = set()
    for section in ("Likely wrong labels", "Queries drawn at random"):
        for article in page.articles[section]:
            query, *others = article["figures"]
            assert query[:2] == ["", ""]
            assert query[2] in article["h3"]
            for frame, sign, caption in others:
                match = caption == query[2]
                assert (frame, sign) == (("match", "✓") if match else ("miss", "✗"))
                marks.add(match)
    assert marks == {True, False}


def test_pictures_are_those_of_the_images(page, reported):
    [article] = [
        each for each in page.articles["Likely wrong labels"] if planted.WRONG in each["p"]
    ]
    picture = article["img"][0]
    assert planted.WRONG in picture["alt"]
    data = base64.b64decode(picture["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as shown:
        assert max(shown.size) == 96
        found = np.asarray(shown, float).mean((0, 1))
    images = reported.data.parent / "images"
    with Image.open(images / planted.WRONG) as image:
        expected = np.asarray(image, float).mean((0, 1))
    np.testing.assert_allclose(found, expected, atol=6)


def test_what_is_left_out_is_counted(reported, tmp_path):
    """One entry of each list, to another file; the command gives the same page again."""
    again = tmp_path / "new/again.html"
    command = reported.command("--listed=1", f"--output={again}")
    done = jobs.command(*command, module="trainer.report")
    assert done.returncode == 0, done.stderr
    whole, cut = Page(reported.html), Page(again.read_text(encoding="utf-8"))
    for section in ("Likely wrong labels", "Near-duplicates across classes and splits"):
        total = len(whole.articles[section])
        assert len(cut.articles[section]) == 1
        left = f"The first 1 are shown, {total - 1} are left out."
        assert (left in again.read_text(encoding="utf-8")) == (total > 1)
    assert whole.cells == cut.cells
    assert "wrote" in done.stdout


def test_it_says_what_it_found(reported):
    assert re.search(r"(?m)\d+ sit amid another class; .* splits: \d+$", reported.printed)
    assert f"wrote {reported.path}" in reported.printed


def refused(*arguments: str) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as error:
        assert main(arguments) == 2
    [line] = error.getvalue().splitlines()
    return line


def test_mistakes_are_one_line(reported, tmp_path):
    nowhere = tmp_path / "nowhere"
    line = refused(f"--model_dir={nowhere}", f"--data_dir={reported.data}")
    assert line == f"error: model_dir {nowhere}: no such folder"
    line = refused(*reported.command(f"--embeddings={nowhere}"))
    assert "no such folder; make them with `python -m pipeline.embed`" in line
    line = refused(*reported.command("--split=nothing"))
    assert line.endswith(
        "none of split 'nothing', only of test, train, val; choose one with --split"
    )


def test_embeddings_of_another_model_are_refused(reported, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reported.run, run)
    card = run / "export/model_card.json"
    card.write_text(card.read_text().replace("1" * 64, "3" * 64))
    line = refused(f"--model_dir={run}", f"--data_dir={reported.data}")
    assert "of another model" in line
    assert (run / "report.html").read_text() == reported.html  # the page is unchanged


def test_embeddings_of_another_data_set_are_refused(reported, data_dir):
    line = refused(f"--model_dir={reported.run}", f"--data_dir={data_dir}")
    assert "not of the data set" in line


def test_embeddings_of_other_labels_are_refused(reported, tmp_path):
    """The images are the same, but were preprocessed with other classes."""
    data = tmp_path / "data"
    shutil.copytree(reported.data, data)

    def relabel(rows):
        for row in rows:
            row["label"] += 1

    edit_rows(data / index_file(load_info(str(data)).name, "val"), relabel)
    line = refused(f"--model_dir={reported.run}", f"--data_dir={data}")
    assert "not of the data set" in line


def test_an_evaluation_by_other_rules_is_not_beside_it(reported, tmp_path, capsys):
    run = shutil.copytree(reported.run, tmp_path / "run")
    [path] = (run / "evaluation").glob("*.json")
    path.write_text(json.dumps({**planted.EVALUATION, "group": "x_visit"}))
    write_report(model_dir=str(run), data_dir=str(reported.data))
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "images of a query's x_visit were left out" in " ".join(html.split())
    assert {name for name, _ in Page(html).cells} == {"trained model"}
    assert "of the trained model: it is of another step" not in html


def test_damaged_pictures_are_counted(reported, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(reported.data, data)
    info = load_info(str(data))
    for split in info.num_shards:
        index = load_index(str(data), split)
        for shard in {*index.shards}:
            with open(shard, "r+b") as file:
                for at in index.offset[np.array(index.shards, object)[index.shard] == shard]:
                    file.seek(int(at) + 30)
                    file.write(b"\0\0\0\0")
    output = tmp_path / "damaged.html"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        write_report(model_dir=str(reported.run), data_dir=str(data), output=str(output))
    assert "pictures are missing or damaged" in printed.getvalue()
    assert "no picture" in output.read_text(encoding="utf-8")
