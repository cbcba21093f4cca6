"""The start of multi-process runs: which launcher began this process, and which process it is.

JAX's own runtime joins the processes; this module tells it what the launcher said in environment
variables. `docs/scaling.md` has a recipe for each launcher.
"""

import dataclasses
import os
import re
import zlib

import jax
from absl import logging

from big_mm.spec import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PORT = "JAX_COORDINATOR_PORT"


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among those of the run.

    Attributes:
      launcher: its name, for messages.
      address: "host:port" at which process 0 waits for the others.
      count, index: processes of the run, and which of them this is.
      local_count, local_index: the same for the processes on this host.
    """

    launcher: str
    address: str
    count: int
    index: int
    local_count: int = 1
    local_index: int = 0

    def local_devices(self) -> list[int] | None:
        """The GPUs of this process: one each where several processes share the host, unless the
        launcher has already dealt them out; None for all.
        """
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        dealt = visible is not None and len(visible.split(",")) < self.local_count
        return None if self.local_count == 1 or dealt else [self.local_index]


def init() -> None:
    """Joins the processes of a multi-process run; does nothing in a single process.

    Call it before anything touches a device. Plain environment variables (JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES, JAX_PROCESS_ID) win over the launcher's own: SLURM's srun, Open MPI's mpirun,
    an indexed Kubernetes job (of which the manifest gives the first two variables), and Cloud TPU
    slices on virtual machines or GKE, which JAX itself knows.

    Raises:
      UserError: the variables contradict one another or are incomplete, or the processes do not
        find each other.
    """
    place = detect()
    try:
        if place is not None:
            jax.distributed.initialize(
                place.address,
                place.count,
                place.index,
                local_device_ids=place.local_devices(),
                cluster_detection_method="deactivate",
            )
        elif _on_tpu_slice():
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        where = "the TPU slice" if place is None else f"{place.count} processes at {place.address}"
        raise UserError(f"cannot join {where}: {error}") from error


def detect() -> Place | None:
    """What the environment says of the run; None for a single process, or for JAX to find out."""
    given = [name for name in (COUNT, INDEX) if name in os.environ]
    if ADDRESS in os.environ:
        place = _announced(os.environ[ADDRESS])
    elif given:
        raise UserError(f"{' and '.join(given)} without {ADDRESS}=HOST:PORT of process 0")
    else:
        place = _slurm() or _open_mpi()
    if place is None or place.count == 1:
        return None
    if not 0 <= place.index < place.count:
        raise UserError(f"{place.launcher}: process {place.index} of {place.count}, from 0")
    return place


def _announced(address: str) -> Place:
    """The address is given: the count and the index too, or they are the launcher's."""
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{ADDRESS}={address} is not HOST:PORT")
    counts = (COUNT, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    indices = (INDEX, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
    found = []
    for names in (counts, indices):
        name = next((name for name in names if name in os.environ), None)
        if name is None:
            raise UserError(f"{ADDRESS} without {names[0]} (or {', '.join(names[1:])})")
        found.append(_integer(name))
    local = _slurm_local() if "SLURM_PROCID" in os.environ else _open_mpi_local()
    return Place("environment variables", address, *found, *local)


def _slurm() -> Place | None:
    """A step of srun: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES"""
    if _integer("SLURM_NTASKS", 1) == 1:
        return None
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if nodes is None:
        logging.warning(
            "SLURM_NTASKS=%s, but srun did not start this process: it runs alone",
            os.environ["SLURM_NTASKS"],
        )
        return None
    # node7 | node7,node9 | node[007-012,15],x | node[1-2]-ib
    first = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes} names no host: set {ADDRESS}")
    job = f"{os.environ.get('SLURM_JOB_ID')}.{os.environ.get('SLURM_STEP_ID')}"
    address = f"{''.join(part or '' for part in first.groups())}:{_port(job)}"
    return Place(
        "SLURM", address, _integer("SLURM_NTASKS"), _integer("SLURM_PROCID"), *_slurm_local()
    )


def _slurm_local() -> tuple[int, int]:
    """Tasks on this node, from "4(x2),3" for nodes of 4, 4 and 3, and which of them this is."""
    tasks = [
        int(count)
        for count, times in re.findall(
            r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
        )
        for _ in range(int(times or 1))
    ]
    node = _integer("SLURM_NODEID", 0)
    return tasks[node] if node < len(tasks) else 1, _integer("SLURM_LOCALID", 0)


def _open_mpi() -> Place | None:
    count = _integer("OMPI_COMM_WORLD_SIZE", 1)
    if count == 1:
        return None
    local = _open_mpi_local()
    if local[0] != count:
        raise UserError(
            f"Open MPI does not say where rank 0 of {count} runs: start with mpirun -x {ADDRESS}="
            "HOST:PORT, the first host of its list and any free port"
        )
    job = os.environ.get("PMIX_NAMESPACE", "")
    return Place(
        "Open MPI", f"localhost:{_port(job)}", count, _integer("OMPI_COMM_WORLD_RANK"), *local
    )


def _open_mpi_local() -> tuple[int, int]:
    return _integer("OMPI_COMM_WORLD_LOCAL_SIZE", 1), _integer("OMPI_COMM_WORLD_LOCAL_RANK", 0)


def _port(job: str) -> int:
    """The same for all processes of a job, and hardly that of another one on the same host."""
    return _integer(PORT, 20_000 + zlib.crc32(job.encode()) % 10_000)


def _integer(name: str, default: int | None = None) -> int:
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdigit():
        raise UserError(f"the environment variable {name}={value} is not a number")
    return int(value)


def _on_tpu_slice() -> bool:
    """JAX sets the first variable where it finds TPU chips when it is imported; TPUs of several
    hosts, or of hosts that only the metadata server knows, need its own detection.
    """
    if os.environ.get("TPU_ML_PLATFORM") != "JAX" or "cpu" == jax.config.jax_platforms:
        return False
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
    return hosts is None or "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ
