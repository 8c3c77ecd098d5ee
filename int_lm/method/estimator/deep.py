"""`deep`: `local`, with credit that also comes from later layers and from the token after.

    local    what a number adds to the residual stream, as if no later layer read it
    deep     and what the later layers make of it, at this token and at the next one: they read the
             residual stream, the token shift reads the token before, time mixing reads the state

The architecture says how credit goes back through a block (`Architecture.credit`), in the
operations of `Back`. Layers are taken from the last to the first. All tokens of a segment are taken
at once: from the credit of a token, what the state owes to it goes back to the token before, and no
further. So nothing is unrolled in time. On the way, credit goes back through a linear by its
transposed weights, as in back-propagation, and through a nonlinearity by what a move of each output
changes (`layers.responses`): no function is differentiated, and every number is int8 or int32.

Of what back-propagation through 16 tokens gains over the skip path, credit from the present token
and the next one is nine tenths (docs/log.md, 2026-11-30, ceilings of credit).

Axes: T tokens of a segment, I voters, D width, M outputs, N inputs, E effects; L layers.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm import native
from int_lm.arithmetic.fixed import CREDIT_SUM_BITS, CREDIT_TERM_BITS
from int_lm.errors import require
from int_lm.limits import INT8_MAX, SEPARATOR
from int_lm.method.estimator import Estimator, Segment, TokenVotes, credit, skip
from int_lm.method.estimator.outer import outer
from int_lm.method.estimator.rounding import Rounding
from int_lm.model import layers
from int_lm.model.architecture import Architecture, Credit
from int_lm.model.layers import Use
from int_lm.model.params import Role, Spec, flatten
from int_lm.settings import StrategySettings

RESPONSE_BITS = 5  # a response is to a move of 2^5: `layers.RESPONSE_STEP` up and as much down
OPERATIONS_MOST = 64  # of a block that round, so that those of layers have different numbers
_UNITS = 8  # largest ratio of two units, in bits, that a sum allows for

assert 2 * layers.RESPONSE_STEP == 1 << RESPONSE_BITS


class Back:
    """`architecture.Back` for one layer of one segment.

    Args:
      rounding: the dithers of the segment. Every operation takes others, since each rounds what
        another one has rounded.
      starts_TI: whether a token is a separator, before which the state is put back, bool.
      layer: its index, int32 scalar.
    """

    def __init__(self, rounding: Rounding, starts_TI: Array, layer: Array):
        self._rounding = rounding
        self._starts_TI = starts_TI
        self._layer = layer
        self._operations = itertools.count(1)

    def _apart(self) -> Rounding:
        """The dithers of the next operation."""
        return self._rounding.apart(self._layer * OPERATIONS_MOST + next(self._operations))

    def through(self, weight: Any, of_outputs: Credit, finer: int = 0) -> Credit:
        """Through a linear: (credit W) / 2^shift, int8 [T, I, N]."""
        inputs, bits = weight.value.shape[-1], credit.THROUGH_BITS - finer
        shift = credit.through_shift(weight.value)
        operands = of_outputs.value, weight.value, shift, bits
        value, down = credit.through_projection(*operands, self._apart()), shift + bits
        return Credit(value, of_outputs.bits + down - layers.shift_for(inputs))

    def moved(self, *parts: tuple[Credit, Array], finer: int = 0) -> Credit:
        """From effects to the outputs in front of them: int8 [T, I, M]."""
        unit = parts[0][0].bits
        downs = [_down(one.bits - unit) for one, _ in parts[1:]]
        values = [(one.value, responses) for one, responses in parts]
        bits = CREDIT_SUM_BITS + RESPONSE_BITS - finer
        return Credit(to_outputs(values, downs, bits, self._apart()), unit - finer)

    def inward(self, of_outputs: Credit, outputs: Array) -> Credit:
        """Without what asks outputs of -127 to fall and those of 127 to rise: int8 [T, I, M]."""
        value = of_outputs.value
        outward = ((value > 0) & (outputs >= INT8_MAX)) | ((value < 0) & (outputs <= -INT8_MAX))
        return Credit(jnp.where(outward, jnp.int8(0), value), of_outputs.bits)

    def later(self, of_next: Credit) -> Credit:
        """To the token before, of the same document: int8 [T, I, D]; 0 for the segment's last."""
        return Credit(_before(of_next.value, self._starts_TI), of_next.bits)

    def norm(self, stream: Array, of_stream: Credit, normed: Credit, shift: Array) -> Credit:
        """The credit of a stream, of which a norm and a token shift are made: int8 [T, I, D]."""
        # 2^-4 is left of the shift's 2^-7; 16 / m of the norm is 4 times `norm_credit`'s 4 / m
        down = _down(normed.bits - of_stream.bits - 2)
        operands = stream, of_stream.value, normed.value, down, shift, self._starts_TI
        return Credit(to_stream(*operands, self._apart()), of_stream.bits)


