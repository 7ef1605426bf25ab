"""Compiles HLO for a TPU v5e with libtpu on the CPU.

Runs in an environment with jax and without TensorFlow. Prints a Compiled as JSON.

python -m tools.tpu_check.compile HLO_FILE
"""

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The compiler's two messages for too little memory. The second one counts only temporaries.
_REFUSED = (
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
)
_CAPACITY = 15.75 * 2**30  # bytes, as these messages say


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's answer.

    Attributes:
      seconds: the time of the compilation.
      memory: bytes in use at once: arguments, temporaries, results that do not share an argument's
        memory, and code. If the compiler refused the step for its memory, this is the need that
        the message states.
      fits: whether the step was compiled and the chip has enough memory for it.
      error: any other failure, in one line; empty if there was none.
    """

    seconds: float
    memory: float = 0.0
    fits: bool = False
    error: str = ""


def compile_hlo(hlo: bytes) -> Compiled:
    """Compiles a serialized HLO module for one v5e chip."""
    # With these, libtpu asks no metadata server, looks for no chip, and allows a second libtpu.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        JAX_PLATFORMS="cpu",
    )
    from jax.experimental import topologies

    chip = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:1x1x1", chips_per_host_bounds=(1, 1, 1)
    ).devices[0]
    start = time.monotonic()
    try:
        stats = _compile(hlo, chip).get_compiled_memory_stats()
    except Exception as error:  # its class depends on the version of jax
        seconds, message = time.monotonic() - start, str(error)
        if (memory := needed(message)) is not None:
            return Compiled(seconds, memory)
        return Compiled(seconds, error=" ".join(message.split())[:300] or type(error).__name__)
    memory = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    return Compiled(time.monotonic() - start, memory, fits=memory <= _CAPACITY)


def needed(message: str) -> float | None:
    """Returns the bytes that a step needs, from the compiler's error message.

    Returns None if the message is not about memory.
    """
    for pattern in _REFUSED:
        if match := pattern.search(message):
            return float(match[1]) * _UNITS[match[2]]
    return None


def _compile(hlo: bytes, chip: Any) -> Any:
    # jax has no public function that compiles HLO of another framework.
    import numpy as np
    from jax._src.interpreters import mlir
    from jaxlib import _jax, xla_client
    from jaxlib.mlir import ir

    text = _jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(hlo))
    module = ir.Module.parse(text, mlir.make_ir_context())
    # XLA's importer adds copy operations that its exporter does not know. They have no effect, so
    # they are removed.
    copies = [op for op in _operations(module.operation) if op.name == "mhlo.copy"]
    for copy in copies:
        copy.results[0].replace_all_uses_with(copy.operands[0])
        copy.erase()
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[chip.id]]))
    return chip.client.compile(module, xla_client.DeviceList((chip,)), options)


def _operations(operation: Any) -> Iterator[Any]:
    """Yields all operations inside an operation, at any depth."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from _operations(inner.operation)


def main() -> None:
    compiled = compile_hlo(Path(sys.argv[1]).read_bytes())
    print(json.dumps(dataclasses.asdict(compiled)))


if __name__ == "__main__":
    main()
