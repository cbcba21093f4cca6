"""Which process of which run this is, from what the launchers say."""

import pytest

from big_mm import distributed
from big_mm.distributed import Place, detect
from big_mm.spec import UserError

PREFIXES = ("SLURM_", "OMPI_", "PMIX_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROC", "JOB_", "TPU_")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An empty one, and a function that fills it."""
    for name in list(distributed.os.environ):
        if name.startswith((*PREFIXES, "CUDA_VISIBLE")):
            monkeypatch.delenv(name)

    def announce(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return announce


SLURM = {
    "SLURM_NTASKS": 10,
    "SLURM_PROCID": 5,
    "SLURM_LOCALID": 1,
    "SLURM_NODEID": 1,
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
    "SLURM_JOB_ID": 77,
    "SLURM_STEP_ID": 0,
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": 4,
    "OMPI_COMM_WORLD_RANK": 3,
    "OMPI_COMM_WORLD_LOCAL_SIZE": 4,
    "OMPI_COMM_WORLD_LOCAL_RANK": 3,
}


def test_a_process_alone_is_alone(environment):
    assert detect() is None
    environment(SLURM_NTASKS=1, OMPI_COMM_WORLD_SIZE=1)
    assert detect() is None


def test_plain_variables(environment):
    environment(JAX_COORDINATOR_ADDRESS="a:1", JAX_NUM_PROCESSES=2, JAX_PROCESS_ID=1)
    place = detect()
    assert (place.address, place.count, place.index) == ("a:1", 2, 1)
    assert place.local_devices() is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[007-012,15],login", "gpu007"),
        ("gpu[3,5]", "gpu3"),
        ("gpu[1-2]-ib", "gpu1-ib"),
        ("a-b.example.org", "a-b.example.org"),
    ],
)
def test_slurm_starts_at_the_first_host(environment, nodes, host):
    environment(**SLURM, SLURM_STEP_NODELIST=nodes)
    place = detect()
    assert place.address.split(":")[0] == host
    assert 1024 < int(place.address.split(":")[1]) < 32_768, "below the ephemeral ports"
    assert (place.count, place.index, place.local_count, place.local_index) == (10, 5, 4, 1)


def test_jobs_get_their_own_ports_and_a_port_can_be_chosen(environment):
    environment(**SLURM, SLURM_STEP_NODELIST="a")
    first = detect().address
    assert detect().address == first
    environment(SLURM_JOB_ID=78)
    assert detect().address != first
    environment(JAX_COORDINATOR_PORT=999)
    assert detect().address == "a:999"


def test_a_batch_script_without_srun_runs_alone_and_says_so(environment, caplog):
    environment(SLURM_NTASKS=8, SLURM_PROCID=0)
    assert detect() is None
    assert "srun did not start this process" in caplog.text


def test_open_mpi_on_one_host_needs_nothing_and_on_several_an_address(environment):
    environment(**OPEN_MPI, PMIX_NAMESPACE="12")
    place = detect()
    assert place.address.startswith("localhost:") and (place.count, place.index) == (4, 3)
    environment(OMPI_COMM_WORLD_LOCAL_SIZE=2)
    with pytest.raises(UserError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        detect()
    environment(JAX_COORDINATOR_ADDRESS="b:5")
    place = detect()
    assert (place.address, place.count, place.index, place.local_count) == ("b:5", 4, 3, 2)


def test_an_indexed_job_has_its_index_and_the_rest_from_the_manifest(environment):
    environment(JOB_COMPLETION_INDEX=2)
    assert detect() is None, "independent pods have an index too"
    environment(JAX_COORDINATOR_ADDRESS="job-0.job:1234", JAX_NUM_PROCESSES=4)
    assert (detect().count, detect().index) == (4, 2)


def test_a_process_takes_one_gpu_where_several_share_a_host(environment):
    shared = Place("SLURM", "a:1", 8, 5, local_count=4, local_index=1)
    alone = Place("SLURM", "a:1", 8, 5)
    assert shared.local_devices() == [1] and alone.local_devices() is None
    environment(CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert shared.local_devices() == [1]
    environment(CUDA_VISIBLE_DEVICES="2")
    assert shared.local_devices() is None, "srun --gpus-per-task has dealt them out"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": 2}, "JAX_NUM_PROCESSES without JAX_COORDINATOR_ADDRESS"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "without JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": "a", "JAX_NUM_PROCESSES": 2}, "=a is not HOST:PORT"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": 2, "JAX_PROCESS_ID": 2},
            "process 2 of 2",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": 0},
            "JAX_NUM_PROCESSES=two is not a number",
        ),
    ],
)
def test_what_is_incomplete_or_wrong_is_an_error(environment, variables, message):
    environment(**variables)
    with pytest.raises(UserError, match=message):
        detect()
