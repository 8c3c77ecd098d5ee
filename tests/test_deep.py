"""Votes `deep` equal the oracle's, operation by operation; and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest

from int_lm import plugins
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.errors import UserError
from int_lm.limits import INT32_MAX, SEPARATOR, spare_bits
from int_lm.method import recipe, token_votes
from int_lm.method.clock import Clock
from int_lm.method.estimator import credit
from int_lm.method.estimator.deep import DEEP, Back
from int_lm.method.estimator.rounding import Rounding
from int_lm.model import params, rwkv
from int_lm.model.architecture import Credit
from int_lm.model.layers import Use
from int_lm.model.params import Parameters
from int_lm.model.perturb import Weight

LENGTH, WIDTH, VOCABULARY, STEP = 5, 8, 11, 5
MODEL = ModelConfig(architecture="rwkv", width=WIDTH, layers=3, ffn_multiple=4)
PAIRS = np.array([7, 0])
NUMBERS = np.array([14, 15, 0, 1])  # of the voters
PLACE = oracle.votes.Place(NUMBERS.tolist(), STEP, 0)
KINDS = ["random", "small", "ends", "zeros"]
UNITS = [-45, -31, -27, -12, -5, -4, -1, 0, 1, 7, 8, 9, 30]  # of one credit over another, in bits

Draw = Any  # (shape) -> int64 array


def drawing(kind: str, seed: int = 0) -> Draw:
    """Numbers of int8: all of them, those near 0, the ends, or 0."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        if kind == "ends":
            return random.choice([-127, 127], shape)
        most = {"random": 127, "small": 2, "zeros": 0}[kind]
        return random.integers(-most, most + 1, shape)

    return draw


def tokens_of(kind: str) -> np.ndarray:
    """Tokens with a separator in each place but one, or everywhere where all is 0."""
    if kind == "zeros":
        return np.zeros((LENGTH, len(NUMBERS)), np.int64)
    tokens = np.arange(LENGTH * len(NUMBERS)).reshape(LENGTH, -1) % (VOCABULARY - 1) + 1
    tokens[[0, 2, 2, 4], [0, 1, 2, 3]] = SEPARATOR
    return tokens


def int8(x: Any) -> jax.Array:
    return jnp.asarray(np.asarray(x, np.int8))


def back(tokens_TI: jax.Array, layer: int = 0) -> Back:
    rounding = Rounding(jnp.asarray(NUMBERS.astype(np.int32)), jnp.uint32(STEP), 0)
    return Back(rounding, tokens_TI == SEPARATOR, jnp.int32(layer))


def place_of(number: int) -> oracle.votes.Place:
    """Of the dithers of an operation of layer 0."""
    return oracle.deep.apart(PLACE, number)


def assert_same(found: Credit, expected: oracle.deep.Credit) -> None:
    assert found.value.dtype == jnp.int8 and found.bits.dtype == jnp.int32
    np.testing.assert_array_equal(found.value, expected.value)
    assert int(found.bits) == expected.bits


# -- One operation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs, inputs", [(8, 32), (24, 16), (1, 3)])
def test_credit_through_a_linear_equals_the_oracle(outputs: int, inputs: int) -> None:
    """Its value and its unit, with weights of any size, and one weight alone."""

    @jax.jit
    def through(value: jax.Array, of_outputs: jax.Array, bits: jax.Array) -> Credit:
        return back(jnp.asarray(tokens_of("random"))).through(
            Weight(value, None, None, shift=7), Credit(of_outputs, bits), finer=outputs % 5
        )

    for kind in KINDS:
        draw = drawing(kind)
        lone = np.zeros((outputs, inputs), np.int64)
        lone[0, -1] = 127
        for value in (draw(outputs, inputs), lone):
            for of_outputs in (
                draw(LENGTH, len(NUMBERS), outputs),
                drawing("ends")(LENGTH, 4, outputs),
            ):
                of_both = oracle.deep.Credit(of_outputs, -3)
                expected = oracle.deep.through(place_of(1), value, of_both, outputs % 5)
                assert_same(through(int8(value), int8(of_outputs), jnp.int32(-3)), expected)


@jax.jit
def moved_of(values: Any, responses: Any, bits: Any) -> tuple[Credit, Credit, Credit]:
    """Of one part, of two in a finer unit, and of two with the dithers of the first."""
    parts = [(Credit(v, b), r) for v, r, b in zip(values, responses, bits, strict=True)]
    operations = back(jnp.asarray(tokens_of("random")))
    alone, together = operations.moved(parts[0]), operations.moved(*parts, finer=2)
    return alone, together, back(jnp.asarray(tokens_of("random"))).moved(*parts)


