"""`rwkv`: a whole token equals the oracle, bare and perturbed; members and documents apart."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from int_lm.config import EsConfig, ModelConfig
from int_lm.model import params, perturb, reading, rwkv
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Parameters

WIDTH, VOCABULARY, MEMBERS = 8, 11, 4
MODEL = ModelConfig(architecture="rwkv", width=WIDTH, layers=2, ffn_multiple=2)
SPECS = rwkv.specs(MODEL, VOCABULARY)
STATE = ("cell", "time_shift", "channel_shift")
LANGUAGE_MODEL = LanguageModel(MODEL, VOCABULARY)
read = functools.partial(jax.jit(reading.measured, static_argnums=0), LANGUAGE_MODEL)


@jax.jit
def step(weights: params.Tree, state: params.Tree, tokens_P: jax.Array):
    """A token read: the separator's reset, then the architecture's step."""
    return LANGUAGE_MODEL.step(Parameters(weights), state, tokens_P)


def members_of(tree: params.Tree, p: int) -> dict[str, Any]:
    """Member p of a tree of `perturb.Weight`s, as the oracle's."""
    found: dict[str, Any] = {}
    for path, spec in params.flatten(SPECS):
        weight, pair, sign = dict(params.flatten(tree))[path], p // 2, 1 - 2 * (p % 2)
        for layer in range(spec.layers) if spec.layers else [...]:
            value = weight.value[layer].tolist()
            if weight.left is None:
                leaf = oracle.bare(value)
            else:
                factors = weight.left[layer][pair].tolist(), weight.right[layer][pair].tolist()
                leaf = value, *factors, sign, weight.shift
            if spec.layers:
                found.setdefault(path, []).append(leaf)
            else:
                found[path] = leaf
    return found


# -- Equality --------------------------------------------------------------------------------------


def weights_of(seed: int, most: int) -> params.Tree:
    """Random weights up to `most`."""
    random = np.random.default_rng(seed)
    return params.map_leaves(
        lambda spec: jnp.asarray(random.integers(-most, most + 1, spec.full_shape).astype(np.int8)),
        SPECS,
    )


