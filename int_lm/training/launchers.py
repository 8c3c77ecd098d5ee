"""Reads the environment variables by which launchers describe the processes they started.

JAX finds the other processes by itself if `srun`, or `mpirun` of Open MPI 4, started them. Inside
an allocation of a cluster the same variables may be set although no launcher started the command.
It would then wait for processes that nobody starts.
"""

from collections.abc import Mapping
from typing import NamedTuple

from int_lm.errors import UserError

ALONE = "--distributed.coordinator none"
# Launchers that JAX does not know: (name, variable with the number of processes, variable with
# the index of this process).
OTHERS = (
    ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # of Open MPI 5
    ("mpiexec", "PMI_SIZE", "PMI_RANK"),  # MPICH, Intel MPI, Cray PALS; also on PBS
    ("torchrun", "WORLD_SIZE", "RANK"),
)


class Launched(NamedTuple):
    """The processes of a run; this process is one of them.

    Attributes:
      processes: their number.
      process: the index of this process, as text.
      where: the place at which they meet, for messages.
    """

    processes: int
    process: str
    where: str


def launched(environment: Mapping[str, str]) -> Launched | None:
    """The processes that a launcher started, if JAX can find them; None if this one is alone.

    Launchers are looked at in JAX's order: `mpirun` of Open MPI 4 also where SLURM gave the nodes.

    Raises:
      UserError: the variables speak of several processes, and JAX cannot find the others.
    """
    if "OMPI_MCA_orte_hnp_uri" in environment and _count(environment, OTHERS[0][1]) > 1:
        count, process = _count(environment, OTHERS[0][1]), environment.get(OTHERS[0][2], "?")
        return Launched(count, process, "the machine that mpirun runs on")
    tasks = _count(environment, "SLURM_NTASKS")
    if tasks > 1:
        needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
        step = _count(environment, "SLURM_STEP_NUM_TASKS", tasks)
        if step < tasks or not all(name in environment for name in needed):
            raise UserError(
                f"this is a SLURM job of {tasks} tasks (SLURM_NTASKS), but srun did not start "
                f"this process, so that it would wait for {tasks - 1} others: start all of them "
                f"with srun, or train in this process alone with {ALONE}"
            )
        nodes = environment["SLURM_STEP_NODELIST"]
        return Launched(tasks, environment["SLURM_PROCID"], f"the first of the nodes {nodes}")
    for launcher, size, rank in OTHERS:
        count = _count(environment, size)
        if count > 1 and rank in environment:
            raise UserError(
                f"{launcher} started {count} processes ({size}), and does not say where they can "
                "meet: add --distributed.coordinator HOST:PORT, with the host of process 0 and a "
                f"free port, --distributed.processes {count} and --distributed.process_id "
                f"${rank}, or train in one process with {ALONE}"
            )
    return None


def _count(environment: Mapping[str, str], name: str, otherwise: int = 1) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else otherwise
