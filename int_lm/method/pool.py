"""The pool: how far to trust a network and context tables that learn apart from each other.

Tables know a text by heart after a few readings. What then learns beside them finds no errors any
more, and the sum is surer than it should be of text that is new. With `es.pooled` the network
learns from its own errors, as if there were no tables, and the tables and the document cache from
theirs, as if there were no network. The model is their logarithmic opinion pool (Heskes, "Selecting
weighting factors in logarithmic opinion pools", NIPS 1997): the sum of their logits, each times its
trust. It is one softmax.

Trust is learnt where nothing else learns, as in deleted interpolation (Jelinek and Mercer,
"Interpolated estimation of Markov source parameters from sparse data", 1980): one document in
`2^context_tables.HELD_BITS`, chosen by a hash of its beginning, is held back from network and
tables in every reading of the text. The pool predicts it as it predicts new text. In each step
`PICKS` tokens of every stream that reads such a document are used.

The experts are the network, the document cache, and the context tables. A table has several
trusts, one for each number of bits of a row's count, which says how often the row was read. The
pooled logits are linear in trust, so it learns from exact errors, at a constant rate, for what it
follows never stands still:

    d log p(target) / d trust = sum_v error[v] x[v]        x: the expert's logits
    trust += that, as a mean over the tokens that used it / 2^(TRUST_BITS + RATE_SHIFT)

`settled` multiplies trust into the weights. What evaluates, samples, and exports sees a model like
any other.

Axes: T tokens of a segment, I voters, J = `PICKS` I tokens, E experts, N trusts, V vocabulary, F
slots of the document cache.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.arithmetic.constants import ERROR_BITS
from int_lm.limits import INT8_MAX
from int_lm.method.estimator.rounding import Rounding
from int_lm.method.state import Tables
from int_lm.model import context_tables, document_cache, likelihood
from int_lm.model.document_cache import Reading
from int_lm.model.language_model import LanguageModel
from int_lm.model.likelihood import NO_TARGET
from int_lm.model.params import Parameters, Role, flatten, unflatten
from int_lm.settings import ModelSettings

TRUST_BITS = 16  # fractional bits of a trust
FIRST, WHOLE = 1 << (TRUST_BITS - 1), 1 << TRUST_BITS  # a half, and one: a trust at the start
LARGEST = (4 << TRUST_BITS) - 1
FACTOR_BITS = 7  # fractional bits that are left of it where it is a factor
BUCKETS = 16  # trusts of a table: of rows whose count has 0, 1, 2, ... bits
NETWORK, CACHE = 0, 1  # index of their trusts; after these come those of the tables
PICKS = 4  # tokens of a segment that trust learns from
LOGIT_MOST = 2**13 - 1  # of a logit in a gradient
GRADIENT_MOST = 2**14 - 1  # of a token, in units of 1/127 of 1/16 bit: 8 bits
RATE_SHIFT = 1  # a mean gradient of one bit moves a trust by about 1/64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """Tokens of documents that are held back from all but trust.

    Attributes:
      numbers_J: one for each, which does not depend on how members are evaluated, int32.
      targets_J: int32; `NO_TARGET` where the document is not held back.
      logits_JV: of the network, int8 or int16 q4.
      rows: row that the token read, int32 [J] by name of the context table.
      cache: what the document cache said; None without it.
    """

    numbers_J: Array
    targets_J: Array
    logits_JV: Array
    rows: dict[str, Array]
    cache: Reading | None


def picked(
    held_TI: Array,
    targets_TI: Array,
    logits_TIV: Array,
    rows: dict[str, Array],
    cache: Reading | None,
    rounding: Rounding,
) -> Held:
    """Tokens of every segment, at equal distances, from a place that moves from step to step.

    Args:
      held_TI: 1 where the document is held back, else 0, int32.
      targets_TI: int32; `NO_TARGET` for padding.
      logits_TIV: of the network, int8 or int16 q4.
      rows: int32 [T, I] by name.
      cache: readings [T, I, F].
      rounding: the voters' numbers, and the step.
    """
    length = len(targets_TI)
    picks = np.arange(min(PICKS, length))
    places_G = jnp.asarray(picks * length // len(picks), jnp.uint32) + rounding.step
    places_G = (places_G % np.uint32(length)).astype(jnp.int32)
    targets_TI = jnp.where(held_TI != 0, targets_TI, NO_TARGET)

    def of_picks(leaf: Array) -> Array:
        return leaf[places_G].reshape(-1, *leaf.shape[2:])

    numbers_GI = rounding.numbers_I[None] * PICKS + jnp.asarray(picks, jnp.int32)[:, None]
    leaves = jax.tree.map(of_picks, (targets_TI, logits_TIV, rows, cache))
    return Held(numbers_GI.reshape(-1), *leaves)


# -- Trust -----------------------------------------------------------------------------------------


def initial(model: ModelSettings, first: int = FIRST) -> Array:
    """Trust before the first step: int32 [N] in units of 2^-16, all of them `first`.

    Entry 2 + k `BUCKETS` + b is that of table k, of rows whose count has b bits.
    """
    count = 2 + len(context_tables.names(model)) * BUCKETS
    return jnp.full(count, first, jnp.int32)


def by_name(model: ModelSettings, trust_N: np.ndarray) -> dict[str, np.ndarray]:
    """Trust by expert: 1 of the network, 1 of the cache if there is one, `BUCKETS` of a table."""
    found = {"network": trust_N[NETWORK : NETWORK + 1]}
    if model.cache:
        found[document_cache.NAME] = trust_N[CACHE : CACHE + 1]
    of_tables = trust_N[2:].reshape(-1, BUCKETS)
    return found | dict(zip(context_tables.names(model), of_tables, strict=True))


def learnt(model: ModelSettings, tables: Tables, held: Held, step: Array) -> Array:
    """Trust after a step, from the tokens that were held back.

    Args:
      model: names and order of the tables; JAX puts those of `held.rows` in another one.
      tables: before the step.
      held: of all streams.
      step: number of steps done before, uint32 scalar.
    """
    trust_N, size = _trust(tables), held.logits_JV.shape[-1]
    experts, uses = [held.logits_JV], [jnp.full_like(held.targets_J, NETWORK)]
    if held.cache is not None:
        weights, none_JV = tables.values[document_cache.NAME], jnp.zeros_like(held.logits_JV)
        experts.append(document_cache.added(weights, held.cache, none_JV))
        uses.append(jnp.full_like(held.targets_J, CACHE))
    for number, name in enumerate(context_tables.names(model)):
        rows_J = held.rows[name]
        experts.append(tables.values[name][rows_J])
        uses.append(_of_table(number, tables.counts[name][rows_J]))
    experts_EJV = jnp.stack([expert_JV.astype(jnp.int32) for expert_JV in experts])
    uses_EJ = jnp.stack(uses)
    # a product is below 2^24, and there are fewer than 2^6 experts
    pooled_JV = jnp.sum(experts_EJV * _factor(trust_N)[uses_EJ][..., None], axis=0)
    pooled_JV = fixed.narrow(fixed.shift_floor(pooled_JV, FACTOR_BITS), jnp.int16)
    columns_V = jnp.arange(size, dtype=jnp.int32)
    dither_JV = fixed.dither(held.numbers_J[:, None], columns_V[None], step, ERROR_BITS)
    errors_JV = likelihood.errors(pooled_JV, held.targets_J, INT8_MAX, dither_JV)
    # magnitudes of errors sum to at most 2 x 127 + V, and V is at most 2^16
    clipped_EJV = jnp.clip(experts_EJV, -LOGIT_MOST, LOGIT_MOST)
    products_EJV = errors_JV.astype(jnp.int32)[None] * clipped_EJV
    gradients_EJ = jnp.clip(jnp.sum(products_EJV, axis=-1), -GRADIENT_MOST, GRADIENT_MOST)
    none_1J = (held.targets_J == NO_TARGET)[None]
    uses_EJ = jnp.where(none_1J, len(trust_N), uses_EJ)  # past the end
    zeros_N = jnp.zeros_like(trust_N)
    hits_N = zeros_N.at[uses_EJ].add(1, mode="drop")
    sums_N = zeros_N.at[uses_EJ].add(gradients_EJ, mode="drop")
    moves_N = sums_N // (jnp.maximum(hits_N, 1) << RATE_SHIFT)
    return jnp.clip(trust_N + moves_N, 0, LARGEST)


def settled(model: LanguageModel, weights: Parameters, tables: Tables) -> Parameters:
    """The weights of the pool as those of a model: each times the trust of what it is part of.

    Args:
      weights: int8, of the network and the tables.
      tables: trust, and the counts of all rows.

    Returns:
      int8 weights of the same shapes. Only the head of the network differs, and the tables.
    """
    factors, found = _factor(_trust(tables)), {}
    for number, name in enumerate(context_tables.names(model.settings)):
        of_rows = factors[_of_table(number, tables.counts[name])]
        found[name] = _times(weights.tables[name], of_rows[:, None])
    if document_cache.NAME in weights.tables:
        name = document_cache.NAME
        found[name] = _times(weights.tables[name], factors[CACHE])
    specs = dict(flatten(model.specs.network))
    network = {
        path: _times(value, factors[NETWORK]) if specs[path].role is Role.READOUT else value
        for path, value in flatten(weights.network)
    }
    return Parameters(unflatten(network), found)


def _trust(tables: Tables) -> Array:
    assert tables.trust is not None, "a state of a pool has trust"
    return tables.trust


def _of_table(number: int, counts: Array) -> Array:
    """The trusts of a table's rows with these counts: int32."""
    return 2 + number * BUCKETS + jnp.minimum(32 - jax.lax.clz(counts), BUCKETS - 1)


def _factor(trust_N: Array) -> Array:
    """Trusts as factors, in units of 1/128: int32 in [0, 511]."""
    return trust_N >> (TRUST_BITS - FACTOR_BITS)


def _times(value: Array, factor: Array) -> Array:
    """Weights times a factor, rounded half up: int8."""
    return fixed.saturate(fixed.shift_down(value.astype(jnp.int32) * factor, FACTOR_BITS))
