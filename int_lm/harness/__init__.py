"""Tasks of lm-evaluation-harness (the package `lm_eval`) for a run or an export.

    python -m int_lm.harness --export DIR --tasks NAME --include_path DIR

`adapter` registers the model `int_lm` with `lm_eval` when it is imported; `lanes` reads many texts
side by side, with NumPy or with JAX; `likelihoods` and `writing` say what is read.
docs/evaluation.md has what is counted. `lm_eval` is imported only by `adapter` and by the command
after its arguments, so that `--help` answers at once and a missing package gets one sentence.
"""

import importlib
from types import ModuleType

from int_lm.errors import UserError


def load_adapter() -> ModuleType:
    """The module `int_lm.harness.adapter`; importing it registers the model `int_lm`.

    Raises:
      UserError: the package `lm_eval` is not installed.
    """
    try:
        return importlib.import_module("int_lm.harness.adapter")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0].startswith("int_lm"):
            raise
        raise UserError(
            f"the harness needs the package lm_eval ({error.name} is missing); install it with "
            "pip install 'int-lm[harness]'"
        ) from error
