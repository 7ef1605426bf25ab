"""Which devices a run uses."""

import functools

import tensorflow as tf

from preprocessing.errors import UsageError

NAMES = ("auto", "one_device", "mirrored")


def make_strategy(*, name: str = "auto", cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """A distribution strategy, one a process for the same arguments.

    TensorFlow would take the collective operations of two for each other's.

    Args:
      name: "one_device": the first GPU, else the CPU; "mirrored": all GPUs of this machine, or
        `cpu_replicas` logical CPU devices; "auto": "mirrored" where there are several of either.
      cpu_replicas: replicas on the CPU, for trying out what several GPUs will do.
    """
    if name not in NAMES:
        raise UsageError(f"make_strategy.name {name!r}: one of {', '.join(NAMES)}")
    if cpu_replicas < 1:
        raise UsageError(f"make_strategy.cpu_replicas {cpu_replicas}: 1 or more")
    return _strategy(name, cpu_replicas)


@functools.cache
def _strategy(name: str, cpu_replicas: int) -> tf.distribute.Strategy:
    gpus = tf.config.list_physical_devices("GPU")
    replicas = len(gpus) or cpu_replicas
    if name == "one_device" or (name == "auto" and replicas == 1):
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if gpus:
        return tf.distribute.MirroredStrategy()
    _split_cpu(replicas)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def _split_cpu(replicas: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    have = tf.config.get_logical_device_configuration(cpu) or [None]
    if len(have) >= replicas:
        return
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
        )
    except RuntimeError as error:
        raise UsageError(
            f"make_strategy.cpu_replicas {replicas}: TensorFlow runs with {len(have)} already"
        ) from error
