"""Makes the distribution strategy of a run, and asks for determinism."""

import functools
from collections.abc import Sequence

import tensorflow as tf

from trainer.distributed.cluster import cluster
from trainer.distributed.lost_workers import await_all, joining
from tripletmill.errors import UsageError, first_line

NAMES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(
    *,
    name: str = "auto",
    cpu_replicas: int = 1,
    tpu: str = "local",
    start_seconds: float = 300.0,
) -> tf.distribute.Strategy:
    """Makes a distribution strategy.

    Calls with the same arguments in one process return the same strategy. TensorFlow would mix up
    the collective operations of two strategies.

    Args:
      name: the kind of strategy.
        "one_device" uses the first GPU, or the CPU if there is no GPU.
        "mirrored" uses all GPUs of this machine, or `cpu_replicas` logical CPU devices.
        "multi_worker" uses all devices of the processes in TF_CONFIG.
        "tpu" uses all cores of a TPU.
        "auto" is "multi_worker" if TF_CONFIG has several workers, else "tpu" if there is a TPU,
        else "mirrored" if there are several devices, else "one_device".
      cpu_replicas: number of replicas on the CPU, to try out what several GPUs will do.
      tpu: "local" on a TPU VM, or the name or address of a TPU.
      start_seconds: how long to wait for other workers.

    Raises:
      UsageError: an argument is wrong, or the devices that it asks for are missing.
      WorkerLostError: other workers are missing.
    """
    if name not in NAMES:
        raise UsageError(f"make_strategy.name {name!r}: one of {', '.join(NAMES)}")
    if cpu_replicas < 1:
        raise UsageError(f"make_strategy.cpu_replicas {cpu_replicas}: 1 or more")
    if not start_seconds > 0:
        raise UsageError(f"make_strategy.start_seconds {start_seconds}: above 0")
    return _strategy(name, cpu_replicas, tpu, start_seconds)


@functools.cache
def _strategy(
    name: str, cpu_replicas: int, tpu: str, start_seconds: float
) -> tf.distribute.Strategy:
    try:
        workers = cluster()
    except UsageError:
        if name in ("auto", "multi_worker"):
            raise
        workers = None  # TF_CONFIG is for another program, and nothing here needs it
    if name == "multi_worker" and workers is None:
        raise UsageError(
            "make_strategy.name 'multi_worker': TF_CONFIG is not set in the environment; see"
            " docs/distributed.md"
        )
    number = len(workers[0]) if workers else 1
    if number > 1 and name not in ("auto", "multi_worker"):
        raise UsageError(
            f"make_strategy.name {name!r}: TF_CONFIG has {number} workers, and each of them would"
            " train alone; set make_strategy.name to 'multi_worker', or unset TF_CONFIG"
        )
    if workers is not None and (name == "multi_worker" or number > 1):
        _require_no_replicas(cpu_replicas, "in a cluster each process is a replica")
        # No TensorFlow operation may run before this, not even a listing of the devices.
        await_all(*workers, start_seconds)
        with joining(*workers, start_seconds):
            return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu" or (name == "auto" and tf.config.list_physical_devices("TPU")):
        _require_no_replicas(cpu_replicas, "there is a TPU")
        return _tpu(tpu)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        _require_no_replicas(cpu_replicas, f"there are {len(gpus)} GPUs")
    if name == "one_device":
        _require_no_replicas(cpu_replicas, "'one_device' has one replica")
    replicas = len(gpus) or cpu_replicas
    if name == "one_device" or (name == "auto" and replicas == 1):
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if gpus:
        return tf.distribute.MirroredStrategy()
    if replicas == 1:
        raise UsageError(
            "make_strategy.name 'mirrored': TensorFlow sees no GPU here (`nvidia-smi` shows whether"
            " the driver sees one); set make_strategy.cpu_replicas to try it out on the CPU"
        )
    _split_cpu(replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def make_deterministic() -> None:
    """Makes TensorFlow compute the same bits every time; to be called before it computes anything.

    TensorFlow's own switch does not cover the sum of three or more gradients of one tensor (AddN):
    the order of that sum depends on which thread is faster. If one operation runs at a time, on all
    cores, the order is fixed.

    Raises:
      UsageError: TensorFlow runs already, with more threads.
    """
    try:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        raise UsageError("train.deterministic: TensorFlow runs already in this process") from error
    tf.config.experimental.enable_op_determinism()


def devices_of(strategy: tf.distribute.Strategy) -> Sequence[str]:
    """Names of a strategy's devices in this process; empty for TensorFlow's default strategy."""
    try:
        return strategy.extended.worker_devices
    except RuntimeError:
        return ()


def _require_no_replicas(cpu_replicas: int, why: str) -> None:
    if cpu_replicas > 1:
        raise UsageError(f"make_strategy.cpu_replicas {cpu_replicas}: {why}; leave it out")


def _tpu(address: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # a look-up by name raises whatever Google's clients do
        reason = first_line(error) or type(error).__name__
        raise UsageError(f"make_strategy.tpu {address!r}: no TPU there ({reason})") from error


def _split_cpu(replicas: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    existing = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(existing) >= replicas:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
        )
    except RuntimeError as error:
        raise UsageError(
            f"make_strategy.cpu_replicas {replicas}: TensorFlow already runs with {len(existing)}"
            " CPU devices in this process"
        ) from error
