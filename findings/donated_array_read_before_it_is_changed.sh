#!/usr/bin/env bash
# JAX on CPUs: a donated array from which rows are read before rows of it are changed is copied, twice, in every call.
#
# One would guess: rows are gathered, then rows are scattered into the array that was donated. XLA may choose the order,
#   reads first and then changes in place, which costs what the rows cost.
# What happens: the compiled program copies the whole array before the scatter and once more after it, because nothing
#   in the program says that the gather comes first. jax.lax.optimization_barrier between both changes nothing: it is
#   taken out before copies are placed. If what the scatter needs depends on what was gathered, by a number that is 0
#   in truth but not for the compiler, there is no copy.
# Why it matters here: trust of a pool reads rows of context tables, of 64 MB each, that the same step changes. Eight
#   tables took 300 ms a step in place of 67 until the change was made to depend on the reading
#   (int_lm/method/population.py), and nothing but the time said so.
# Source: https://docs.jax.dev/en/latest/buffer_donation.html, which says that a donated buffer is reused and not when
#   it is copied first.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2

cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp

print(f"jax {jax.__version__}")
SHAPES = (
    jax.ShapeDtypeStruct((4096, 64), jnp.int8),
    jax.ShapeDtypeStruct((32,), jnp.int32),
    jax.ShapeDtypeStruct((32, 64), jnp.int8),
)


def total(table, rows):
    return jnp.sum(table[rows].astype(jnp.int32))


def changed_alone(table, rows, new):
    return table.at[rows].set(new), jnp.int32(0)


def read_and_changed(table, rows, new):
    read = total(table, rows)
    return table.at[rows].set(new), read


def barrier_between(table, rows, new):
    table, read = jax.lax.optimization_barrier((table, total(table, rows)))
    return table.at[rows].set(new), read


def dependence_between(table, rows, new):
    read = total(table, rows)
    rows = rows + (read == -(2**31)).astype(jnp.int32)  # never so: 2048 entries of at least -128
    return table.at[rows].set(new), read


expected = {changed_alone: 0, read_and_changed: 2, barrier_between: 2, dependence_between: 0}
for function, copies in expected.items():
    compiled = jax.jit(function, donate_argnums=0).lower(*SHAPES).compile()
    found = len(re.findall(r"= s8\[4096,64\]\S* copy\(", compiled.as_text()))
    print(f"{function.__name__.replace('_', ' ')}: {found} copies of the array")
    if found != copies:
        sys.exit(f"The behaviour is another one now: {copies} copies were made.")
PYTHON