@pytest.mark.parametrize("kind", KINDS)
def test_credit_of_outputs_equals_the_oracle(kind: str) -> None:
    """Of one effect, and of two in units that differ by any number of bits; the second one is
    clipped, and says nothing of the last outputs."""
    draw, shape, moving = drawing(kind), (LENGTH, len(NUMBERS)), []
    values = draw(*shape, 8), drawing("random", 1)(*shape, 8)
    responses = draw(*shape, 24), drawing("ends", 1)(*shape, 16)
    parts = [int8(v) for v in values], [int8(r) for r in responses]
    for unit in UNITS:
        both = [
            (oracle.deep.Credit(value, bits), answers)
            for value, bits, answers in zip(values, (-2, unit - 2), responses, strict=True)
        ]
        alone, together, whole = moved_of(*parts, [jnp.int32(-2), jnp.int32(unit - 2)])
        assert_same(alone, oracle.deep.moved(place_of(1), both[0]))
        assert_same(together, oracle.deep.moved(place_of(2), *both, finer=2))
        moving.append(bool(np.any(np.asarray(alone.value) != np.asarray(whole.value))))
        np.testing.assert_array_equal(whole.value[..., 16:], alone.value[..., 16:])
    assert not moving[0] and moving[-1]


@jax.jit
def normed_of(stream: Any, of_stream: Any, normed: Any, bits: Any, shift: Any, tokens: Any):
    return back(tokens).norm(stream, Credit(of_stream, jnp.int32(2)), Credit(normed, bits), shift)


@pytest.mark.parametrize("kind", KINDS)
def test_credit_through_a_norm_and_a_token_shift_equals_the_oracle(kind: str) -> None:
    """Shifts from 0 to 127; streams at 0, at their ends and between; units of any difference."""
    shape, other = (LENGTH, len(NUMBERS), WIDTH), drawing("random", 1)
    tokens = tokens_of("random")
    mixed = rwkv.shift_weights(WIDTH).tolist()
    assert (mixed[0], mixed[-1]) == (0, 127)
    for stream in (drawing(kind)(*shape), other(*shape)):
        of_stream, normed = other(*shape), drawing(kind, 2)(*shape)
        for number, unit in enumerate(UNITS):
            mu = [mixed, [0] * WIDTH, [127] * WIDTH][number % 3]
            found = normed_of(
                *map(int8, (stream, of_stream, normed)),
                jnp.int32(unit + 2),
                jnp.asarray(mu),
                jnp.asarray(tokens),
            )
            parts = oracle.deep.Credit(of_stream, 2), oracle.deep.Credit(normed, unit + 2)
            assert_same(found, oracle.deep.norm(place_of(1), tokens, stream, *parts, mu))


def test_outputs_at_an_end_are_moved_inward_alone() -> None:
    """All credits of all outputs: those at +-127 lose what has their own sign, others nothing."""
    value, outputs = np.meshgrid(np.arange(-127, 128), [-127, -126, 0, 126, 127])
    credit = oracle.deep.Credit(value[:, None], -3)
    expected = oracle.deep.inward(credit, outputs[:, None])
    assert_same(
        back(jnp.asarray(tokens_of("random"))).inward(
            Credit(int8(value[:, None]), jnp.int32(-3)), int8(outputs[:, None])
        ),
        expected,
    )
    assert (expected.value != credit.value).sum() == 2 * 127


def test_credit_of_the_token_after_stays_in_its_document() -> None:
    """A segment's last token has none, nor has a token before a separator."""
    value = drawing("ends")(LENGTH, len(NUMBERS), 3)
    for kind in ("random", "zeros"):
        tokens = tokens_of(kind)
        found = back(jnp.asarray(tokens)).later(Credit(int8(value), jnp.int32(-7)))
        assert int(found.bits) == -7 and found.value.dtype == jnp.int8
        expected = oracle.deep.at_next(value, tokens)
        np.testing.assert_array_equal(found.value, expected)
        reached = np.any(expected, axis=-1)
        assert not reached[-1].any() and not reached[tokens == 0].all()
        ends = np.argwhere(tokens[1:] == SEPARATOR)
        assert len(ends) and not reached[:-1][tokens[1:] == SEPARATOR].any()
        assert reached[:-1][tokens[1:] != SEPARATOR].all()


# -- A block and a segment -------------------------------------------------------------------------


