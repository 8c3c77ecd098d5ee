"""Samples of a run's weights: its own one-token step under JAX, the draw of the NumPy runtime.

JAX is imported when a reader is made, not before: `python -m int_lm.sample` begins by importing
this file, and must answer `--help`, or sample an export, without JAX.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from int_lm import runtime, sampling
from int_lm.runtime import Sampler

if TYPE_CHECKING:
    from int_lm.model.language_model import LanguageModel
    from int_lm.model.params import Parameters

__all__ = ["Sampler", "generate", "prepare", "reader"]


@functools.cache
def _compiled_step(model: "LanguageModel") -> Callable[..., Any]:
    """The architecture's step; cached, so that all samples of a run share one compilation."""
    import jax

    return jax.jit(model.step)


def prepare(model: "LanguageModel", weights: "Parameters") -> None:
    """Compile what `generate` needs, which it then does not wait for.

    Args:
      weights: int8, or what they are like (`jax.ShapeDtypeStruct`s).
    """
    import jax
    import jax.numpy as jnp

    from int_lm.model import perturb

    bare = jax.eval_shape(perturb.unperturbed, weights)
    state = jax.eval_shape(lambda: model.initial_state(1))
    _compiled_step(model).lower(bare, state, jax.ShapeDtypeStruct((1,), jnp.int32)).compile()


def reader(
    model: "LanguageModel", weights: "Parameters", state: Any = None
) -> sampling.StateReader:
    """A reader of one document, with the bare model, from `state` or from a fresh one.

    Args:
      weights: int8, NumPy's or JAX's. state: leaves [., 1, ...], NumPy's or JAX's.
    """
    import jax
    import jax.numpy as jnp

    from int_lm.model import perturb

    compiled = _compiled_step(model)
    bare = jax.tree.map(jnp.asarray, perturb.unperturbed(weights))

    def step(state: Any, token: int) -> tuple[Any, np.ndarray]:
        state, logits_PV, _ = compiled(bare, state, jnp.asarray([token], jnp.int32))
        return state, np.asarray(logits_PV)[0]

    fresh = model.initial_state(1)
    if state is not None:  # of NumPy, perhaps: the same values in wider integers
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
    """Yield at most `tokens` ids that follow `prompt`; with `stop`, end where a text ends.

    An export of the same weights gives the same ids for the same prompt and sampler.
    """
    return runtime.generate(reader(model, weights), prompt, sampler, tokens=tokens, stop=stop)
