"""The command line as a user has it; each run is a process."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.fixtures.datasets import make_data_set, small_data_set
from tests.fixtures.folders import class_folder
from tests.fixtures.forked import run as fork
from tests.fixtures.project import ROOT
from tests.fixtures.workers import TINY
from tests.fixtures.workers import saved_variables as weights
from trainer.evaluation.results import worse
from trainer.runs.checkpoints import Checkpoints
from tripletmill.formats.index import load_index
from tripletmill.storage.storage import exclusive

# The first batch violates this margin, and one step at this rate leaves the range of float32.
DIVERGES = ("semihard_triplets.margin = 2.0", "WarmupCosine.peak = 1e38")


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "trainer.main", *map(str, arguments)]


def run(*arguments, check=True, forked=True) -> subprocess.CompletedProcess:
    """Runs the command.

    If forked, Python and TensorFlow do not start and end anew.
    """
    done = (fork if forked else python)(command(*arguments)[1:], os.environ)
    assert not check or done.returncode == 0, done.stderr
    return done


def failure(*arguments) -> str:
    """Runs the command, which has to fail with one line of a user's error; returns this line."""
    return error_line(run(*arguments, check=False))


def error_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def patched(patch: str) -> str:
    """A script that runs the command line after a patch, which takes its own arguments first."""
    start = "from tripletmill.cli import notices; notices.import_tensorflow()"
    end = "from trainer import main; sys.exit(main.main())"
    return f"import os, resource, signal, sys; {start}\n{patch}\n{end}"


def run_script(patch: str, *arguments) -> subprocess.CompletedProcess:
    return fork(["-c", patched(patch), *map(str, arguments)], os.environ)


def rows_of(model_dir) -> list[dict]:
    """The numbers of metrics.jsonl, without a line that a kill cut short."""
    path = model_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def python(arguments: list[str], env: dict[str, str] | None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def arguments(data_dir, model_dir, *params) -> list[str]:
    flags = [f"--gin_file={TINY}", f"--data_dir={data_dir}", f"--model_dir={model_dir}"]
    return flags + [f"--gin_param={param}" for param in params]


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("run") / "unbroken"
    return model_dir, run(*arguments(data_dir, model_dir), forked=False)


def test_a_run_writes_what_it_says(trained):
    model_dir, done = trained
    for name in ("checkpoints", "config.gin", "evaluation", "metrics.jsonl", "tensorboard"):
        assert (model_dir / name).exists()
    rows = rows_of(model_dir)
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["kind"] == "val"] == [3, 6]
    for row in rows:
        if row["kind"] == "train":
            assert row["loss"] >= 0
            assert 0 <= row["active"] <= 1
            assert row["positive_distance"] > 0
    table = json.loads((model_dir / "evaluation/test.json").read_text())
    assert table["num_classes"] == 3
    assert table["num_queries"] == 18
    assert set(table["results"]) == {
        "raw pixels",
        "backbone before training",
        "model before training",
        "trained model",
    }
    with Image.open(model_dir / "evaluation/test-neighbours.png") as sheet:
        assert sheet.width > 500
    assert "wrote" in done.stdout
    assert (model_dir / "config.gin").read_text().count("include") == 0


def test_what_a_run_prints(trained):
    """In a log there are plain lines, and no line of TensorFlow."""
    _, done = trained
    lines = done.stderr.splitlines()
    assert lines[0] == "devices: OneDeviceStrategy, 1 replica (CPU)"
    assert re.fullmatch(r"data: 36 images of 6 classes in .*data", lines[1])
    assert lines[2] == "batch: 4 classes x 2 images = 8, 8 a replica"
    assert re.fullmatch(r"model: [\d,]+ parameters, [\d,]+ trained", lines[3])
    assert lines[4] == "steps: 6, 6.0 passes over the classes"
    # The progress of an evaluation is printed only where it takes ten seconds.
    usual = r"step \d of 6  loss|step [36]  val: |.*: \d+ of \d+ (images|queries)$"
    assert all(re.match(usual, line) for line in lines[5:])
    assert "\r" not in done.stderr
    assert re.search(r"trained model( +[01]\.\d{3}){7}\n", done.stdout)


