"""Votes: what the population says of every weight, one int32 each. Four estimators.

`eggroll` (arXiv 2511.16652)   Z = sum_i f_i A_i B_i^T          f: fitness of the pair's two scores
`trace`                        Z = sum_i A_i (sum_t d_it (B_i x_it) x_it)^T
                               d: difference of the two members' log-likelihoods of token t
`unit`                         Z_mn = sum_it r_itm a_itm x_itn    a = A_i (B_i x_it): what the
                               perturbation added to output m; r = credit_m times the difference
                               of the two members' effects of output m
exact                          Z = sum_it credit_it x_it^T       no perturbation at all

Only `eggroll` takes any fitness; the others need the log-likelihood token by token, `unit` and
exact its derivative by the logits too, onehot(target) - p, which is closed-form. The credit of a
channel of the residual stream is that derivative taken back through the head and the norm before
it, and no further: through nothing of the layers, and not through time. It is exact for the
readout; for a PROJECTION and the EMBEDDING, which add to the stream, it is the derivative along the
skip path. For a MATRIX the unit's own effect stands between, and its derivative is not taken but
measured, by perturbing it. VECTORs always take `eggroll`: the score is the sum of its tokens', so
that is their trace already. docs/method.md derives all this.

Narrowing: credits, differences and perturbations are int8, their products are rounded to int8 with
a dither (`fixed.dither`), so that all matmuls are int8 ones and no small product is lost for good.
How coarse that is follows from `bounds.spare_bits`, which keeps the int32 sums exact.

Axes: P members, I pairs, T tokens of a segment, R rank, M outputs, N inputs, E effects, D width,
V vocabulary; L layers, and the leading axes of `eggroll` are free.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.config import EsConfig
from int_lm.limits import FITNESS_MAX, INT8_MAX
from int_lm.method.bounds import noise_max, spare_bits
from int_lm.method.estimator import credit, node, outer
from int_lm.method.estimator.credit import Rounding
from int_lm.model import params
from int_lm.model.layers import Activity
from int_lm.model.likelihood import NO_TARGET
from int_lm.model.params import Role, Spec, Tree
from int_lm.model.perturb import Weight

EXACT = "exact"
DIFFERENCE_SHIFT = 10  # log-likelihood differences in units of 2^-6 bit
TRACE_SHIFT = 5  # of the product of a difference and a perturbation score

Ballots = dict[str, Array]  # votes by path, int32 of the tensors' shapes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Readings:
    """What direct connections learn from: every reading of their rows, instead of dense votes.

    Attributes:
      rows: by path of the table, int32 [J].
      errors_JV: onehot(target) - p, int8; 127 >> spare bits make 1.
    """

    rows: dict[str, Array]
    errors_JV: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Record:
    """What one token's reading leaves for the votes: of one token, or with a T axis in front.

    Attributes:
      inputs: by path, what the first member of every pair applied a tensor to: int8 [..., I, N];
        tokens, int32 [I], for an EMBEDDING, and rows for a DIRECT.
      effects: by path, difference of the two members' effects: int8 [..., I, E].
      difference_I: of their log-likelihoods, int32 in units of 2^-16 bit.
      logits_IV, targets_I, residual_ID, gain_ID: of the first member.
    """

    inputs: dict[str, Array]
    effects: dict[str, Array]
    difference_I: Array
    logits_IV: Array
    targets_I: Array
    residual_ID: Array
    gain_ID: Array


def estimator(es: EsConfig, role: Role) -> str:
    """Which of the four votes on tensors of a role."""
    if role is Role.VECTOR:
        return "eggroll"
    if role is Role.DIRECT:
        return EXACT
    if role is Role.READOUT:
        return EXACT if es.readout == "exact" else es.votes
    return EXACT if es.votes == "unit" and role is not Role.MATRIX else es.votes


def eggroll(es: EsConfig, noises: tuple[Array, Array | None], fitness_I: Array) -> Array:
    """Plain votes of one tensor. No member's A B^T is formed: one matmul over (pair, rank).

    Args:
      noises: (A [..., I, M, R], B [..., I, N, R]) or (n [..., I, N], None), int8.
      fitness_I: int8.

    Returns:
      int32 [..., M, N] or [..., N]. Contract: |Z| <= R I max|A| max|B| max|f| < 2^31, checked by
      `config.validate`.
    """
    left, right = noises
    # int8 operands where f A fits them: the matmul is then an int8 one
    dtype = jnp.int8 if FITNESS_MAX[es.fitness] * noise_max(es) <= INT8_MAX else jnp.int32
    fitness_I = fitness_I.astype(dtype)
    if right is None:
        return jnp.einsum(
            "...in,i->...n", left.astype(dtype), fitness_I, preferred_element_type=jnp.int32
        )
    weighted = left.astype(dtype) * fitness_I.reshape(*([1] * (left.ndim - 3)), -1, 1, 1)
    return jnp.einsum(
        "...imr,...inr->...mn", weighted, right.astype(dtype), preferred_element_type=jnp.int32
    )


def record(
    es: EsConfig,
    specs: Tree,
    activity: Activity,
    logits_PV: Array,
    targets_P: Array,
    log_likelihood_P: Array,
) -> Record:
    """What the votes need of one token."""
    uses, inputs, effects = dict(params.flatten(activity.uses)), {}, {}
    for path, spec in params.flatten(specs):
        kind = estimator(es, spec.role)
        if kind == "eggroll":
            continue
        use = uses[path]
        picks = spec.role in (Role.EMBEDDING, Role.DIRECT)
        inputs[path] = use.inputs[0::2] if picks else use.inputs[..., 0::2, :]
        if kind == "unit":
            assert use.effect is not None
            effect = use.effect.astype(jnp.int32)
            effects[path] = fixed.saturate(effect[..., 0::2, :] - effect[..., 1::2, :])
    return Record(
        inputs=inputs,
        effects=effects,
        difference_I=log_likelihood_P[0::2] - log_likelihood_P[1::2],
        logits_IV=logits_PV[0::2],
        targets_I=targets_P[0::2],
        residual_ID=activity.residual[0::2],
        gain_ID=activity.gain[0::2].astype(jnp.int8),
    )


def of_segment(
    es: EsConfig, specs: Tree, members: Tree, records: Record, pairs_I: Array, number: Array
) -> tuple[Ballots, Readings | None]:
    """Votes of one segment, on every tensor whose estimator is not the plain one.

    Of DIRECT tensors, which are far larger than what is read of them, the readings instead.

    Args:
      members: tree of the `perturb.Weight`s of the pairs.
      records: of `record`, stacked over the segment's T tokens.
      pairs_I: numbers of the pairs, int32. number: the step's, uint32 scalar.
    """
    rounding = Rounding(pairs_I, number, spare_bits(es))
    weights = dict(params.flatten(members))
    errors = credit_TID = None
    if es.readout == "exact":
        errors = credit.readout_errors(records.logits_IV, records.targets_I, rounding)
    if es.votes == "unit":
        assert errors is not None
        credit_TID = credit.of_stream(
            records.gain_ID, records.residual_ID, weights["head"].value, errors, rounding
        )

    def ballot(spec: Spec, weight: Weight, x: Array, effect: Array | None, value: Array | None):
        """Votes of a tensor, or of one layer of a stacked one; `value` is that of `through`."""
        if estimator(es, spec.role) == "trace":
            difference_TI1 = _difference(records, rounding)
            if spec.role is Role.EMBEDDING:
                return _scattered(spec, x, _trace_rows(weight, x, difference_TI1, rounding))
            return _trace(weight, x, difference_TI1, rounding)
        if spec.role is Role.READOUT:
            assert errors is not None
            return outer.outer(errors, x)
        assert credit_TID is not None
        if spec.role is Role.EMBEDDING:
            return _scattered(spec, x, rounding.operand(credit_TID, 0))
        if spec.role is Role.PROJECTION:
            return outer.outer(rounding.operand(credit_TID, 0), x)
        assert effect is not None
        credit_TIE = credit_TID
        if value is not None:
            credit_TIE = credit.through(value, credit_TID, rounding)
        return outer.outer(node.operand(weight, x, effect, credit_TIE, rounding), x)

    ballots, picked = {}, {}
    for path, spec in params.flatten(specs):
        if estimator(es, spec.role) == "eggroll":
            continue
        if spec.role is Role.DIRECT:
            # what reads padding reads a row past the table, of which nothing comes
            rows_TI = jnp.where(records.targets_I == NO_TARGET, spec.shape[0], records.inputs[path])
            picked[path] = rows_TI.reshape(-1)
            continue
        value = weights[spec.through].value if spec.through else None
        x, effect = records.inputs[path], records.effects.get(path)
        if not spec.layers:
            ballots[path] = ballot(spec, weights[path], x, effect, value)
            continue
        # one layer after another: [T, L, ...] -> [L, T, ...]
        x, effect = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), (x, effect))
        ballots[path] = jax.lax.map(
            lambda layer, spec=spec: ballot(spec, *layer), (weights[path], x, effect, value)
        )
    readings = None
    if picked:
        assert errors is not None
        readings = Readings(picked, errors.reshape(-1, errors.shape[-1]))
    return ballots, readings


# -- Parts -----------------------------------------------------------------------------------------


def _scattered(spec: Spec, tokens_TI: Array, row_TIN: Array) -> Array:
    """Sum of the rows by token: int32 [V, N]."""
    rows_JN = row_TIN.reshape(-1, row_TIN.shape[-1]).astype(jnp.int32)
    return jnp.zeros(spec.shape, jnp.int32).at[tokens_TI.reshape(-1)].add(rows_JN)


def _difference(records: Record, rounding: Rounding) -> Array:
    """Difference of the members' log-likelihoods, units of 2^-6 bit, in int8: int32 [T, I, 1]."""
    return rounding.narrowed(records.difference_I[..., None], DIFFERENCE_SHIFT).astype(jnp.int32)


