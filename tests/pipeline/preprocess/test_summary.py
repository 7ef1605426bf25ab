"""What the summary of a data set warns of."""

import shutil

from pipeline.preprocess.summary import print_summary
from preprocessing.splits import SortedSplits
from tests.fixtures.folders import class_folder
from tests.fixtures.jobs import run


def test_names_that_look_alike_are_two_classes_and_said(tmp_path, capsys):
    images = class_folder(tmp_path / "images", classes=1, images=2)
    shutil.copytree(images / "class_00", images / "Class_00")
    print_summary(run(images, tmp_path / "data", splits=SortedSplits(["train"])))
    assert "differ only in case or Unicode form: Class_00, class_00" in capsys.readouterr().out
