"""Samples of a run's weights: JAX computes the logits, and the NumPy runtime draws the tokens.

JAX is imported only when a reader is made, so that `python -m int_lm.sample`, which imports this
file, prints its help and samples an export without JAX.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from int_lm import runtime, sampling
from int_lm.runtime import Sampler

if TYPE_CHECKING:
    from int_lm.model.compiling import Program
    from int_lm.model.language_model import LanguageModel
    from int_lm.model.params import Parameters

__all__ = ["Sampler", "generate", "prepare", "reader"]


@functools.cache
def _compiled_step(model: "LanguageModel") -> "Program":
    """The architecture's step; cached, so that all samples of a run share one compilation."""
    from int_lm.model import compiling

    return compiling.Program(lambda: compiling.quick_jit(model.step))


def prepare(model: "LanguageModel", weights: "Parameters") -> None:
    """Compile the step that `generate` needs, so that it does not have to.

    Args:
      model: architecture and sizes.
      weights: int8, or `jax.ShapeDtypeStruct`s of their shapes and dtypes.
    """
    import jax
    import jax.numpy as jnp

    from int_lm.model import perturb

    bare = jax.eval_shape(perturb.unperturbed, weights)
    state = jax.eval_shape(lambda: model.initial_state(1))
    _compiled_step(model).compile(bare, state, jax.ShapeDtypeStruct((1,), jnp.int32))


def reader(
    model: "LanguageModel", weights: "Parameters", state: Any = None
) -> sampling.StateReader:
    """A reader of one document with the unperturbed model.

    Args:
      model: architecture and sizes.
      weights: int8 arrays of NumPy or JAX.
      state: the state to begin with, leaves [., 1, ...] of NumPy or JAX; None for the initial one.
    """
    import jax
    import jax.numpy as jnp

    from int_lm.model import perturb

    compiled = _compiled_step(model)
    bare = jax.tree.map(jnp.asarray, perturb.unperturbed(weights))

    def step(state: Any, token: int) -> tuple[Any, np.ndarray]:
        state, logits_PV, _ = compiled(bare, state, np.array([token], np.int32))
        return state, np.asarray(logits_PV)[0]

    fresh = model.fresh_state(1)
    if state is not None:  # the NumPy runtime may hold the same values in wider integers
        fresh = jax.tree.map(lambda leaf, own: jnp.asarray(leaf).astype(own.dtype), state, fresh)
    return sampling.StateReader(step, fresh)


def generate(
    model: "LanguageModel",
    weights: "Parameters",
    prompt: runtime.Ids,
    sampler: Sampler,
    *,
    tokens: int,
    stop: bool = True,
) -> Iterator[int]:
    """Yield the ids that the model writes after `prompt`.

    An export of the same weights gives the same ids for the same prompt and sampler.

    Args:
      model: architecture and sizes.
      weights: int8.
      prompt: ids.
      sampler: settings of the draws.
      tokens: the largest number of ids.
      stop: whether to end where the model ends its text; otherwise another text begins there.
    """
    return runtime.generate(reader(model, weights), prompt, sampler, tokens=tokens, stop=stop)