def perturbed(es: EsConfig, weights: params.Tree) -> params.Tree:
    """Every tensor as MEMBERS members see it."""
    pairs, numbers = jnp.arange(MEMBERS // 2, dtype=jnp.int32), params.tensor_ids(Parameters(SPECS))
    values, seen = dict(params.flatten(weights)), {}
    for path, spec in params.flatten(SPECS):
        noise = perturb.tensor_noise(es, spec, numbers[path], jnp.uint32(1), jnp.uint32(2), pairs)
        seen[path] = perturb.perturbed(es, values[path], noise)
    return params.unflatten(seen)


@pytest.mark.parametrize("most", [8, 40, 127])
@pytest.mark.parametrize(
    "es",
    [None, EsConfig(sigma_shift=0), EsConfig(sigma_shift=2, rank=3, noise="gaussian")],
    ids=["bare", "rademacher", "gaussian"],
)
def test_step_equals_the_oracle(most: int, es: EsConfig | None):
    """States, logits and what votes are made of, member by member, from states at their ends."""
    random = np.random.default_rng(most)
    weights = weights_of(most, most)
    bare = perturb.unperturbed(Parameters(weights)).network
    tree = perturbed(es, weights) if es else bare
    members = [members_of(tree, p) for p in range(MEMBERS)]
    state = {
        name: jnp.asarray(random.choice([-127, 0, 5, 127], (2, MEMBERS, WIDTH)).astype(np.int8))
        for name in STATE
    }
    plain = [{name: state[name][:, p].tolist() for name in STATE} for p in range(MEMBERS)]
    for tokens in ([5, 5, 10, 1], [1, 2, 0, 3], [0, 0, 4, 4], [9, 8, 7, 6]):
        state, logits, activity = step(tree, state, jnp.array(tokens, jnp.int32))
        assert logits.dtype == jnp.int16 and logits.shape == (MEMBERS, VOCABULARY)
        assert activity.gain.tolist() == [[16] * WIDTH] * MEMBERS
        flat = dict(params.flatten(activity.uses))
        for p, token in enumerate(tokens):
            plain[p], expected, uses, stream, _ = oracle.read_token(
                MODEL, members[p], plain[p], token
            )
            assert logits[p].tolist() == expected
            assert activity.residual[p].tolist() == stream
            for name in STATE:
                assert state[name][:, p].tolist() == plain[p][name]
            assert set(flat) == set(uses)
            for path, parts in uses.items():
                leaves = jax.tree.leaves(flat[path])
                if path.startswith("layers/"):
                    got = [[leaf[layer, p].tolist() for leaf in leaves] for layer in range(2)]
                else:
                    got = [leaf[p].tolist() for leaf in leaves]
                assert got == parts, path


# -- Documents and members -------------------------------------------------------------------------


def log_likelihoods(weights: params.Tree, tokens_PT: np.ndarray, state=None) -> np.ndarray:
    """[T, P] of the bare model, from a document's start unless told."""
    state = state or LANGUAGE_MODEL.initial_state(len(tokens_PT))
    return np.asarray(
        read(perturb.unperturbed(Parameters(weights)), state, jnp.asarray(tokens_PT))[1]
    )


def test_no_token_changes_what_came_before_it():
    """A later token changes its own likelihood and later ones, never an earlier one."""
    weights = weights_of(3, 30)
    tokens = np.random.default_rng(3).integers(1, VOCABULARY, (1, 13))
    plain, changed_after = log_likelihoods(weights, tokens), False
    for place in range(1, 13):
        other = tokens.copy()
        other[0, place] = tokens[0, place] % (VOCABULARY - 1) + 1
        changed = log_likelihoods(weights, other)
        np.testing.assert_array_equal(changed[: place - 1], plain[: place - 1])
        changed_after |= bool(np.any(changed[place:] != plain[place:]))
    assert changed_after


def test_a_separator_forgets_everything_before_it():
    """After token 0 the likelihoods are those of a fresh start, whatever the state was."""
    weights, random = weights_of(4, 30), np.random.default_rng(4)
    document = random.integers(1, VOCABULARY, 9)
    fresh = log_likelihoods(weights, np.concatenate([[0], document])[None])
    pasts = [random.integers(1, VOCABULARY, 6) for _ in range(5)]
    joined = np.stack([np.concatenate([past, [0], document]) for past in pasts])
    np.testing.assert_array_equal(log_likelihoods(weights, joined)[6:], np.repeat(fresh, 5, axis=1))
    unseparated = np.stack([np.concatenate([past, document]) for past in pasts])
    assert len(set(map(tuple, log_likelihoods(weights, unseparated)[6:].T.tolist()))) > 1
    state = {name: jnp.full((2, 1, WIDTH), 127, jnp.int8) for name in STATE}
    again = log_likelihoods(weights, np.concatenate([[0], document])[None], state)
    np.testing.assert_array_equal(again, fresh)


def test_members_and_segments_stand_apart():
    """A row gets the likelihoods it gets alone; two segments equal one with the state passed on."""
    weights = weights_of(5, 30)
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (4, 11))
    together = log_likelihoods(weights, tokens)
    for p in range(4):
        np.testing.assert_array_equal(together[:, p : p + 1], log_likelihoods(weights, tokens[[p]]))
    bare, start = perturb.unperturbed(Parameters(weights)), LANGUAGE_MODEL.initial_state(4)
    middle, first = read(bare, start, jnp.asarray(tokens[:, :6]))
    _, second = read(bare, middle, jnp.asarray(tokens[:, 5:]))
    np.testing.assert_array_equal(together, np.concatenate([first, second]))