@native.accelerated(cpu="to_outputs")
def to_outputs(
    parts: Sequence[tuple[Array, Array]], downs: Sequence[Array], bits: int, rounding: Rounding
) -> Array:
    """Credit of outputs: the sum over the parts of credit times response, int8 [T, I, M].

    Args:
      parts: credit of effects, int8 [T, I, E], and responses, int8 [T, I, M]; later parts may have
        responses of the first outputs alone.
      downs: for every part but the first, of `_down`.
      bits: number of low bits that the dither rounds off.
      rounding: the dithers of the segment.
    """
    total = credit.answered(*parts[0]) << CREDIT_SUM_BITS
    for part, down in zip(parts[1:], downs, strict=True):
        term = _term(credit.answered(*part), down)
        missing = total.shape[-1] - term.shape[-1]
        total = total + jnp.pad(term, ((0, 0), (0, 0), (0, missing)))
    return rounding.narrowed(total, bits)


@native.accelerated(cpu="to_stream")
def to_stream(
    stream_TID: Array,
    credit_TID: Array,
    normed_TID: Array,
    down: Array,
    shift_D: Array,
    starts_TI: Array,
    rounding: Rounding,
) -> Array:
    """Credit of a stream and of its norm after a token shift, as one: int8 [T, I, D].

    Args:
      stream_TID: int8 q4.
      credit_TID: of the stream without the norm, int8.
      normed_TID: credit of the norm after the token shift, int8.
      down: of `_down`, of the units of what `layers.norm_credit` makes of 16 times `normed_TID`.
      shift_D: weights of the token shift, int32, 0 to 127.
      starts_TI: whether a token begins a document, bool.
      rounding: the dithers of the segment.
    """
    normed = normed_TID.astype(jnp.int32)
    shift_11D = shift_D[None, None]
    own = (128 - shift_11D) * normed + shift_11D * _before(normed, starts_TI)
    own = (own + 4) >> 3  # below 2^12
    flat = stream_TID.reshape(-1, stream_TID.shape[-1])
    back = layers.norm_credit(layers.constant_gain(16, flat), flat, own.reshape(flat.shape))
    total = (credit_TID.astype(jnp.int32) << CREDIT_SUM_BITS) + _term(
        back.reshape(stream_TID.shape), down
    )
    return rounding.narrowed(total, CREDIT_SUM_BITS)


def _before(x_TIN: Array, starts_TI: Array) -> Array:
    """What the next token says, at this one; 0 where the next one begins a document."""
    kept = jnp.where(starts_TI[..., None], 0, x_TIN)
    return jnp.concatenate([kept[1:], jnp.zeros_like(kept[:1])])


def _down(bits: Array) -> Array:
    """The right shift of a term of a sum whose unit is 2^bits of the sum's: int32, -12 to 30.

    Args:
      bits: int32 scalar; above `_UNITS` it is taken for that.
    """
    return jnp.minimum(-jnp.minimum(bits, _UNITS) - CREDIT_SUM_BITS, 30)


