"""Warm-up: during the first steps, a thread compiles and imports what later work needs.

It compiles the programs for evaluation, diagnosis and samples, and imports Orbax for saving. A
compilation uses one core, a step all of them. Waiting for three compilations at the first
evaluation would take as long as a hundred steps.
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
    """Start the warm-up; yields a function that waits until it is done.

    Only shapes are read, never a state: steps change its context tables in place. An error here
    is ignored, because it occurs again, and is reported, where the program is needed. Work that
    has not begun when the context ends is dropped.

    Args:
      recipe: of the run.
      tokens_ST: tokens of any step; their shape and dtype matter.
      documents: token ids of the documents that are evaluated during training.
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