def parts_of(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values by path and records of a segment, at random; int64."""
    draw, voters = drawing(kind, 3), len(NUMBERS)
    values, inputs, answers, streams = {}, {"embedding": tokens_of(kind)}, {}, {}
    for path, spec in params.flatten(rwkv.specs(MODEL, VOCABULARY)):
        values[path] = draw(*spec.full_shape)
        if path == "embedding":
            continue
        stacked = (spec.layers,) if spec.layers else ()
        inputs[path] = draw(LENGTH, *stacked, voters, spec.shape[1])
        if spec.role is params.Role.MATRIX:
            answers[path] = draw(LENGTH, *stacked, voters, spec.shape[0])
            streams[path] = draw(LENGTH, *stacked, voters, WIDTH)
    state = {"layers/time_mixing": draw(LENGTH, MODEL.layers, voters, 2 * WIDTH)}
    gates = drawing("random", 5)(LENGTH, MODEL.layers, voters, 3 * WIDTH)
    gates[..., ::3] = drawing("ends", 6)(*gates[..., ::3].shape)
    targets = np.random.default_rng(4).integers(0, VOCABULARY, (LENGTH, voters))
    targets[1, 0] = token_votes.NO_TARGET
    return values, {
        "inputs": inputs,
        "effects": {},
        "answers": answers,
        "difference": np.zeros((LENGTH, voters), np.int64),
        "logits": draw(LENGTH, voters, VOCABULARY) * 3,
        "targets": targets,
        "residual": draw(LENGTH, voters, WIDTH),
        "gain": np.full((LENGTH, voters, WIDTH), 16),
        "streams": streams,
        "of_state": state,
        "outputs": {"layers/time_mixing": gates},
    }


def uses_of(records: dict[str, Any]) -> dict[str, Use]:
    """The same as the library's records, by path."""
    fields = [records[name] for name in ("inputs", "answers", "streams", "of_state", "outputs")]
    return {
        path: Use(
            jnp.asarray(x, jnp.int32) if path == "embedding" else int8(x),
            None,
            *(found if found is None else int8(found) for found in rest),
        )
        for path in records["inputs"]
        for x, *rest in [[field.get(path) for field in fields]]
    }


@jax.jit
def through_block(weights: Any, uses: Any, of_stream: jax.Array, bits: jax.Array, tokens: Any):
    weights = {name: Weight(value, None, None, shift=7) for name, value in weights.items()}
    return rwkv.credit(back(tokens, 1), weights, uses, Credit(of_stream, bits))


@pytest.mark.parametrize("kind", KINDS)
def test_credit_through_a_block_equals_the_oracle(kind: str) -> None:
    """Of the stream before it and of every tensor's outputs; the stream's unit is any."""
    values, records = parts_of(kind)
    layer, names = 1, ("channel_key", "channel_value", "time_mixing")
    of_layer = {name: values[f"layers/{name}"][layer] for name in names}
    uses = {
        name: jax.tree.map(lambda leaf: leaf[:, layer], uses_of(records)[f"layers/{name}"])
        for name in names
    }
    of_stream, tokens = drawing(kind, 9)(LENGTH, len(NUMBERS), WIDTH), tokens_of(kind)
    for bits in (0, 3):
        weights = {name: int8(value) for name, value in of_layer.items()}
        operands = int8(of_stream), jnp.int32(bits), jnp.asarray(tokens)
        before, outputs = through_block(weights, uses, *operands)
        expected, expected_outputs = oracle.deep.of_block(
            PLACE,
            layer,
            tokens,
            of_layer,
            {
                name: records["answers"][f"layers/{name}"][:, layer]
                for name in names
                if name != "channel_value"
            },
            records["of_state"]["layers/time_mixing"][:, layer],
            records["outputs"]["layers/time_mixing"][:, layer],
            {
                name: records["streams"][f"layers/{name}"][:, layer]
                for name in names
                if name != "channel_value"
            },
            oracle.deep.Credit(of_stream, bits),
        )
        assert_same(before, expected)
        assert set(outputs) == set(expected_outputs) == set(names)
        for name in names:
            assert_same(outputs[name], expected_outputs[name])
        assert kind == "zeros" or len({tuple(np.unique(o.value)) for o in outputs.values()}) > 1


of_segment = jax.jit(token_votes.votes, static_argnums=0)


@pytest.mark.parametrize("kind", KINDS)
def test_deep_votes_of_a_large_population_equal_the_oracle(kind: str) -> None:
    """All layers, where operands spare bits; whole steps, which spare none, are in test_step.py."""
    es = EsConfig(
        population=2**17, members_per_stream=1, segment_length=16, votes="deep", readout="exact"
    )
    config = Config(model=MODEL, es=es)
    place = oracle.votes.Place(NUMBERS.tolist(), STEP, spare_bits(es))
    assert place.spare == 4
    values, records = parts_of(kind)
    tree = params.unflatten(
        {path: Weight(int8(value), None, None, shift=7) for path, value in values.items()}
    )
    tensors: dict[str, Any] = {
        path: use if path.startswith("layers/") or path == "embedding" else use.inputs
        for path, use in uses_of(records).items()
    }
    kept = token_votes.Record(
        tensors=tensors,
        rows={},
        cache=None,
        difference_I=None,
        logits_IV=jnp.asarray(records["logits"].astype(np.int16)),
        targets_I=jnp.asarray(records["targets"].astype(np.int32)),
        residual_ID=int8(records["residual"]),
        gain_ID=int8(records["gain"]),
    )
    clock = Clock(jnp.uint32(0), jnp.uint32(STEP))
    of_recipe = presets.resolved(config, VOCABULARY)
    found, _ = of_segment(
        of_recipe, Parameters(tree), kept, jnp.asarray(PAIRS.astype(np.int32)), clock
    )
    of_oracle = oracle.votes.Records(**records)
    members = {path: (value,) for path, value in values.items()}
    expected, errors = oracle.votes.token_votes(config, VOCABULARY, members, of_oracle, place)
    assert errors is not None and set(expected) == {"head"}
    expected |= oracle.deep.token_votes(place, of_oracle, members, errors)
    assert set(found) == set(expected)
    for path, sums in found.items():
        assert sums.dtype == jnp.int32
        np.testing.assert_array_equal(sums, expected[path], path)
        assert kind == "zeros" or np.any(expected[path]), path
        if path.startswith("layers/") and kind == "random":
            assert all(map(np.any, expected[path])), path


# -- What is refused, and limits -------------------------------------------------------------------


def settings(model: dict[str, Any] | None = None, **es: Any) -> Config:
    """A small configuration with votes deep."""
    fields = {"architecture": "rwkv", "width": WIDTH, "layers": 2, **(model or {})}
    voting = {"votes": "deep", "readout": "exact", "members_per_stream": 1, **es}
    return Config(model=ModelConfig(**fields), es=EsConfig(**voting))


@pytest.mark.parametrize(
    "changed, problem",
    [
        (
            settings({"architecture": "egg"}),
            r"\(Architecture.credit\); use --es.votes",
        ),
        (settings({"architecture": "egg"}, members_per_stream=2), "how credit goes back"),
        (settings({"architecture": "plugins.gru:GRU"}), "how credit goes back through its blocks"),
        (settings(members_per_stream=2), "es.votes deep perturbs nothing"),
        (settings(readout="perturbed"), "es.votes deep needs the readout's exact errors"),
        (settings(objective="plugins.hits:HITS"), "which es.votes deep .* need; use --es.votes"),
        (settings(population=2**18, segment_length=64), "the votes of 262144 members over 64"),
    ],
)
def test_what_deep_votes_cannot_do_is_refused(changed: Config, problem: str) -> None:
    """Before anything is compiled."""
    plugins.trust_settings(changed)
    recipe.check(settings())
    with pytest.raises(UserError, match=problem) as found:
        recipe.check(changed)
    assert "\n" not in str(found.value)


def test_tensors_without_a_way_back_are_refused() -> None:
    """By path: a MATRIX outside of layers, in an architecture that says how credit goes back."""
    specs = dict(params.flatten(rwkv.specs(MODEL, VOCABULARY)))
    check = DEEP.of_tokens.check  # type: ignore[union-attr]
    assert check is not None
    voted = {path: spec for path, spec in specs.items() if path != "head"}
    check(rwkv.RWKV, voted)
    outside = voted | {"dense": params.Spec((WIDTH, WIDTH), params.Role.MATRIX)}
    with pytest.raises(UserError, match="through layers only, and dense is outside of them"):
        check(rwkv.RWKV, outside)


def test_credit_through_the_most_outputs_fits() -> None:
    """As many as the bound allows, all at the ends; the least weights are shifted to the left."""
    most = max(n for n in range(2**17 - 2**10, 2**17 + 2**11) if credit.through_sum(n) <= INT32_MAX)
    specs = {
        "embedding": params.Spec((VOCABULARY, WIDTH), params.Role.EMBEDDING),
        "layers/wide": params.Spec((most + 1, WIDTH), params.Role.MATRIX, layers=1),
    }
    found = DEEP.sums(settings().es, specs)
    assert (f"credit of {most + 1} outputs", credit.through_sum(most + 1)) in found
    place = oracle.votes.Place([0], 0, 0)
    rounding = Rounding(jnp.zeros(1, jnp.int32), jnp.uint32(0), 0)
    column = np.zeros((1024, 2033), np.int64)
    column[:, -1] = 127  # of the least level, whatever its sum
    for value in (np.full((most, 1), 127), column):
        full = np.full((1, 1, len(value)), -127)
        found_credit = credit.through(int8(value), int8(full), rounding)
        np.testing.assert_array_equal(found_credit, oracle.votes.through(place, value, full))
        assert int(np.min(found_credit)) == -127
