"""Warm-up: what evaluating needs is compiled beside the first steps, what saving needs imported.

A step takes all cores and a compilation one; a run that waited for three of them at its first
evaluation spent as long on them as on a hundred steps.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from int_lm import native, sample
from int_lm.files import storage
from int_lm.measure import diagnose, evaluate
from int_lm.method import evolve
from int_lm.method.recipe import Recipe


@contextlib.contextmanager
def beside(
    recipe: Recipe,
    tokens_ST: np.ndarray,
    documents: Sequence[np.ndarray],
    *,
    sampling: bool,
) -> Iterator[Callable[[], None]]:
    """Yields a function that waits until everything is there.

    Only shapes are read, never a state, whose tables the steps change. What fails here fails again
    where it is needed, and is reported there; what has not begun when the context is left is
    dropped.

    Args:
      tokens_ST: of a step. documents: those that are read while training.
      sampling: whether samples are shown.
    """
    native.available()  # registers the kernels, in one thread
    weights = evolve.abstract(recipe).weights
    with ThreadPoolExecutor(1, "warm-up") as executor:
        programs = [executor.submit(evaluate.prepare, recipe.model, weights, documents)]
        if diagnose.possible(recipe.es):
            programs.append(executor.submit(diagnose.prepare, recipe, tokens_ST))
        if sampling:
            programs.append(executor.submit(sample.prepare, recipe.model, weights))
        programs.append(executor.submit(storage.orbax_module))  # half a second

        def ready() -> None:
            wait(programs)

        try:
            yield ready
        finally:
            executor.shutdown(cancel_futures=True)