def _trace(weight: Weight, x_TIN: Array, difference_TI1: Array, rounding: Rounding) -> Array:
    """sum_i A_i u_i^T with u_i = sum_t d (B x) x: int32 [M, N].

    d (B x) is rounded to int8, and so is u: a sum of T products of two numbers of 16 or so, of
    which 8 bits hold five deviations.
    """
    coefficient_TIR = rounding.narrowed(
        difference_TI1 * node.score(weight, x_TIN).astype(jnp.int32), TRACE_SHIFT
    )
    u_IRN = jnp.einsum("tir,tin->irn", coefficient_TIR, x_TIN, preferred_element_type=jnp.int32)
    bits = 3 + round(math.log2(x_TIN.shape[0]) / 2)
    u_IK = rounding.narrowed(u_IRN.reshape(1, len(u_IRN), -1), bits)[0]
    return jnp.einsum(
        "imr,irn->mn", weight.left, u_IK.reshape(u_IRN.shape), preferred_element_type=jnp.int32
    )


def _trace_rows(
    weight: Weight, tokens_TI: Array, difference_TI1: Array, rounding: Rounding
) -> Array:
    """What every token adds to its row of an embedding's votes, d A[token] B^T: int8 [T, I, N]."""
    assert weight.left is not None and weight.right is not None
    left_TIR = jnp.take_along_axis(weight.left[None], tokens_TI[..., None, None], axis=2)[:, :, 0]
    row_TIN = jnp.einsum("tir,inr->tin", left_TIR, weight.right, preferred_element_type=jnp.int32)
    row_TIN = fixed.saturate(fixed.shift_floor(row_TIN, 3 + node.root_bits(weight)))
    return rounding.operand(difference_TI1 * row_TIN.astype(jnp.int32), TRACE_SHIFT)
