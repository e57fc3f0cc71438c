import pytest

from training.common.errors import UserError
from training.common.slurm import first_host, slurm_variables, tasks_of_nodes

# What `srun --nodes=2 --ntasks-per-node=8` sets for the last task, in a job of three nodes.
TASK = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "24",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "15",
    "SLURM_LOCALID": "7",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
}


def test_a_task_of_srun_is_a_rank_and_knows_where_rank_0_is() -> None:
    found = slurm_variables(TASK)
    port = found.pop("MASTER_PORT")
    assert found == {
        "RANK": "15", "LOCAL_RANK": "7", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu08",
    }  # fmt: skip
    assert 1024 < int(port) < 32768
    of_another_task = TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    assert slurm_variables(of_another_task)["MASTER_PORT"] == port
    for other in ({"SLURM_JOB_ID": "1234568"}, {"SLURM_STEP_ID": "1"}):
        assert slurm_variables(TASK | other)["MASTER_PORT"] != port


def test_an_address_that_is_set_is_kept() -> None:
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    without = {name: value for name, value in TASK.items() if "NODELIST" not in name and "JOB" not in name}
    assert slurm_variables(without | given).items() >= given.items()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "no Slurm"),
        ({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, "the shell of a batch script"),
        (TASK | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, "one task"),
    ],
)
def test_where_there_are_no_ranks_nothing_is_set(environment: dict[str, str], reason: str) -> None:
    assert slurm_variables(environment) == {}, reason


@pytest.mark.parametrize("missing", ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "NODELIST"])
def test_what_cannot_be_derived_is_one_line(missing: str) -> None:
    environment = {name: value for name, value in TASK.items() if missing not in name}
    with pytest.raises(UserError, match=rf"srun: \w*{missing} is not set.*set MASTER_ADDR and MASTER_PORT"):
        slurm_variables(environment)


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("login1", "login1"),
        ("a,b,c", "a"),
        ("node[01-03,7]", "node01"),
        ("node[7,01-03],gpu-a", "node7"),
        ("gpu-a,node[01-03]", "gpu-a"),
        ("rack[1-2]node[003-4]-ib,x", "rack1node003-ib"),
        ("n[10].example.org", "n10.example.org"),
    ],
)
def test_the_first_host_of_a_list(node_list: str, first: str) -> None:
    """The expected names are those of `scontrol show hostnames`."""
    assert first_host(node_list) == first


def test_the_tasks_of_each_node() -> None:
    assert tasks_of_nodes("8") == [8]
    assert tasks_of_nodes("8(x2),4") == [8, 8, 4]
    assert tasks_of_nodes("2,1(x3)") == [2, 1, 1, 1]
