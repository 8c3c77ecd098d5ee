"""Episodes of an environment, played together to their ends.

Axes: R episodes that are played together, N numbers of an observation, K sums of observations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.control import border, observations
from int_lm.control.environment import Environment
from int_lm.control.observations import Encoding

BLOCK = 256  # episodes whose environments are computed at once

# (step, inputs int8 [R, N + 1], state) -> (state, what to do, int32 [R, number of actions])
Act = Callable[[Array, Array, Any], tuple[Any, Array]]


class Played(NamedTuple):
    """Episodes to their ends.

    Attributes:
      returns: sums of rewards in units of 2^-12, int32 [R].
      lengths: numbers of steps, int32 [R].
      sums: of the observations that were counted, int32 [K] (`observations.sums`).
    """

    returns: Array
    lengths: Array
    sums: Array


def by_blocks(function: Callable[..., Any], t: Array, unknown: Array, *trees: Any) -> Any:
    """`function(t, ...)` of every row of the trees, `BLOCK` rows at once.

    A compiler may compute the floats of one row in different ways, by the number of rows that it is
    given: with other instructions at the end of an array, or with a multiplication and an addition
    made one. So the environment sees blocks of one size, in a loop of which the compiler does not
    know how often it runs; the last block is filled up with copies of its first rows.

    Args:
      function: of a single row.
      t: a step, int32 scalar.
      unknown: random words, uint32 [R, 2]; their values do not matter.
      trees: leaves [R, ...].
    """
    rows = len(jax.tree.leaves(trees)[0])
    count = -(-rows // BLOCK)
    number_R = jnp.arange(count * BLOCK, dtype=jnp.int32) % rows
    filled = jax.tree.map(lambda leaf: leaf[number_R], trees) if count * BLOCK > rows else trees
    of_block = jax.vmap(function, in_axes=(None, *(0 for _ in trees)))

    def block(number: Array, of: Any) -> Any:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number * BLOCK, BLOCK), of
        )

    shapes = jax.eval_shape(lambda: of_block(t, *block(jnp.int32(0), filled)))
    empty = jax.tree.map(lambda x: jnp.zeros((count * BLOCK, *x.shape[1:]), x.dtype), shapes)

    def one(number: Array, found: Any) -> Any:
        results = of_block(t, *block(number, filled))
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, number * BLOCK, 0),
            found,
            results,
        )

    # `count`, which the compiler does not know; once more would do the last block again
    several = jnp.int32(count) + jnp.all(unknown[0] == 0).astype(jnp.int32)
    found = jax.lax.fori_loop(jnp.int32(0), several, one, empty)
    return jax.tree.map(lambda leaf: leaf[:rows], found) if count * BLOCK > rows else found


def play(
    environment: Environment,
    act: Act,
    memory: Any,
    encoding: Encoding,
    words_R2: Array,
    counted_R: Array,
    max_steps: int,
) -> Played:
    """Play some episodes at once, until the last of them has ended.

    Args:
      environment: its functions are applied to every episode by `jax.vmap`.
      act: says what to do.
      memory: state of `act` before the first step.
      encoding: of the observations.
      words_R2: random words of each episode, uint32 [R, 2]: its key in `environment`.
      counted_R: bool, whether the observations of an episode are counted.
      max_steps: episodes end after so many steps.
    """
    rows, nothing = len(words_R2), jnp.int32(0)

    def key_of(words: Array) -> Array:
        return jax.random.wrap_key_data(words, impl="threefry2x32")

    def begin(t: Array, words: Array) -> tuple[Any, Array]:
        state, observation = environment.reset(key_of(words))
        return state, border.observed(observation)

    def advance(t: Array, words: Array, state: Any, chosen: Array) -> Any:
        key = jax.random.fold_in(key_of(words), t + 1)
        action = border.acted(environment, chosen)
        state, observation, reward, ended = environment.step(key, state, action)
        return state, border.observed(observation), border.rewarded(reward, max_steps), ended

    state, x_RN = by_blocks(begin, nothing, words_R2, words_R2)

    def unfinished(carry: Any) -> Array:
        t, done_R = carry[0], carry[1]
        return (t < max_steps) & ~jnp.all(done_R)

    def step(carry: Any) -> Any:
        t, done_R, state, x_RN, memory, returns_R, lengths_R, sums_K = carry
        sums_K = sums_K + observations.sums(encoding, x_RN, counted_R & ~done_R)
        memory, chosen = act(t, observations.encoded(encoding, x_RN), memory)
        state, x_RN, worth_R, ended_R = by_blocks(advance, t, words_R2, words_R2, state, chosen)
        returns_R = returns_R + jnp.where(done_R, 0, worth_R)
        lengths_R = lengths_R + (~done_R).astype(jnp.int32)
        return t + 1, done_R | ended_R, state, x_RN, memory, returns_R, lengths_R, sums_K

    zeros_R = jnp.zeros(rows, jnp.int32)
    start = (
        jnp.int32(0),
        jnp.zeros(rows, bool),
        state,
        x_RN,
        memory,
        zeros_R,
        zeros_R,
        observations.no_sums(environment.observations),
    )
    *_, returns_R, lengths_R, sums_K = jax.lax.while_loop(unfinished, step, start)
    return Played(returns_R, lengths_R, sums_K)
