"""`egg`: each part and a whole token equal the oracle; documents and members stand apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import presets
import pytest

from int_lm.model import egg, layers, params, perturb, reading
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters
from int_lm.model.perturb import Weight

WIDTH, VOCABULARY = 8, 11
MODEL = presets.egg(width=WIDTH, layers=2)
LANGUAGE_MODEL = LanguageModel(MODEL, VOCABULARY)
read = functools.partial(jax.jit(reading.measured, static_argnums=0), LANGUAGE_MODEL)


@jax.jit
def step(weights: params.Tree, state: params.Tree, tokens_P: jax.Array):
    """A token read: the separator's reset, then the architecture's step."""
    return LANGUAGE_MODEL.step(Parameters(weights), state, tokens_P)


def extreme(random: np.random.Generator, shape: tuple[int, ...], most: int = 127) -> np.ndarray:
    """Random int8 values up to `most`."""
    return random.integers(-most, most + 1, shape).astype(np.int8)


def weights_of(seed: int, most: int = 127) -> params.Tree:
    """Random weights of MODEL, as large as `most`."""
    random = np.random.default_rng(seed)
    return params.map_leaves(
        lambda spec: jnp.asarray(extreme(random, spec.full_shape, most)),
        egg.specs(MODEL, VOCABULARY),
    )


def bare_member(weights: params.Tree) -> dict:
    """Weights as the oracle's unperturbed member."""
    member = oracle.plain(weights)
    for path, (kind, _, stacked) in oracle.tensors(MODEL, VOCABULARY).items():
        if kind == "matrix":
            value = member[path]
            member[path] = [oracle.bare(v) for v in value] if stacked else oracle.bare(value)
    return member


def test_specs_are_the_tensors_of_the_equations():
    """Paths, shapes, layers and numbers agree with the oracle's table."""
    specs = egg.specs(MODEL, VOCABULARY)
    numbers = params.tensor_ids(Parameters(specs))
    expected = oracle.tensors(MODEL, VOCABULARY)
    assert list(numbers) == list(expected)
    for path, spec in params.flatten(specs):
        kind, shape, layers = expected[path]
        assert (spec.shape, spec.layers) == (shape, layers)
        assert (spec.role is params.Role.VECTOR) == (kind == "vector")
    owned = {path: number for path, layer, number, *_ in oracle.numbered(MODEL, VOCABULARY)[::-1]}
    assert numbers == owned


@pytest.mark.parametrize("most", [2, 20, 127])
def test_cell_and_block_equal_the_oracle(most: int):
    """Inputs and states at random, zero and all +-127; weights up to the most there is."""
    random = np.random.default_rng(most)
    weights = weights_of(most, most)
    layer = {name: leaf[0] for name, leaf in weights["layers"].items()}
    bare = {k.removeprefix("layers/"): v[0] for k, v in bare_member(weights).items() if "/" in k}
    x, state = extreme(random, (12, WIDTH)), extreme(random, (12, WIDTH))
    for row, (level, state_level) in enumerate([(127, 127), (127, -127), (-127, 127), (0, 0)]):
        x[row], state[row] = level, state_level
    member = {name: Weight(leaf) for name, leaf in layer.items()}
    following, _ = jax.jit(egg.cell)(member, jnp.asarray(x), jnp.asarray(state))
    outputs, block_state, uses = jax.jit(egg.block)(member, jnp.asarray(x), jnp.asarray(state))
    assert {a.dtype for a in (following, outputs, block_state)} == {jnp.dtype(jnp.int8)}
    for row in range(len(x)):
        inputs = x[row].tolist(), state[row].tolist()
        assert following[row].tolist() == oracle.cell(bare, *inputs)
        expected = oracle.block(bare, *inputs)
        assert (outputs[row].tolist(), block_state[row].tolist()) == expected
        used = {
            path: [leaf[row].tolist() for leaf in jax.tree.leaves(use)]
            for path, use in uses.items()
        }
        assert used == oracle.egg.uses_of(bare, *inputs)


