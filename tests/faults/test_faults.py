"""Every fault of the table in docs/determinism.md, as it is printed by `python -m tests.faults`."""

import pytest

from . import FAULTS
from .bench import Bench, Fault, ImpossibleError


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_run_survives(fault: Fault, bench: Bench) -> None:
    """The user is told, nothing sound is lost, and the weights come to the same bits."""
    try:
        fault.run(bench)
    except ImpossibleError as reason:
        pytest.skip(str(reason))