def test_the_same_command_again_has_nothing_to_train(data_dir, trained, tmp_path):
    model_dir = shutil.copytree(trained[0], tmp_path / "run")
    before = weights(model_dir)
    done = run(*arguments(data_dir, model_dir))
    assert "step 6 is reached already: nothing to train" in done.stderr
    assert "another configuration" not in done.stdout
    assert done.stdout.splitlines()[:-3] == trained[1].stdout.splitlines()[:-3]
    for name, value in weights(model_dir).items():
        np.testing.assert_array_equal(value, before[name])


def start(*arguments) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), cwd=ROOT, **pipes)


def wait_for_step(model_dir: Path, step: int) -> None:
    metrics = model_dir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if metrics.exists() and f'{{"step": {step}, ' in metrics.read_text():
            return
        time.sleep(0.005)
    raise TimeoutError


def assert_equal_runs(model_dir: Path, expected: Path) -> None:
    """Compares weights, optimizer, random state, the best model, and all records."""
    one, other = weights(model_dir), weights(expected)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    table = "evaluation/test.json"
    assert (model_dir / table).read_text() == (expected / table).read_text()
    assert numbers(model_dir) == numbers(expected)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_interrupted_and_resumed_equals_unbroken(data_dir, trained, tmp_path, number):
    model_dir = tmp_path / "a run"
    process = start(*arguments(data_dir, model_dir))
    wait_for_step(model_dir, 1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    found = re.search(r"stopped after step (\d) of 6, saved in .*; to go on: (.*)\n", stderr)
    step = int(found.group(1))
    assert 1 <= step < 6
    python, *flags = shlex.split(found.group(2))
    assert [python, *flags[:2]] == ["python", "-m", "trainer.main"]
    resumed = run(*flags[2:])
    assert "another configuration" not in resumed.stdout
    assert f"going on from step {step}" in resumed.stderr
    assert_equal_runs(model_dir, trained[0])


@pytest.mark.slow
def test_interrupted_together_with_what_reads_its_log(data_dir, tmp_path):
    """Ctrl+C goes to every process of `python ... 2>&1 | tee log`."""
    process = subprocess.Popen(
        command(*arguments(data_dir, tmp_path / "run", "STEPS = 500")),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for_step(tmp_path / "run", 1)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert Checkpoints.exist(str(tmp_path / "run"))


# The command line sends itself a signal, its first argument, when shards are
# to be staged.
SIGNALLED_AT_START = """
from trainer.data import reading
number = int(sys.argv.pop(1))
reading.Reading.bring = lambda self, index: os.kill(os.getpid(), number)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_the_first_step_a_signal_ends_at_once(data_dir, tmp_path, number, code):
    flags = arguments(data_dir, tmp_path / "run")
    done = run_script(SIGNALLED_AT_START, int(number), *flags)
    assert done.returncode == code, done.stderr
    assert "finishing the steps" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken(data_dir, tmp_path):
    """The run cannot save; it resumes from the last evaluation, with its class centres."""
    params = ["STEPS = 30", "train.evaluate_every = 5", "BatchPlan.hard_share = 0.5"]
    run(*arguments(data_dir, tmp_path / "unbroken", *params))
    killed = tmp_path / "killed"
    process = start(*arguments(data_dir, killed, *params))
    wait_for_step(killed, 12)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    resumed = run(*arguments(data_dir, killed, *params))
    assert re.search(r"going on from step (10|15|20|25)\n", resumed.stderr)
    assert_equal_runs(killed, tmp_path / "unbroken")
    table = weights(killed)["centres/.ATTRIBUTES/VARIABLE_VALUE"]
    assert table.shape == (6, 8)
    assert table.any(axis=1).all()


@pytest.mark.slow
def test_killed_at_ten_random_moments_equals_unbroken(data_dir, tmp_path):
    """The run starts, trains, evaluates, or writes a checkpoint when it is killed."""
    params = ["STEPS = 120", "train.evaluate_every = 2", "BatchPlan.hard_share = 0.5"]
    run(*arguments(data_dir, tmp_path / "unbroken", *params))
    killed, rng = tmp_path / "killed", np.random.default_rng()
    for attempt in range(10):
        reached = max((row["step"] for row in numbers(killed)), default=0)
        if reached == 120:  # the machine is fast
            break
        process = start(*arguments(data_dir, killed, *params))
        if attempt % 2:  # farther than any attempt before
            wait_for_step(killed, max(3, reached + 1))
        time.sleep(rng.uniform(0, 1 if attempt % 2 else 14))  # the first step comes after about 7 s
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 0)
    again = run(*arguments(data_dir, killed, *params)).stderr
    assert re.search(r"going on from step|is reached already", again)
    assert_equal_runs(killed, tmp_path / "unbroken")


def numbers(model_dir) -> list[dict]:
    """The numbers of metrics.jsonl without the speed."""
    speeds = ("images_per_second", "input_share")
    return [{k: v for k, v in row.items() if k not in speeds} for row in rows_of(model_dir)]


def test_weights_after_training_do_not_depend_on_the_number_of_replicas(
    data_dir, trained, tmp_path
):
    done = run(*arguments(data_dir, tmp_path / "run", "make_strategy.cpu_replicas = 2"))
    assert "devices: MirroredStrategy, 2 replicas (CPU)" in done.stderr
    assert "= 8, 4 a replica" in done.stderr
    one, two = weights(trained[0]), weights(tmp_path / "run")
    moved = [n for n in one if n.startswith("model/") and one[n].dtype == np.float32]
    assert moved
    for name in moved:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_hard_loss_and_evaluate_mode(data_dir, tmp_path):
    params = ["train.triplets = @hard_triplets", "hard_triplets.soft = True", "STEPS = 3"]
    run(*arguments(data_dir, tmp_path / "run", *params))
    done = run(
        "--mode=evaluate",
        f"--model_dir={tmp_path / 'run'}",
        "--gin_param=evaluate.split = 'val'",
        "--gin_param=evaluate.num_queries = 2",
    )
    assert done.stdout.startswith("\nval: 18 images of 3 classes")
    assert (tmp_path / "run/evaluation/val-neighbours.png").is_file()


def damage(data_dir: Path, folder: Path, *numbers: int, split="train") -> tuple[Path, list[str]]:
    """A copy of the data set with some damaged records of a split, and their source ids."""
    copy = shutil.copytree(data_dir, folder / "damaged")
    index = load_index(str(copy), split)
    for row in numbers:
        with open(index.shards[index.shard[row]], "r+b") as file:
            file.seek(int(index.offset[row]) + 40)
            file.write(b"\xff\x00\xff")
    sources = index.column("source_id").to_pylist()
    return copy, [sources[row] for row in numbers]


def test_a_damaged_record_stops_training_and_is_named(data_dir, tmp_path):
    copy, [source] = damage(data_dir, tmp_path, 1)
    line = failure(*arguments(copy, tmp_path / "run", "STEPS = 30"))
    assert re.search(rf"record of {source} in \S+train\S+ at offset \d+ is damaged", line)
    assert "Reading.damaged = 'replace'" in line


@pytest.mark.slow
def test_damaged_records_are_replaced_named_and_counted(data_dir, tmp_path):
    copy, sources = damage(data_dir, tmp_path, 1, 20)
    params = ["STEPS = 30", "train.evaluate_every = 10", "Reading.damaged = 'replace'"]
    done = run(*arguments(copy, tmp_path / "run", *params))
    listed = [
        json.loads(line) for line in (tmp_path / "run/damaged.jsonl").read_text().splitlines()
    ]
    assert sorted(row["source_id"] for row in listed) == sorted(sources)
    assert done.stderr.count("another image of its class takes its place") == 2
    rows = rows_of(tmp_path / "run")
    # Each of the six images of a class comes once in three visits of two images.
    assert sum(row.get("damaged", 0) for row in rows) == pytest.approx(2 * 30 * 4 / 6 / 3, abs=2)


def test_damaged_records_in_an_evaluation(data_dir, trained, tmp_path):
    copy, _ = damage(data_dir, tmp_path, 0, split="test")
    model_dir = shutil.copytree(trained[0], tmp_path / "run")
    flags = ("--mode=evaluate", f"--data_dir={copy}", f"--model_dir={model_dir}")
    assert "is damaged" in failure(*flags)
    done = run(*flags, "--gin_param=Reading.damaged = 'replace'")
    assert "1 images with damaged records are left out" in done.stdout
    assert json.loads((model_dir / "evaluation/test.json").read_text())["num_damaged"] == 1


@pytest.mark.slow
def test_waiting_for_input_is_shown(data_dir, tmp_path):
    """The time is not shown when TensorFlow must be deterministic: it has no clock then."""
    params = ("train.steps_per_loop = 3", "train.deterministic = False")
    flags = arguments(data_dir, tmp_path / "run", *params)
    done = subprocess.run(command(*flags), cwd=ROOT, capture_output=True, text=True, check=True)
    rows = rows_of(tmp_path / "run")
    shares = [row["input_share"] for row in rows if row["kind"] == "train"]
    assert len(shares) == 2
    assert all(0 < share < 1 for share in shares)
    assert re.search(r"images/s  input \d+%  ", done.stderr)


def test_another_configuration_is_pointed_out(data_dir, trained, tmp_path):
    model_dir = shutil.copytree(trained[0], tmp_path / "run")
    done = run(*arguments(data_dir, model_dir, "semihard_triplets.margin = 0.3"))
    assert "from another configuration" in done.stdout
    assert "-semihard_triplets.margin = 0.2" in done.stdout
    assert "+semihard_triplets.margin = 0.3" in done.stdout
    former = model_dir / "config.1.gin"
    assert f"kept as {former}" in done.stdout
    assert former.read_text() == (trained[0] / "config.gin").read_text()


@pytest.mark.slow
def test_early_stopping_keeps_to_the_best_step(data_dir, tmp_path):
    """Nothing changes, so the first evaluation is the best; the resumed run has ended."""
    still = ("SGD.learning_rate = 0.0", "head/SGD.learning_rate = 0.0", "STEPS = 10")
    flags = (*still, "train.evaluate_every = 1", "train.patience = 2", "WarmupCosine.peak = 0.0")
    message = "no higher MAP@R on val for 2 evaluations: ended after step 3 of 10; the best is of"
    done = run(*arguments(data_dir, tmp_path / "run", *flags))
    assert f"{message} step 1" in done.stderr
    assert "model of step 1" in done.stdout
    again = run(*arguments(data_dir, tmp_path / "run", *flags))
    assert f"{message} step 1" in again.stderr
    assert max(row["step"] for row in numbers(tmp_path / "run")) == 3


@pytest.mark.slow
def test_the_last_model_is_kept_where_val_is_not_to_choose(data_dir, trained, tmp_path):
    """Nothing changes, so val would choose the first; an existing best model stays."""
    still = ("SGD.learning_rate = 0.0", "head/SGD.learning_rate = 0.0", "WarmupCosine.peak = 0.0")
    flags = (*still, "train.keep_best = False")
    done = run(*arguments(data_dir, tmp_path / "run", *flags))
    assert "best so far" not in done.stderr
    assert len(re.findall("step [36]  val: ", done.stderr)) == 2
    assert "model of step 6" in done.stdout
    assert not (tmp_path / "run/checkpoints/best").exists()
    model_dir = shutil.copytree(trained[0], tmp_path / "best")
    done = run(*arguments(data_dir, model_dir, "STEPS = 7", "train.keep_best = False"))
    (step,) = (int(path.stem[5:]) for path in (model_dir / "checkpoints/best").glob("*.index"))
    assert f"the model of step {step}, the best on val before" in done.stderr
    assert f"model of step {step}" in done.stdout


def test_training_that_made_it_worse_is_pointed_out():
    before = {"raw pixels": 0.3, "backbone before training": 0.59}
    assert worse("test", {**before, "trained model": 0.59}) is None
    warning = worse("test", {**before, "trained model": 0.49})
    assert "MAP@R 0.490 on test, backbone before training 0.590;" in warning


def test_a_run_begins_with_the_best_model_of_another(data_dir, trained, tmp_path):
    still = ("SGD.learning_rate = 0.0", "head/SGD.learning_rate = 0.0", "STEPS = 3", "SEED = 5")
    flags = (*still, f"train.init_from = '{trained[0]}'", "train.average_decay = None")
    run(*arguments(data_dir, tmp_path / "run", *flags))
    path = tf.train.latest_checkpoint(str(trained[0] / "checkpoints/best"))
    found = weights(tmp_path / "run")
    of_model = [name for name in found if name.startswith("model/")]
    assert of_model
    for name in of_model:
        np.testing.assert_array_equal(found[name], tf.train.load_variable(path, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gin_param": "train.init_from = 'nowhere'"}, "train.init_from nowhere: no checkpoint"),
        ({"gin_param": "train.microbatches = 3"}, "1 replicas x 3 microbatches; make BatchPlan"),
        ({"gin_param": "SGD.clipnorm = 1.0"}, "clipnorm does not work across replicas; set"),
        ({"gin_param": "train.patience = 0"}, "train.patience 0: 1 or more"),
        ({"gin_param": ["train.patience = 2", "train.keep_best = False"]}, "set train.keep_best"),
        ({"gin_file": None}, "--gin_file is missing and there is no"),
        ({"gin_param": "train.triplets = @hard_triplets()"}, "an @reference, without ()"),
        ({"gin_param": "train.augmentation = @Augmentation"}, "@Augmentation()"),
        (
            {"gin_param": "semihard_triplets.margin = -1.0"},
            "margin -1.0: must be a number, 0 or more",
        ),
        ({"gin_param": "SGD.momentum = 5.0"}, "train.make_optimizer: "),
        ({"gin_param": "SGD.momentun = 0.5"}, "SGD has no parameter 'momentun'"),
        ({"gin_param": "train.make_optimizer = @AdamW()"}, "an @reference, without ()"),
        ({"gin_param": "train.crop_size = 0"}, "train.crop_size 0: 1 or more"),
        ({"gin_param": "train.crop_size = 32"}, "weights depend on the size of its images, 16"),
        ({"gin_param": "make_strategy.cpu_replicas = 16"}, "by 16 replicas x 1 microbatches; make"),
        ({"gin_param": "train.reading = @Reading"}, "train.reading: @Reading()"),
        ({"gin_param": "Reading.damaged = 'skip'"}, "Reading.damaged 'skip': 'stop' or"),
        ({"gin_param": "train.make_plan = @build_model"}, "train.make_plan"),
        ({"gin_param": "BatchPlan.class_weighting = 'log'"}, "one of uniform, sqrt, size"),
        ({"gin_param": "CENTRAL_SHARE = 0.0"}, "central_share 0.0: above 0"),
        ({"gin_param": "SEED = -1"}, "train.seed -1"),
        ({"gin_param": "train.keep = 1"}, "train.keep 1: 2 or more"),
        ({"gin_param": "make_strategy.cpu_replicas = 0"}, "cpu_replicas 0: 1 or more"),
        ({"gin_param": "build_model.image_size = -4"}, "image_size is -4"),
        # Mistakes that concern only the evaluation at the end are errors before the first step.
        ({"gin_param": "evaluate.split = 'nope'"}, "no split 'nope'"),
        ({"gin_param": "evaluate.gallery = 'nope'"}, "no split 'nope'"),
        ({"gin_param": "evaluate.group = 'x_nope'"}, "no column 'x_nope'"),
        ({"gin_param": "evaluate.num_queries = 0"}, "evaluate.num_queries 0: 1 or more"),
        ({"model_dir": "gs://bucket/run"}, "only local paths"),
        ({"model_dir": "README.md"}, "README.md"),
        ({"gin_file": "nowhere.gin"}, "--gin_file nowhere.gin: no such file"),
        ({"gin_param": "trian.steps = 3"}, "trian"),
        ({"gin_param": "train.stepps = 3"}, "stepps"),
        ({"gin_param": "train.steps = "}, "gin: "),
        ({"gin_param": "train.steps = 0"}, "train.steps 0: 1 or more"),
        ({"gin_param": "train.triplets = %gin.REQUIRED"}, "triplets"),
        ({"gin_param": "train.triplets = @build_model"}, "train.triplets: build_model()"),
        ({"gin_param": "build_model.backbone = 'small_con'"}, "small_conv"),
        ({"gin_param": "BatchPlan.classes_per_batch = 7"}, "only 6 classes"),
        ({"gin_param": "make_strategy.cpu_replicas = 3"}, "multiple of 3, or BatchPlan.images_per"),
        ({"gin_param": "make_strategy.name = 'mirrored'"}, "TensorFlow sees no GPU here"),
        ({"gin_param": "make_strategy.name = 'tpu'"}, "tpu 'local': no TPU there (TPUs not found"),
        ({"gin_param": "make_strategy.name = 'tpus'"}, "one of auto, one_device, mirrored"),
        ({"gin_param": "semihard_triplets.distance_metric = 'L1'"}, "one of L2, squared-L2"),
        ({"gin_param": "SGD.learning_rate = float('nan')"}, "gin"),
        ({"data_dir": "nowhere"}, "data_dir nowhere: no such folder"),
        ({"data_dir": "docs"}, "not finished, no dataset_info.json in it"),
        ({"mode": "evaluate"}, "no checkpoint to evaluate"),
        ({"mode": "evalute"}, "evalute"),
        ({"modle_dir": "x"}, "model_dir"),
    ],
)
def test_errors_of_use_are_one_line(data_dir, tmp_path, changes, message):
    flags = {"gin_file": TINY, "data_dir": data_dir, "model_dir": tmp_path / "run", **changes}
    given = [
        f"--{name}={each}"
        for name, value in flags.items()
        for each in (value if isinstance(value, list) else [value])
        if each
    ]
    line = failure(*given)
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        ("build_model.embedding_dim = 8", "build_model.embedding_dim = 9", "the model of"),
        ("train.make_optimizer = @SGD", "train.make_optimizer = @AdamW", "the optimizer (train."),
        ("train.average_decay = 0.5", "train.average_decay = None", "(train.average_decay) of"),
    ],
)
def test_checkpoint_of_another_configuration(data_dir, trained, tmp_path, before, now, names):
    """The error names what does not fit and shows the difference; nothing is changed."""
    model_dir = shutil.copytree(trained[0], tmp_path / "run")
    done = run(*arguments(data_dir, model_dir, now), check=False)
    line = error_line(done)
    assert f"does not fit {names}" in line or ("does not fit the average" in line and names in line)
    assert f"-{before}\n" in done.stdout
    assert f"+{now}\n" in done.stdout
    np.testing.assert_equal(weights(model_dir), weights(trained[0]))
    assert (model_dir / "config.gin").read_text() == (trained[0] / "config.gin").read_text()
    assert not (model_dir / "config.1.gin").exists()


def test_a_run_that_does_not_begin_with_another_model(data_dir, trained, tmp_path):
    params = (f"train.init_from = '{trained[0]}'", "build_model.embedding_dim = 9")
    line = failure(*arguments(data_dir, tmp_path / "run", *params))
    assert line.startswith(f"error: train.init_from {trained[0]}: checkpoint {trained[0]}")
    assert "does not fit the model" in line
    assert "--model_dir" not in line


@pytest.mark.slow
def test_another_data_set(data_dir, trained, tmp_path):
    """A run does not continue with it, and an evaluation on it replaces nothing."""
    model_dir = shutil.copytree(trained[0], tmp_path / "run")
    other = small_data_set(tmp_path, classes=16)
    line = failure(*arguments(other, model_dir, "STEPS = 9"))
    assert "was trained on another data set" in line
    run("--mode=evaluate", f"--model_dir={model_dir}", f"--data_dir={other}")
    table = "evaluation/test.json"
    assert (model_dir / table).read_text() == (trained[0] / table).read_text()
    assert (model_dir / "evaluation/data-test.json").is_file()
    # A copy of the data set in another folder is accepted.
    moved = shutil.copytree(data_dir, tmp_path / "moved")
    assert "nothing to train" in run(*arguments(moved, model_dir)).stderr


@pytest.mark.slow
def test_no_val_and_no_test_split(tmp_path):
    class_folder(tmp_path / "images", classes=6)
    data_dir = make_data_set(tmp_path)
    assert "no split 'test', only train" in failure(*arguments(data_dir, tmp_path / "run"))
    done = run(*arguments(data_dir, tmp_path / "run", "evaluate.split = 'train'"))
    assert "no val split with two images of a class: the last model is kept" in done.stderr


def test_two_trainers_of_one_run(data_dir, trained, tmp_path):
    model_dir = shutil.copytree(trained[0], tmp_path / "run")
    with exclusive(str(model_dir / ".lock"), "this test"):
        line = failure(*arguments(data_dir, model_dir, "STEPS = 7"))
    assert (model_dir / "config.gin").read_text() == (trained[0] / "config.gin").read_text()
    assert "another process is writing there" in line


@pytest.mark.parametrize("steps_per_loop", [1, 3])
def test_diverged_run_stops_and_names_the_step(data_dir, tmp_path, steps_per_loop):
    loop = f"train.steps_per_loop = {steps_per_loop}"
    line = failure(*arguments(data_dir, tmp_path / "run", *DIVERGES, loop))
    why = "no embedding is finite: the weights have diverged"
    assert f"error: the loss is not finite in step 2 ({why})" in line


@pytest.mark.slow
def test_smaller_crops_train_what_larger_images_show(data_dir, tmp_path):
    """Val uses the model's own size, with the weights that the crops trained."""
    params = (
        "build_model.backbone = 'efficientnet_lite0'",
        "build_model.image_size = 64",
        "train.crop_size = 32",
        "train.make_head_optimizer = None",
        "build_model.embedding_dim = None",
        "STEPS = 3",
        "evaluate.split = 'val'",
    )
    done = run(*arguments(data_dir, tmp_path / "run", *params))
    (row,) = (row for row in rows_of(tmp_path / "run") if row["kind"] == "val")
    results = json.loads((tmp_path / "run/evaluation/val.json").read_text())["results"]
    assert row["map_at_r"] == pytest.approx(results["trained model"]["map_at_r"], abs=1e-6)
    assert row["map_at_r"] != pytest.approx(results["model before training"]["map_at_r"], abs=1e-6)
    assert "step 3 of 3" in done.stderr


@pytest.fixture(scope="module")
def without_val(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("without_val")
    class_folder(folder / "images", classes=6)
    return make_data_set(folder)


# The images are so large that TensorFlow's threads matter, and one tensor gets gradients from three
# uses.
GRADIENTS = """
import keras, numpy as np, tensorflow as tf
from trainer.models.embedding_model import build_model
from trainer.distributed.strategy import make_deterministic
make_deterministic()
keras.utils.set_random_seed(0)
model = build_model(backbone="small_conv", image_size=48, embedding_dim=64)
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (256, 48, 48, 3), np.uint8)
weights = tf.constant(rng.normal(size=(256, 64)), tf.float32)
def gradients():
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True) * weights)
    return tape.gradient(loss, [v.value for v in model.trainable_variables])
gradients = tf.function(gradients, autograph=False)
first = [value.numpy() for value in gradients()]
for _ in range(8):
    for value, before in zip(gradients(), first, strict=True):
        np.testing.assert_array_equal(value, before)
make_deterministic()  # again: nothing to do
"""


def test_the_same_bits_where_they_are_asked_for():
    done = fork(["-c", GRADIENTS], os.environ)
    assert done.returncode == 0, done.stderr


def test_too_late_for_the_same_bits():
    script = "import tensorflow as tf; tf.constant(0)\n" + GRADIENTS
    done = fork(["-c", script], os.environ)
    assert "UsageError: train.deterministic: TensorFlow runs already" in done.stderr


# The command line asks itself to stop once it has done as many steps as the first argument says.
STOPPED = """
from trainer.training import telemetry
record, last = telemetry.Telemetry.training, int(sys.argv.pop(1))
def training(self, step, *rest):
    record(self, step, *rest)
    if step == last:
        os.kill(os.getpid(), signal.SIGTERM)
telemetry.Telemetry.training = training
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_weights_that_have_diverged_are_not_saved(without_val, tmp_path, stopped):
    """Without val nothing looks at embeddings between the last update and the checkpoint."""
    every = f"train.evaluate_every = {6 if stopped else 1}"
    split = "evaluate.split = 'train'"
    flags = arguments(without_val, tmp_path / "run", *DIVERGES, every, split)
    line = error_line(run_script(STOPPED, 1 if stopped else 0, *flags))
    assert "after step 1 (the model has diverged); what was saved before is kept" in line
    assert "lower the learning rate" in line
    assert not list((tmp_path / "run").rglob("ckpt-*"))


# Before step 4 is recorded, files get a size limit, the first argument. Larger files cannot be
# written, as on a full disk.
FULL = """
from trainer.training import telemetry
record, limit = telemetry.Telemetry.training, int(sys.argv.pop(1))
def training(self, step, *rest):
    if step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    record(self, step, *rest)
telemetry.Telemetry.training = training
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "file"), [(1_000, "metrics.jsonl"), (4_000, "tensorboard")])
def test_full_disk(data_dir, trained, tmp_path, limit, file):
    """The file that is written most often is named, too; then the same command goes on."""
    flags = arguments(data_dir, tmp_path / "run")
    # If the run was forked, its output would go to a file that also has the limit.
    line = error_line(python(["-c", patched(FULL), str(limit), *flags], os.environ))
    assert line.startswith(f"error: {tmp_path / 'run' / file} could not be written (")
    assert "what was saved before is kept; make room" in line
    assert "going on from step 3\n" in run(*flags).stderr
    assert_equal_runs(tmp_path / "run", trained[0])


# The size of files is limited before results are written.
FULL_AT_THE_END = """
from trainer.evaluation import results
write = results.Results.write
def limited(self, path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
    write(self, path)
results.Results.write = limited
"""


@pytest.mark.slow
def test_full_disk_in_the_evaluation_at_the_end(trained):
    flags = ("--mode=evaluate", f"--model_dir={trained[0]}")
    line = error_line(python(["-c", patched(FULL_AT_THE_END), *flags], None))
    table = trained[0] / "evaluation/test.json"
    assert line.startswith(f"error: {table} could not be written (File too large); ")


STOPPED_EVALUATION = """
from trainer.evaluation import evaluate
embed, number = evaluate.embed, int(sys.argv.pop(1))
def stopped(*rest):
    os.kill(os.getpid(), number)
    return embed(*rest)
evaluate.embed = stopped
"""


# The command line sends itself a signal, the first argument, in the first evaluation on val after
# the step that is the second argument.
SIGNALLED_IN_VAL = """
from trainer.runs import checkpoints
from trainer.training import outer_loop
number, first = int(sys.argv.pop(1)), int(sys.argv.pop(1))
measure, save, saved = outer_loop.measure, checkpoints.Checkpoints.save, [0]
def measured(*args, **options):
    if saved[0] >= first:
        os.kill(os.getpid(), number)
    return measure(*args, **options)
def noted(self, step, **options):
    saved[0] = step
    save(self, step, **options)
outer_loop.measure, checkpoints.Checkpoints.save = measured, noted
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["last step", "val, asked to stop", "val, killed"])
def test_stopped_at_the_last_step_or_in_val(data_dir, trained, tmp_path, moment):
    model_dir = tmp_path / "a run"
    own = arguments(data_dir, model_dir)
    if moment == "last step":
        done = run_script(STOPPED, 6, *own)
    else:
        number = signal.SIGTERM if "asked" in moment else signal.SIGKILL
        done = run_script(SIGNALLED_IN_VAL, int(number), 6, *own)
    assert not (model_dir / "evaluation/test.json").exists()
    assert (model_dir / "checkpoints/ckpt-6.index").exists()
    if moment == "val, killed":
        assert done.returncode == -signal.SIGKILL
        again = own
    else:
        assert done.returncode == 0, done.stderr
        line = done.stderr.splitlines()[-1]
        said, again = line.split("; to go on: ")
        assert said == f"stopped after step 6 of 6, saved in {model_dir}"
        again = shlex.split(again)[3:]
    run(*again)
    assert_equal_runs(model_dir, trained[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_evaluation_at_the_end(data_dir, trained, tmp_path, number):
    model_dir = shutil.copytree(trained[0], tmp_path / "a run")
    table = model_dir / "evaluation/test.json"
    table.unlink()
    done = run_script(STOPPED_EVALUATION, int(number), *arguments(data_dir, model_dir))
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    what, _, again = line.partition(": ")
    assert what == "stopped before the evaluation had ended; to do it again"
    assert not table.exists()
    run(*shlex.split(again)[3:])
    assert table.read_text() == (trained[0] / "evaluation/test.json").read_text()
