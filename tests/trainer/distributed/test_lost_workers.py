"""How a worker ends if the other one is lost, never starts or does not join."""

import contextlib
import re
import signal
import socket
import threading
import time

import pytest
import tensorflow as tf

from tests.fixtures.cloud.processes import reserved_port
from tests.fixtures.workers import Worker, command, workers
from trainer.distributed import lost_workers
from trainer.distributed.lost_workers import await_all
from trainer.distributed.watchdog import silent

ENDLESS = ("STEPS = 100000", "train.evaluate_every = 100000")


def assert_lost(worker: Worker) -> str:
    """Checks that a worker ended with one line about a lost worker, and returns this line."""
    assert worker.code() == 1, worker.output()
    assert "Traceback" not in worker.output()
    last = worker.output().splitlines()[-1]
    assert last.startswith("error: a worker was lost: "), worker.output()
    assert "start all workers again" in last
    return last


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
    """The lost worker has joined before, and agreed with the other worker."""
    arguments = [*command(data_dir, tmp_path / "run"), f"--mode={mode}"]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    if mode == "evaluate":
        (tmp_path / "run" / "checkpoints" / "ckpt-1.index").touch()
    python, _, _, *rest = arguments
    gone = [python, "-m", "tests.fixtures.leaves", "keras.utils.set_random_seed", *rest]
    with workers(arguments, tmp_path, second=gone) as (chief, other):
        assert other.code() == 0, other.output()
        assert "worker 1 (127.0.0.1:" in assert_lost(chief)


def test_a_worker_that_never_comes(data_dir, tmp_path):
    arguments = command(data_dir, tmp_path / "run", "make_strategy.start_seconds = 14.0")
    with workers(arguments, tmp_path, started=1) as (chief,):
        chief.wait_for(r"waiting for worker 1 \(127.0.0.1:\d+\)")
        assert chief.code() == 1
    assert re.search(
        r"error: not all of 2 workers have started in 14 s; missing: worker 1 \(127", chief.output()
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
    """TensorFlow waits for this worker while it holds Python's global lock."""
    arguments = command(data_dir, tmp_path / "run", "make_strategy.start_seconds = 3.0")
    with workers(arguments, tmp_path, started=1, mute=True) as (chief,):
        assert chief.code() == 1
    [line] = chief.output().splitlines()
    assert re.match(
        r"error: not all of 2 workers have joined in 3 s; all answer \(worker 1"
        r" \(127.0.0.1:\d+\)\), but not as workers of this run; make sure that nothing else",
        line,
    )


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
    line = str(lost_workers._lost(["a:1", "b:2"], 0, failed))
    assert line.startswith("a worker was lost: another worker hangs or has ended by itself")
    assert "or this one failed (Failed to run cuBLAS routine); start all workers again" in line
