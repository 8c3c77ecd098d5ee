"""Warm-up: during the first steps, a thread compiles and imports what later work needs.

It compiles the programs for evaluation, diagnosis and samples, and imports Orbax for saving. A
compilation uses one core, a step all of them. Waiting for three compilations at the first
evaluation would take as long as a hundred steps. One program is compiled after the other, and the
step before all of them: what a compilation takes in memory, it takes once.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import jax
import numpy as np

from int_lm import native, sample
from int_lm.files import storage
from int_lm.measure import diagnose, evaluate
from int_lm.method import evolve
from int_lm.method.recipe import Recipe
from int_lm.training import memory


class WarmUp(NamedTuple):
    """A warm-up; without arguments, one that has nothing to do.

    Attributes:
      begin: starts the thread's work. Call it once the step is compiled.
      ready: waits until all that has begun is done, and drops what JAX keeps of its traces.
    """

    begin: Callable[[], None] = lambda: None
    ready: Callable[[], None] = lambda: None


@contextlib.contextmanager
def beside(
    recipe: Recipe,
    tokens_ST: np.ndarray,
    documents: Sequence[np.ndarray],
    *,
    sampling: bool,
) -> Iterator[WarmUp]:
    """The warm-up of a run.

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
    memory.trim()  # what preparing the text has left, before the step is compiled
    weights = evolve.abstract(recipe).weights
    programs: list[Callable[[], object]] = [
        functools.partial(evaluate.prepare, recipe.model, weights, documents)
    ]
    if diagnose.possible(recipe.es):
        programs.append(functools.partial(diagnose.prepare, recipe, tokens_ST))
    if sampling:
        programs.append(functools.partial(sample.prepare, recipe.model, weights))
    programs.append(storage.orbax_module)  # half a second
    begun: list[Future[object]] = []
    with ThreadPoolExecutor(1, "warm-up") as executor:

        def begin() -> None:
            begun.extend(executor.submit(memory.returned()(program)) for program in programs)

        def ready() -> None:
            if begun:
                wait(begun)
                begun.clear()
                jax.clear_caches()  # what was traced on the way: programs need it no more

        try:
            yield WarmUp(begin, ready)
        finally:
            executor.shutdown(cancel_futures=True)
