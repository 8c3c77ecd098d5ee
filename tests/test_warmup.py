"""What evaluating needs is compiled beside the steps, once, and nobody waits for it in vain."""

import re
import threading
from collections import Counter
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from int_lm import sample
from int_lm.config import Config, EsConfig, ModelConfig, RunConfig
from int_lm.files import storage
from int_lm.measure import diagnose, evaluate
from int_lm.method import evolve, recipe
from int_lm.runtime import Sampler
from int_lm.training import warmup

VOCABULARY = 11
DOCUMENTS = [np.full(length, 3, np.uint8) for length in (300, 20, 5)]
CONFIG = Config(
    model=ModelConfig(architecture="rwkv", width=8, layers=1, direct=(1, 2), direct_bits=8),
    es=EsConfig(population=16, segment_length=4, votes="unit", readout="exact", update="carry"),
    run=RunConfig(sample_tokens=2),
)
TOKENS = np.ones((CONFIG.es.streams, CONFIG.es.segment_length + 1), np.uint8)
RECIPE = recipe.of(CONFIG, VOCABULARY)
ARGUMENTS = RECIPE, TOKENS, DOCUMENTS


def compiled(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """How often a program of each name was compiled since the last call."""
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return Counter(found[1] for m in messages if (found := re.match(r"Compiling jit\((.*?)\)", m)))


@pytest.fixture
def compilations() -> Iterator[None]:
    """JAX logs what it compiles, in every thread."""
    jax.clear_caches()
    jax.config.update("jax_log_compiles", True)
    yield
    jax.config.update("jax_log_compiles", False)


@pytest.mark.usefixtures("compilations")
def test_an_evaluation_finds_everything_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """The reader, the halves and the one-token step: each compiled once, and not again."""
    state = evolve.initial(RECIPE)
    compiled(caplog)
    with warmup.beside(*ARGUMENTS, sampling=True) as warm:
        warm.ready()
        assert not compiled(caplog)  # the step comes first
        warm.begin()
        warm.ready()
        assert compiled(caplog) == {"measured": 1, "_half": 1, "step": 1}
    sizes = [len(document) for document in DOCUMENTS]
    evaluate.evaluate(RECIPE.model, state.weights, DOCUMENTS, sizes)
    diagnose.count(RECIPE, state.weights, state.members, TOKENS, 1)
    list(sample.generate(RECIPE.model, state.weights, b"\1", Sampler(), tokens=2))
    assert not {"measured", "_half", "step"} & set(compiled(caplog))


def test_a_run_that_stops_drops_what_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for one program, not for all of them."""
    began, go_on, others = threading.Event(), threading.Event(), []

    def slow(*_: object) -> None:
        began.set()
        assert go_on.wait(60)

    monkeypatch.setattr(evaluate, "prepare", slow)
    monkeypatch.setattr(diagnose, "prepare", lambda *_: others.append("diagnose"))
    monkeypatch.setattr(sample, "prepare", lambda *_: others.append("sample"))
    monkeypatch.setattr(storage, "orbax_module", lambda: others.append("orbax"))
    with pytest.raises(KeyboardInterrupt), warmup.beside(*ARGUMENTS, sampling=True) as warm:
        warm.begin()
        assert began.wait(60)
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt
    assert not others


def test_what_fails_does_not_keep_the_run_from_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the rest from being made ready."""
    others: list[str] = []

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(evaluate, "prepare", fails)
    monkeypatch.setattr(diagnose, "prepare", lambda *_: others.append("diagnose"))
    monkeypatch.setattr(sample, "prepare", lambda *_: others.append("sample"))
    monkeypatch.setattr(storage, "orbax_module", lambda: others.append("orbax"))
    with warmup.beside(*ARGUMENTS, sampling=True) as warm:
        warm.begin()
        warm.ready()
        assert others == ["diagnose", "sample", "orbax"]