def _term(x: Array, down: Array) -> Array:
    """x / 2^down, rounded half up, clipped to 20 bits: int32; |x| < 2^15."""
    most = (1 << CREDIT_TERM_BITS) - 1
    return jnp.clip(credit.shifted(x, down), -most, most)


def _record(spec: Spec, use: Use) -> Use:
    """What `Architecture.credit` needs of a tensor for one token, and its inputs."""
    if spec.role is not Role.MATRIX:
        return Use(use.inputs)
    return Use(use.inputs, None, use.responses, use.stream, use.state_responses, use.outputs)


def _check(architecture: Architecture, specs: dict[str, Spec]) -> None:
    """`TokenVotes.check`: credit must have a way back to every tensor.

    Raises:
      UserError: the architecture does not say how credit goes back, or has a MATRIX or PROJECTION
        outside its layers.
    """
    require(
        architecture.credit is not None,
        "es.votes deep needs an architecture that says how credit goes back through its blocks "
        "(Architecture.credit); use --es.votes local",
    )
    for path, spec in specs.items():
        require(
            spec.layers > 0 or spec.role is Role.EMBEDDING,
            f"es.votes deep takes credit through layers only, and {path} is outside of them; use "
            "--es.votes local",
        )


def _together(segment: Segment, specs: dict[str, Spec]) -> dict[str, Array]:
    """Votes on the EMBEDDING and on every MATRIX and PROJECTION, int32 by path."""
    through_block = segment.architecture.credit
    assert through_block is not None  # `_check`
    stacked = {path: spec for path, spec in specs.items() if spec.layers}
    (embedding,) = (path for path in specs if path not in stacked)
    tokens_TI = segment.tensors[embedding].inputs
    starts_TI = tokens_TI == SEPARATOR
    names = {path: path.split("/", 1)[1] for path in stacked}
    weights = dict(flatten(segment.network))

    def block(of_stream: Array, layer: Array) -> tuple[Array, dict[str, Array]]:
        own_weights = _at({names[path]: weights[path] for path in stacked}, layer, axis=0)
        own_uses = _at({names[path]: segment.tensors[path] for path in stacked}, layer, axis=1)
        back, after = Back(segment.rounding, starts_TI, layer), Credit(of_stream, jnp.int32(0))
        before, of_outputs = through_block(back, own_weights, own_uses, after)
        votes = {
            path: outer(segment.rounding.operand(of_outputs[name].value, 0), own_uses[name].inputs)
            for path, name in names.items()
        }
        return before.value, votes

    layers_L = jnp.arange(next(iter(stacked.values())).layers, dtype=jnp.int32)
    before_TID, sums = jax.lax.scan(block, skip.prepare(segment), layers_L, reverse=True)
    votes = skip.votes(specs[embedding], tokens_TI, before_TID, segment.rounding)
    return sums | {embedding: votes}


def _at(tree: Any, layer: Array, axis: int) -> Any:
    """The arrays of one layer, without the axis of layers."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, axis, keepdims=False), tree
    )


def _sums(es: StrategySettings, specs: dict[str, Spec]) -> list[tuple[str, int]]:
    """`Estimator.sums`: those along the skip path, and of credit back through the most outputs."""
    most = max(spec.shape[-2] for spec in specs.values() if spec.role is not Role.EMBEDDING)
    return [*skip.sums(es, specs), (f"credit of {most} outputs", credit.through_sum(most))]


DEEP = Estimator(
    roles=frozenset({Role.MATRIX, Role.PROJECTION, Role.EMBEDDING}),
    perturbed=frozenset(),
    of_fitness=None,
    of_tokens=TokenVotes(
        _record, needs_errors=True, needs="stream", together=_together, check=_check
    ),
    sums=_sums,
    operations=skip.operations,
)
