"""The files in the folder of a run: its metrics and its configuration."""

from trainer.runs.folder import RunConfig, read_training_metrics


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    assert read_training_metrics(str(tmp_path)) == []
    rows = [{"step": 3, "kind": "train"}, {"step": 3, "kind": "val"}]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 3, "kind": "train"}\n{"step": 3, "kind": "val"}\n{"step": 6, "ki')
    assert read_training_metrics(str(tmp_path)) == rows
    # Only the end of the line is missing here.
    metrics.write_text('{"step": 3, "kind": "train"}\n{"step": 3, "kind": "val"}')
    assert read_training_metrics(str(tmp_path)) == rows


def test_former_configurations_are_kept(tmp_path, capsys):
    configs = ["a.x = 1\n", "a.x = 2\n", "a.x = 2\n# A comment is no change.\n", "a.x = 3\n"]
    for text in configs:
        config = RunConfig(text)
        config.show_changes(str(tmp_path))
        config.save(str(tmp_path))
    names = ["config.1.gin", "config.2.gin", "config.gin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [(tmp_path / name).read_text() for name in names] == [configs[0], *configs[2:]]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["  -a.x = 1", "  +a.x = 2"]


def test_without_a_configuration_nothing_is_saved(tmp_path):
    RunConfig().show_changes(str(tmp_path))
    RunConfig().save(str(tmp_path))
    assert not list(tmp_path.iterdir())
