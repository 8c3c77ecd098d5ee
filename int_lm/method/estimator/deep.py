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

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.errors import UserError
from int_lm.limits import SEPARATOR
from int_lm.method.estimator import Estimator, Segment, TokenVotes, credit, skip
from int_lm.method.estimator.outer import outer
from int_lm.method.estimator.rounding import Rounding
from int_lm.model import layers
from int_lm.model.architecture import Credit
from int_lm.model.layers import Use
from int_lm.model.params import Role, Spec, flatten

RESPONSE_BITS = 5  # a response is to a move of 2^5: `layers.RESPONSE_STEP` up and as much down
SUM_BITS = 4  # fractional bits of a sum of credits before it is rounded
_UNITS = 8  # largest ratio of two units, in bits, that a sum allows for
_MOST = (1 << 20) - 1  # of a term of a sum

assert 2 * layers.RESPONSE_STEP == 1 << RESPONSE_BITS


class Back:
    """`architecture.Back` for one segment.

    Args:
      rounding: the dithers of the segment.
      starts_TI: whether a token is a separator, before which the state is put back, bool.
    """

    def __init__(self, rounding: Rounding, starts_TI: Array):
        self._rounding = rounding
        self._keeps_TI1 = ~starts_TI[..., None]

    def through(self, weight: Any, of_outputs: Credit) -> Credit:
        """Through a linear: (credit W) / 2^shift, int8 [T, I, N]."""
        inputs = weight.value.shape[-1]
        value = credit.through(weight.value, of_outputs.value, self._rounding)
        down = credit.through_shift(weight.value) + credit.THROUGH_BITS
        return Credit(value, of_outputs.bits + down - layers.shift_for(inputs))

    def moved(self, *parts: tuple[Credit, Array]) -> Credit:
        """From effects to the outputs in front of them: int8 [T, I, M]."""
        (first, first_responses), *others = parts
        total = self._answered(first, first_responses) << SUM_BITS
        for one, responses in others:
            term = self._answered(one, responses)
            term = _in_units(term, one.bits - first.bits)
            missing = total.shape[-1] - term.shape[-1]
            total = total + jnp.pad(term, ((0, 0), (0, 0), (0, missing)))
        bits = SUM_BITS + RESPONSE_BITS
        return Credit(self._rounding.narrowed(total, bits), first.bits)

    def later(self, of_next: Credit) -> Credit:
        """To the token before, of the same document: int8 [T, I, D]; 0 for the segment's last."""
        return Credit(self._before(of_next.value), of_next.bits)

    def norm(self, stream: Array, of_stream: Credit, normed: Credit, shift: Array) -> Credit:
        """The credit of a stream, of which a norm and a token shift are made: int8 [T, I, D]."""
        value = normed.value.astype(jnp.int32)
        own = (128 - shift) * value + shift * self._before(normed.value).astype(jnp.int32)
        own = (own + 4) >> 3  # below 2^12
        flat = stream.reshape(-1, stream.shape[-1])
        gain = layers.constant_gain(16, flat)
        back = layers.norm_credit(gain, flat, own.reshape(flat.shape)).reshape(stream.shape)
        # 2^-4 is left of the shift's 2^-7; 16 / m of the norm is 4 times `norm_credit`'s 4 / m
        term = _in_units(back, normed.bits - of_stream.bits - 2)
        total = (of_stream.value.astype(jnp.int32) << SUM_BITS) + term
        return Credit(self._rounding.narrowed(total, SUM_BITS), of_stream.bits)

    def _answered(self, of_effects: Credit, responses: Array) -> Array:
        """Credit times response of every output, int32 [T, I, M], |.| < 2^14."""
        groups = responses.shape[-1] // of_effects.value.shape[-1]
        tiled = jnp.concatenate([of_effects.value] * groups, axis=-1).astype(jnp.int32)
        return tiled * responses.astype(jnp.int32)

    def _before(self, x_TIN: Array) -> Array:
        """What the next token says, at this one; 0 where the next one begins a document."""
        kept = jnp.where(self._keeps_TI1, x_TIN, 0)
        return jnp.concatenate([kept[1:], jnp.zeros_like(kept[:1])])


def _in_units(x: Array, bits: Array) -> Array:
    """x 2^bits in units of 2^-SUM_BITS, rounded half up, clipped to 20 bits: int32.

    Args:
      x: int32, below 2^15 in magnitude.
      bits: int32 scalar; above `_UNITS` it is taken for that.
    """
    down = -jnp.minimum(bits, _UNITS) - SUM_BITS
    return jnp.clip(credit.shifted(x, jnp.minimum(down, 30)), -_MOST, _MOST)


def _record(spec: Spec, use: Use) -> Use:
    """What `Architecture.credit` needs of a tensor for one token, and its inputs."""
    if spec.role is not Role.MATRIX:
        return Use(use.inputs)
    return Use(use.inputs, None, use.responses, use.stream, use.state_responses)


def _together(segment: Segment, specs: dict[str, Spec]) -> dict[str, Array]:
    """Votes on the EMBEDDING and on every MATRIX and PROJECTION, int32 by path.

    Raises:
      UserError: the architecture does not say how credit goes back, or has tensors of other roles
        than READOUT outside its layers.
    """
    through_block = segment.architecture.credit
    stacked = {path: spec for path, spec in specs.items() if spec.layers}
    if through_block is None or len(stacked) + 1 != len(specs):
        raise UserError(
            "es.votes deep needs an architecture that says how credit goes back through its blocks "
            "(Architecture.credit), such as rwkv; use --es.votes local"
        )
    back = Back(segment.rounding, segment.tokens_TI == SEPARATOR)
    names = {path: path.split("/", 1)[1] for path in stacked}
    weights = dict(flatten(segment.network))
    uses = {path: _layers_first(segment.tensors[path]) for path in stacked}

    def block(of_stream: Array, layer: Any) -> tuple[Array, dict[str, Array]]:
        own_weights, own_uses = layer
        before, of_outputs = through_block(
            back,
            {names[path]: weight for path, weight in own_weights.items()},
            {names[path]: use for path, use in own_uses.items()},
            Credit(of_stream, jnp.int32(0)),
        )
        votes = {
            path: outer(segment.rounding.operand(of_outputs[name].value, 0), own_uses[path].inputs)
            for path, name in names.items()
        }
        return before.value, votes

    own_weights = {path: weights[path] for path in stacked}
    before_TID, sums = jax.lax.scan(block, skip.prepare(segment), (own_weights, uses), reverse=True)
    (embedding,) = (path for path in specs if path not in stacked)
    tokens_TI = segment.tensors[embedding].inputs
    votes = skip.votes(specs[embedding], tokens_TI, before_TID, segment.rounding)
    return sums | {embedding: votes}


def _layers_first(records: Any) -> Any:
    """Records [T, L, ...] as [L, T, ...]."""
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), records)


DEEP = Estimator(
    roles=frozenset({Role.MATRIX, Role.PROJECTION, Role.EMBEDDING}),
    perturbed=frozenset(),
    of_fitness=None,
    of_tokens=TokenVotes(_record, needs_errors=True, needs="stream", together=_together),
    sums=skip.sums,
    operations=skip.operations,
)
