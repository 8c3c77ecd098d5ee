"""What is done to a run, what its user sees of it, and what survives.

    python -m tests.faults [NAME ...]        the table in docs/determinism.md
    python -m tests.faults.soak --seconds S  killed at random again and again, for a long time

`bench` starts and disturbs runs, `cases` are the faults of a run of one process. A module of
further cases adds its list to FAULTS.
"""

from .cases import FAULTS as OF_ONE_PROCESS

FAULTS = [*OF_ONE_PROCESS]
