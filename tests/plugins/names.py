"""An architecture whose tensors and variables have names that runtime.c has for itself."""

import jax
import jax.numpy as jnp
from jax import Array

from int_lm.arithmetic import fixed
from int_lm.model import layers
from int_lm.model.architecture import Architecture
from int_lm.model.layers import Activity, Use
from int_lm.model.params import Role, Spec, Tree
from int_lm.settings import ModelSettings

VECTORS = (
    *("model", "share", "number", "next", "text", "tile", "start", "load", "digest", "logit"),
    *("state", "roots", "tensors", "table", "table2", "TILE", "memcpy", "select"),
)


def specs(model: ModelSettings, vocab_size: int) -> Tree:
    """The parameter tree."""
    D, V = model.width, vocab_size
    vectors = {name: Spec((D,), Role.VECTOR, init=1) for name in VECTORS}
    vectors |= {"pair_first": Spec((D,), Role.VECTOR, init=1)}
    vectors |= {"pair": {"first": Spec((D,), Role.VECTOR, init=1)}}  # in C, one name for both
    embedding, head = Spec((V, D), Role.EMBEDDING), Spec((V, D), Role.READOUT, init=0)
    return {"embedding": embedding, **vectors, "head": head}


def initial_state(model: ModelSettings, batch: int) -> Tree:
    """The state at a document's start: int8 ones [1, P, D], three times."""
    ones = jnp.ones((1, batch, model.width), jnp.int8)
    return {"state": ones, "pair_first": ones, "pair": {"first": ones}}


def step(weights: Tree, state: Tree, tokens_P: Array) -> tuple[Tree, Array, Activity]:
    """Read one token."""
    x_PD = layers.embed(weights["embedding"], tokens_P)
    for vector in (*(weights[name] for name in VECTORS), weights["pair_first"]):
        x_PD = layers.plus(x_PD, layers.vector(vector, x_PD))
    x_PD = layers.plus(x_PD, layers.vector(weights["pair"]["first"], x_PD))
    leading_zeros = jax.lax.clz(x_PD.astype(jnp.int32))
    wrap32 = x_PD.astype(jnp.int32) * jnp.int32(2**30) + leading_zeros
    x_PD = fixed.saturate(
        fixed.shift_floor(wrap32, 8) + leading_zeros + state["state"][0].astype(jnp.int32)
    )
    logits_PV = layers.readout(weights["head"], x_PD)
    gain_PD = layers.constant_gain(16, x_PD)
    state = {
        "state": x_PD[None],
        "pair_first": state["pair"]["first"],
        "pair": {"first": x_PD[None]},
    }
    return state, logits_PV, Activity({"head": Use(x_PD)}, x_PD, gain_PD)


NAMES = Architecture(specs, initial_state, step, runtime="plugins.names:None")
