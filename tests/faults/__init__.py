"""What is done to a run, what its user sees of it, and what survives.

    python -m tests.faults [NAME ...]        the table in docs/determinism.md
    python -m tests.faults.soak --seconds S  killed at random again and again, for a long time

`bench` starts and disturbs runs; `cases` are the faults of a run of one process, `peers` those of a
run of two.
"""

from .cases import FAULTS as OF_ONE_PROCESS
from .peers import FAULTS as OF_TWO_PROCESSES

FAULTS = [*OF_ONE_PROCESS, *OF_TWO_PROCESSES]
