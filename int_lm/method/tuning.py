"""One step of tuning with a reward: completions, their rewards, votes, update.

A reward is computed by any Python function, so a step has three parts:

    (recipe, weights, prompts, clock)             -> completions of all members        compiled
    completions -> rewards -> fitness of pairs                                         `rewards`
    (recipe, state, fitness, clock, values)       -> (state, metrics)                  compiled

The two compiled parts are pure functions of integers, as `evolve.step` is, and draw the same noise.
Member p writes completions of prompt p // members_per_stream. Both members of a pair use the same
random words, so that they differ by their perturbation alone. Different pairs use different words,
so that the votes on a prompt are an average over draws.

Axes: P members, I = P/2 pairs, S prompts, N tokens of a prompt, K completions of a member, C tokens
of a completion, V vocabulary.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from int_lm.arithmetic import noise
from int_lm.limits import INT32_MAX
from int_lm.method import chunks, evolve, placement, population
from int_lm.method.clock import Clock
from int_lm.method.objective import reward
from int_lm.method.placement import AXIS, Placement
from int_lm.method.population import PopulationResult
from int_lm.method.recipe import Recipe
from int_lm.method.state import Metrics, State
from int_lm.method.update import Scalars
from int_lm.model import perturb, sampler
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters

_WORDS = 2**32 - 1  # in place of a tensor's number, in the key of the random words

Writer = Callable[[Parameters, np.ndarray, np.ndarray, int], Array]
Learner = Callable[[State, np.ndarray, np.ndarray, int], tuple[State, Metrics]]


def words(recipe: Recipe, clock: Clock, pairs_I: Array) -> Array:
    """The random words of the members of some pairs: uint32 [K, P, C], equal for both of a pair."""
    settings = recipe.settings.reward
    key = noise.tensor_key(clock.seed, clock.step, jnp.uint32(_WORDS))
    count = settings.pass_at * settings.tokens
    words_I = noise.uniform(key, pairs_I, count)
    words_P = jnp.repeat(words_I, 2, axis=0)
    return jnp.moveaxis(words_P.reshape(len(words_P), settings.pass_at, settings.tokens), 1, 0)


def completions(
    recipe: Recipe,
    pairs_CI: Array,
    weights: Parameters,
    prompts_SN: Array,
    ends_V: Array,
    clock: Clock,
    *,
    axis: str | None = None,
) -> Array:
    """The completions that members write. A device computes its own; then all are gathered.

    Args:
      pairs_CI: indices of the pairs of this device's chunks, int32.
      weights: int8.
      prompts_SN: prompts of these members, int32; see `reward.write`.
      ends_V: bool, see `reward.write`.
      clock: seed and step.
      axis: name of the mesh axis of the devices; None for a single device.

    Returns:
      int32 [P, K, C], of all members.
    """
    settings, size = recipe.settings.reward, recipe.model.vocab_size
    table = sampler.weights(settings.temperature, size) if settings.temperature else None

    def of_chunk(pairs_I: Array, prompts_SN: Array) -> tuple[Array, dict[str, Array]]:
        members = population.perturbed(recipe, weights, population.noise_of(recipe, clock, pairs_I))
        prompts_PN = jnp.repeat(prompts_SN, recipe.es.members_per_stream, axis=0)
        write = functools.partial(
            reward.write, recipe.model, members, prompts_PN, ends_V, settings.tokens
        )
        if table is None:
            return write(None)[:, None], {}
        draws = jnp.asarray(table)
        written_KPC = jax.lax.map(
            lambda words_PC: write((draws, words_PC)), words(recipe, clock, pairs_I)
        )
        return jnp.moveaxis(written_KPC, 0, 1), {}

    prompts_CSN = prompts_SN.reshape(len(pairs_CI), -1, prompts_SN.shape[1])
    written, _ = chunks.over(of_chunk, pairs_CI, prompts_CSN)
    return placement.gathered(written.reshape(-1, *written.shape[2:]), axis)


def votes(
    recipe: Recipe,
    pairs_CI: Array,
    fitness_I: Array,
    clock: Clock,
    *,
    axis: str | None = None,
    split: dict[str, PartitionSpec] | None = None,
) -> dict[str, Array]:
    """The votes of all members by path, int32.

    Args:
      pairs_CI: indices of the pairs of this device's chunks, int32.
      fitness_I: fitness of all pairs of all devices, int8.
      clock: seed and step.
      axis: as for `population.of_device`.
      split: as for `population.of_device`.
    """
    found = population.votes_of_fitness(recipe, fitness_I[pairs_CI], clock, pairs_CI)
    return population.summed(found, placement.InOrder(axis), split)


def learn(
    recipe: Recipe,
    vote: Callable[[Array, Array, Clock], dict[str, Array]],
    place: Placement | None,
    state: State,
    scores_P: Array,
    fitness_I: Array,
    clock: Clock,
    values: Scalars,
) -> tuple[State, Metrics]:
    """The state after the update that follows from fitness, and the metrics.

    Args:
      vote: `votes` with a recipe, divided among the devices of `place`.
      place: the devices; None for a single one.
      state: the state before the step.
      scores_P: scores of all members, int32, for the metrics.
      fitness_I: fitness of all pairs, int8.
      clock: seed and step.
      values: schedule values of this step.
    """
    result = PopulationResult(
        scores_P=scores_P,
        fitness_I=fitness_I,
        members=state.members,
        votes=vote(_all_pairs(recipe, place), fitness_I, clock),
        tables=state.tables,
    )
    return evolve.updated(recipe, state, result, clock, values, place)


def compiled_writer(recipe: Recipe, place: Placement | None = None) -> Writer:
    """`(weights, prompts_SN, ends_V, step) -> completions int32 [P, K, C]`.

    It is compiled once for every length of prompts. The whole result is on every device.
    """
    write = functools.partial(completions, recipe)
    if place is not None:
        everywhere, first = PartitionSpec(), PartitionSpec(AXIS)
        write = jax.shard_map(
            functools.partial(write, axis=AXIS),
            mesh=place.mesh,
            in_specs=(first, everywhere, first, everywhere, everywhere),
            out_specs=everywhere,
            check_vma=False,
        )

    @jax.jit
    def jitted(weights: Parameters, prompts_SN: Array, ends_V: Array, clock: Clock) -> Array:
        return write(_all_pairs(recipe, place), weights, prompts_SN, ends_V, clock)

    def run(weights: Parameters, prompts_SN: np.ndarray, ends_V: np.ndarray, step: int) -> Array:
        prompts = prompts_SN.astype(np.int32)
        if place is not None:
            prompts = placement.put(place.by_stream, prompts)
        return jitted(weights, prompts, ends_V, Clock.at(recipe.settings.run.seed, step))

    return run


def compiled_learner(recipe: Recipe, place: Placement | None = None) -> Learner:
    """`(state, scores_P, fitness_I, step) -> (state, metrics)`: the update after a step's rewards.

    Context tables do not change, because there are no errors of single tokens from which their rows
    could learn.
    """
    vote = functools.partial(votes, recipe)
    if place is not None:
        everywhere, first = PartitionSpec(), PartitionSpec(AXIS)
        split = population.splits(recipe, place)
        vote = jax.shard_map(
            functools.partial(vote, axis=AXIS, split=split),
            mesh=place.mesh,
            in_specs=(first, everywhere, everywhere),
            out_specs=split,
            check_vma=False,
        )

    jitted = jax.jit(functools.partial(learn, recipe, vote, place))

    def run(
        state: State, scores_P: np.ndarray, fitness_I: np.ndarray, step: int
    ) -> tuple[State, Metrics]:
        (tables, cache), rest = evolve.donated(state)  # neither passed nor copied
        scores = np.clip(scores_P, -INT32_MAX, INT32_MAX).astype(np.int32)
        clock, values = Clock.at(recipe.settings.run.seed, step), evolve.values(recipe, step)
        after, metrics = jitted(rest, scores, fitness_I, clock, values)
        return State(after.network, tables, after.members | cache, after.memory), metrics

    return run


def _all_pairs(recipe: Recipe, place: Placement | None) -> Array:
    return chunks.pairs(recipe.es, place.devices if place else 1, recipe.model.settings)


@functools.cache
def _answer(model: LanguageModel, length: int) -> Callable[..., Array]:
    def answer(weights: Parameters, prompts_PN: Array, ends_V: Array) -> Array:
        return reward.write(model, perturb.unperturbed(weights), prompts_PN, ends_V, length, None)

    return jax.jit(answer)


def answers(
    model: LanguageModel,
    weights: Parameters,
    prompts_PN: np.ndarray,
    ends_V: np.ndarray,
    length: int,
) -> Array:
    """Completions of the unperturbed model, always of the likeliest token: int32 [P, C].

    Args:
      model: architecture and sizes.
      weights: int8.
      prompts_PN: as for `reward.write`.
      ends_V: as for `reward.write`.
      length: C.
    """
    return _answer(model, length)(weights, prompts_PN.astype(np.int32), ends_V)
