"""Two processes on this machine that train together: equal weights, one stop, lost workers."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.fixtures.cloud.processes import reserved_port
from trainer.distributed import lost_workers
from trainer.distributed.cluster import cluster
from trainer.distributed.lost_workers import await_all
from trainer.distributed.strategy import make_strategy
from trainer.distributed.watchdog import silent
from tripletmill.errors import UsageError
from tripletmill.formats.index import load_info

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests/fixtures/tiny.gin"
ENDLESS = ("STEPS = 100000", "train.evaluate_every = 100000")
# This is a bound, not the expected time, which is seconds.
DEADLINE = 600


def command(data_dir: Path, model_dir: Path, *params: str) -> list[str]:
    return [
        *(sys.executable, "-m", "trainer.main", f"--gin_file={TINY}"),
        *(f"--data_dir={data_dir}", f"--model_dir={model_dir}"),
        *(f"--gin_param={param}" for param in params),
    ]


class Worker:
    """One of the processes; its output goes to a file."""

    def __init__(self, arguments: list[str], log: Path, tf_config: str | None) -> None:
        self._log = log
        self._file = log.open("wb")
        extra = {} if tf_config is None else {"TF_CONFIG": tf_config}
        self.process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, **extra},
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern: str) -> None:
        self.wait_until(lambda: re.search(pattern, self.output()) is not None)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not happened():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def code(self) -> int:
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.output()}") from None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()


@contextlib.contextmanager
def workers(
    arguments: list[str],
    folder: Path,
    *,
    started: int = 2,
    second: list[str] | None = None,
    mute: bool = False,
) -> Iterator[list[Worker]]:
    """Yields the first of two workers, or both; all of them have ended after the block.

    `second` holds the arguments of the other worker, if they differ. If `mute` is set, the second
    worker is replaced by a server that accepts connections and is silent.
    """
    running: list[Worker] = []
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(2)]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        if mute:
            stack.enter_context(socket.create_server(("127.0.0.1", ports[1])))
        for number in range(started):
            task = {"type": "worker", "index": number}
            config = json.dumps({"cluster": {"worker": addresses}, "task": task})
            own = second if second is not None and number else arguments
            running.append(Worker(own, folder / f"{number}.log", config))
            stack.callback(running[-1].end)
        yield running


def assert_lost(worker: Worker) -> str:
    """Asserts one line of error about the lost worker, and returns what it says."""
    assert worker.code() == 1, worker.output()
    assert "Traceback" not in worker.output()
    last = worker.output().splitlines()[-1]
    assert last.startswith("error: a worker was lost: "), worker.output()
    assert "start all workers again" in last
    return last


def tags(model_dir: Path) -> set[str]:
    """The names of everything that TensorBoard shows."""
    return {
        value.tag
        for file in (model_dir / "tensorboard").glob("events*")
        for record in tf.data.TFRecordDataset(str(file))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    }


def weights(model_dir: Path) -> dict[str, np.ndarray]:
    path = tf.train.latest_checkpoint(str(model_dir / "checkpoints"))
    names = [name for name, _ in tf.train.list_variables(path) if "VARIABLE_VALUE" in name]
    return {
        name: tf.train.load_variable(path, name) for name in names if "save_counter" not in name
    }


def assert_close(model_dir: Path, expected: Path, tolerance: float) -> None:
    one, other = weights(model_dir), weights(expected)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_stopped_by_one_and_gone_on_with(data_dir, tmp_path):
    """The final weights are those of one process that was never stopped."""
    long = ("STEPS = 120", "train.evaluate_every = 60", "train.steps_per_loop = 1")
    arguments = command(data_dir, tmp_path / "run", *long)
    with workers(arguments, tmp_path) as (chief, other):
        metrics = tmp_path / "run" / "metrics.jsonl"
        chief.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0)
        other.process.send_signal(signal.SIGTERM)
        assert (chief.code(), other.code()) == (0, 0), chief.output() + other.output()
    [step] = re.findall(r"stopped after step (\d+) of 120, saved in", chief.output())
    assert "stopped after" not in other.output()  # only the chief prints this
    with workers(arguments, tmp_path) as (chief, other):
        assert (chief.code(), other.code()) == (0, 0), chief.output() + other.output()
    assert f"going on from step {step}" in chief.output()
    assert "trained model" in chief.output()
    alone = Worker(command(data_dir, tmp_path / "alone", *long), tmp_path / "alone.log", None)
    try:
        assert alone.code() == 0, alone.output()
    finally:
        alone.end()
    assert_close(tmp_path / "run", tmp_path / "alone", 5e-5)


@pytest.mark.slow
def test_the_first_workers_triplets_are_shown(data_dir, tmp_path):
    # With this setting all triplets are active, and some of them have all rows on the first worker.
    params = ("semihard_triplets.margin = 2.0", "BatchPlan.classes_per_batch = 6", "STEPS = 12")
    arguments = command(data_dir, tmp_path / "run", *params)
    with workers(arguments, tmp_path) as (chief, other):
        assert (chief.code(), other.code()) == (0, 0), chief.output() + other.output()
    shown = {"train/mined/positive", "train/mined/negative", "train/hardest_triplets"}
    assert shown <= tags(tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    ],
)
def test_a_lost_worker_ends_the_other_with_one_line(data_dir, tmp_path, number, lost):
    arguments = command(data_dir, tmp_path / "run", *ENDLESS)
    with workers(arguments, tmp_path) as both:
        both[0].wait_for(r"step \d+ of")
        both[lost].process.send_signal(number)
        line = assert_lost(both[1 - lost])
        if number == signal.SIGKILL:
            assert f"worker {lost} (127.0.0.1:" in line


@pytest.mark.slow
def test_started_again_after_one_was_killed(data_dir, tmp_path):
    model_dir = tmp_path / "run"
    arguments = command(data_dir, model_dir, "STEPS = 400", "train.evaluate_every = 200")
    with workers(arguments, tmp_path) as (chief, other):
        chief.wait_until(lambda: bool([*model_dir.glob("checkpoints/ckpt-*.index")]))
        other.process.kill()
        assert_lost(chief)
    with workers(arguments, tmp_path) as (chief, other):
        assert (chief.code(), other.code()) == (0, 0), chief.output() + other.output()
    assert "going on from step 200" in chief.output()
    assert "trained model" in chief.output()


@pytest.mark.parametrize("mode", ["train", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_a_worker_that_is_gone_before_the_first_step(data_dir, tmp_path, mode):
    """The worker has joined and has agreed with the other on what to do."""
    arguments = [*command(data_dir, tmp_path / "run"), f"--mode={mode}"]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    if mode == "evaluate":
        (tmp_path / "run" / "checkpoints" / "ckpt-1.index").touch()
    python, _, _, *rest = arguments
    gone = [python, "-m", "tests.fixtures.leaves", "keras.utils.set_random_seed", *rest]
    with workers(arguments, tmp_path, second=gone) as (chief, other):
        assert other.code() == 0, other.output()
        assert "worker 1 (127.0.0.1:" in assert_lost(chief)


def assert_refused(both: list[Worker], pattern: str) -> None:
    for worker in both:
        assert worker.code() == 2, worker.output()
        [line] = worker.output().splitlines()
        assert re.match(f"error: the workers differ in their {pattern}", line)


def test_workers_with_other_configurations(data_dir, tmp_path):
    arguments = command(data_dir, tmp_path / "run")
    second = [*arguments, "--gin_param=WarmupCosine.peak = 0.06"]
    with workers(arguments, tmp_path, second=second) as both:
        assert_refused(both, "configuration: that of worker 1 is not that of worker 0; start all")


@pytest.mark.slow
def test_workers_with_other_data(data_dir, tmp_path):
    """The folder of the data and the way it is read may differ."""
    other_data = tmp_path / "other data"
    shutil.copytree(data_dir, other_data)
    path = other_data / "dataset_info.json"
    content = path.read_text()
    fingerprint = load_info(str(data_dir)).input_fingerprint
    path.write_text(content.replace(fingerprint, fingerprint[::-1]))
    arguments = command(data_dir, tmp_path / "run")
    second = command(other_data, tmp_path / "run", "Reading.cache = True")
    with workers(arguments, tmp_path, second=second) as both:
        assert_refused(both, "data set: that of worker 1 is not that of worker 0; give all")


def test_a_worker_that_never_comes(data_dir, tmp_path):
    arguments = command(data_dir, tmp_path / "run", "make_strategy.start_seconds = 14.0")
    with workers(arguments, tmp_path, started=1) as (chief,):
        chief.wait_for(r"waiting for worker 1 \(127.0.0.1:\d+\)")
        assert chief.code() == 1
    assert re.search(
        r"error: not all of 2 workers have come in 14 s; missing: worker 1 \(127", chief.output()
    )
    assert "Traceback" not in chief.output()


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGTERM, -15, marks=pytest.mark.slow), (signal.SIGINT, 130)],
)
def test_interrupted_while_waiting(data_dir, tmp_path, number, code):
    with workers(command(data_dir, tmp_path / "run"), tmp_path, started=1) as (chief,):
        chief.wait_for(r"waiting for worker 1")
        chief.process.send_signal(number)
        assert chief.code() == code


def test_a_worker_that_is_seen_but_does_not_join(data_dir, tmp_path):
    """TensorFlow waits for the worker while it holds Python's lock."""
    arguments = command(data_dir, tmp_path / "run", "make_strategy.start_seconds = 3.0")
    with workers(arguments, tmp_path, started=1, mute=True) as (chief,):
        assert chief.code() == 1
    [line] = chief.output().splitlines()
    assert re.match(
        r"error: not all of 2 workers have joined in 3 s; all answer \(worker 1"
        r" \(127.0.0.1:\d+\)\), but not as workers of this run; see that nothing else",
        line,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"TF_CONFIG: .*\(JSONDecodeError"),
        ('{"cluster": {}}', r"KeyError: 'worker'"),
        ('{"cluster": {"worker": ["a:1"]}}', "KeyError: 'task'"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "index 1, but",
        ),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "'chief'"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "same"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "HOST:PORT"),
    ],
)
def test_wrong_clusters(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=message):
        cluster()


