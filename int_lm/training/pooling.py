"""What the log of a run says of its pool: how far network, cache and tables are trusted."""

from typing import Any

import numpy as np

from int_lm.method import pool
from int_lm.method.state import Tables
from int_lm.model import context_tables
from int_lm.settings import ModelSettings
from int_lm.training.runlog import Console

UNTAUGHT = (
    "no text was read yet that is held back from network and tables, one document in "
    f"{1 << context_tables.HELD_BITS} of those with {context_tables.HELD_LENGTH + 1} tokens or "
    "more, so that the pool trusts all of them alike; give it more documents, or divide them "
    "(--data.document_bytes)"
)


def row(model: ModelSettings, tables: Tables, console: Console) -> dict[str, Any]:
    """The entry `trust` of a row of metrics; warns where trust has learnt nothing.

    It has factors of logits, from 0 to 4, of what `pool.by_name` names; those of a table are of
    rows whose count has 0, 1, 2, ... bits.

    Args:
      model: of the run.
      tables: of the state.
      console: of the run.
    """
    trust_N = np.asarray(tables.trust)
    if (trust_N == trust_N[0]).all():  # as before the first step
        console.warn(UNTAUGHT)
    found = pool.by_name(model, trust_N)
    return {"trust": {name: (part / pool.WHOLE).round(4).tolist() for name, part in found.items()}}