@pytest.mark.parametrize("seed, most", [(0, 8), (1, 40), (2, 127)])
def test_step_equals_the_oracle(seed: int, most: int):
    """State and logits of several members over several tokens, a separator among them."""
    weights = weights_of(seed, most)
    members, bare = perturb.unperturbed(Parameters(weights)).network, bare_member(weights)
    state = {"cell": jnp.asarray(extreme(np.random.default_rng(seed), (2, 3, WIDTH)))}
    plain = [{"cell": state["cell"][:, p].tolist()} for p in range(3)]
    kinds = oracle.tensors(MODEL, VOCABULARY).items()
    matrices = {path for path, (kind, _, _) in kinds if kind == "matrix"}
    for tokens in ([5, 0, 10], [1, 2, 3], [0, 0, 4]):
        state, logits, activity = step(members, state, jnp.array(tokens, jnp.int32))
        assert logits.dtype == jnp.int8 and logits.shape == (3, VOCABULARY)
        assert activity.gain.tolist() == [weights["final_norm"].tolist()] * 3
        head = layers.norm(activity.gain, activity.residual)
        np.testing.assert_array_equal(activity.uses["head"].inputs, head)
        assert activity.uses["embedding"].inputs.tolist() == tokens
        assert set(dict(params.flatten(activity.uses))) == matrices
        for p, token in enumerate(tokens):
            plain[p], expected, *_ = oracle.read_token(MODEL, bare, plain[p], token)
            assert logits[p].tolist() == expected
            assert state["cell"][:, p].tolist() == plain[p]["cell"]


def log_likelihoods(weights: params.Tree, tokens_PT: np.ndarray, state=None) -> np.ndarray:
    """[T, P] of the bare model, from a document's start unless told."""
    state = state or egg.initial_state(MODEL, len(tokens_PT))
    return np.asarray(
        read(perturb.unperturbed(Parameters(weights)), state, jnp.asarray(tokens_PT))[1]
    )


def test_no_token_changes_what_came_before_it():
    """Causality: a later token changes its own likelihood and later ones, never an earlier one."""
    weights = weights_of(3, 30)
    tokens = np.random.default_rng(3).integers(1, VOCABULARY, (1, 13))
    plain = log_likelihoods(weights, tokens)
    changed_after = False
    for place in range(1, 13):
        other = tokens.copy()
        other[0, place] = tokens[0, place] % (VOCABULARY - 1) + 1
        changed = log_likelihoods(weights, other)
        np.testing.assert_array_equal(changed[: place - 1], plain[: place - 1])
        changed_after |= bool(np.any(changed[place:] != plain[place:]))
    assert changed_after


def test_a_separator_forgets_everything_before_it():
    """After byte 0 the likelihoods are those of a fresh start; before it the past counts."""
    weights, random = weights_of(4, 30), np.random.default_rng(4)
    document = random.integers(1, VOCABULARY, 9)
    pasts = [random.integers(1, VOCABULARY, 6) for _ in range(5)]
    fresh = log_likelihoods(weights, np.concatenate([[0], document])[None])
    joined = np.stack([np.concatenate([past, [0], document]) for past in pasts])
    np.testing.assert_array_equal(log_likelihoods(weights, joined)[6:], np.repeat(fresh, 5, axis=1))
    unseparated = np.stack([np.concatenate([past, document]) for past in pasts])
    assert len(set(map(tuple, log_likelihoods(weights, unseparated)[6:].T.tolist()))) > 1
    state = {"cell": jnp.full((2, 1, WIDTH), 127, jnp.int8)}
    from_elsewhere = log_likelihoods(weights, np.concatenate([[0], document])[None], state)
    np.testing.assert_array_equal(from_elsewhere, fresh)


def test_members_of_a_batch_do_not_see_each_other():
    """Every row of a batch gets the likelihoods that it gets alone, and its own state."""
    weights = weights_of(5, 30)
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (4, 10))
    together = log_likelihoods(weights, tokens)
    for p in range(4):
        np.testing.assert_array_equal(together[:, p : p + 1], log_likelihoods(weights, tokens[[p]]))


def test_state_carries_over_between_segments():
    """Two segments with the state passed on equal one long segment."""
    weights = perturb.unperturbed(Parameters(weights_of(6, 30)))
    tokens = jnp.asarray(np.random.default_rng(6).integers(0, VOCABULARY, (2, 11)))
    end, whole = read(weights, egg.initial_state(MODEL, 2), tokens)
    middle, first = read(weights, egg.initial_state(MODEL, 2), tokens[:, :6])
    last, second = read(weights, middle, tokens[:, 5:])
    np.testing.assert_array_equal(whole, np.concatenate([first, second]))
    np.testing.assert_array_equal(end["cell"], last["cell"])