def test_a_cluster_and_none(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert cluster() is None
    task = {"type": "worker", "index": "1"}
    config = {"cluster": {"worker": ["a:1", "b:2"]}, "task": task}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert cluster() == (["a:1", "b:2"], 1)


@pytest.mark.parametrize("name", ["one_device", "mirrored", "tpu"])
def test_a_cluster_of_which_each_would_train_alone(monkeypatch, name):
    two = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(two))
    with pytest.raises(UsageError, match=f"'{name}': TF_CONFIG has 2 workers, .*'multi_worker'"):
        make_strategy(name=name)
    other = {"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}
    if name == "one_device":  # TF_CONFIG is of another kind and is not needed
        monkeypatch.setenv("TF_CONFIG", json.dumps(other))
        assert isinstance(make_strategy(name=name), tf.distribute.OneDeviceStrategy)
    one = {**two, "cluster": {"worker": ["a:1"]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(one))
    assert isinstance(make_strategy(name="one_device"), tf.distribute.OneDeviceStrategy)


def test_one_device_is_one(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UsageError, match="cpu_replicas 2: 'one_device' is one; leave it out"):
        make_strategy(name="one_device", cpu_replicas=2)


def test_workers_find_each_other_by_ipv6_too():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        free, coming = (stack.enter_context(reserved_port()) for _ in range(2))
        addresses = [f"[::1]:{free}", f"127.0.0.1:{other.getsockname()[1]}"]
        late = [addresses[0], f"127.0.0.1:{coming}"]
        waiting = threading.Thread(target=await_all, args=(late, 0, 20), daemon=True)
        waiting.start()
        deadline = time.monotonic() + 10
        while silent(addresses, 1) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not silent(addresses, 1)
        with socket.create_server(("127.0.0.1", coming)):
            waiting.join(20)
        assert not waiting.is_alive()


def test_errors_that_name_no_worker_keep_their_text(monkeypatch):
    monkeypatch.setattr(lost_workers.watchdog, "silent", lambda *_: [])
    failed = tf.errors.InternalError(None, None, "Failed to run cuBLAS routine\nmore")
    with (
        pytest.raises(lost_workers.WorkerLostError) as lost,
        lost_workers.joining(["a:1", "b:2"], 0, 60),
    ):
        raise failed
    line = str(lost.value)
    assert line.startswith("a worker was lost: one that stands still or has ended by itself")
    assert "or this one failed (Failed to run cuBLAS routine); start all workers again" in line
