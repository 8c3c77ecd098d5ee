#!/usr/bin/env bash
# jax on CPUs: jax.lax.optimization_barrier, documented to prevent fusions, does not prevent them.
#
# One would guess: "Optimization barriers prevent compiler fusions. That is, operations before the barrier may not be
#   fused into the same kernel as operations after the barrier" (its documentation). So a value that is expensive, or
#   needed as int8 in memory, is computed once if a barrier follows it.
# What happens: XLA takes the barrier away before it fuses. The program with the barrier, which is in the StableHLO that
#   jax hands over, ends as the same single fusion as the one without, in which nothing is left of it. The example of
#   the documentation, sin(x) behind a barrier plus sin(x) without one, ends with one sine, and not with two.
# Why it matters here: gates, residual sums and shifted norms before a matrix are fused into everything that reads them
#   and computed several times. Barriers were the documented way to stop it and changed nothing; kernels of our own do
#   (docs/log/2026-11.md, "What XLA on CPUs makes of the forward pass").
# Source: documentation, https://docs.jax.dev/en/latest/_autosummary/jax.lax.optimization_barrier.html; openxla/xla,
#   xla/service/cpu/cpu_compiler.cc, where OptimizationBarrierExpander is added before the layouts are assigned and
#   hence before the passes that fuse.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re
import sys

import jax
import jax.numpy as jnp

print(f"jax {jax.__version__}, jaxlib {jax.lib.__version__}")
x = jnp.arange(1 << 16, dtype=jnp.int32)


def program(between):
    """(StableHLO has a barrier, operations of the whole program, operations inside of its fusion)"""
    lowered = jax.jit(lambda x: (lambda y: y ^ (y >> 3))(between(x * 3 + 1))).lower(x)
    compiled = lowered.compile().as_text()
    operation = re.compile(r"^ +(?:ROOT )?%\S+ = \S+ ([a-z-]+)\(", re.MULTILINE)
    inside, _, whole = compiled.partition("\nENTRY ")
    return "optimization_barrier" in lowered.as_text(), operation.findall(whole), operation.findall(inside)


found = {}
for name, between in {"without": lambda y: y, "with": jax.lax.optimization_barrier}.items():
    asked, whole, inside = found[name] = program(between)
    print(f"{name} a barrier: asked for {asked}, program {whole}, fused {inside}")
if found["without"][0] or not found["with"][0]:
    sys.exit("The behaviour is another one now: the barrier is not in what jax hands to the compiler.")
if found["without"][1] != ["parameter", "fusion"] or not {"multiply", "xor"} <= set(found["without"][2]):
    sys.exit("The behaviour is another one now: without a barrier the operations are not one fusion.")
if found["with"][1:] != found["without"][1:]:
    sys.exit("The behaviour is another one now: the barrier changes what is fused, as its documentation says.")

example = jax.jit(lambda x: jax.lax.optimization_barrier(jax.lax.sin(x)) + jax.lax.sin(x)).lower(0.0)
asked, left = example.as_text().count("stablehlo.sine"), example.compile().as_text().count(" sine(")
print(f"the documentation's example: sines asked for {asked}, sines computed {left}")
if (asked, left) != (2, 1):
    sys.exit("The behaviour is another one now: the documentation's example keeps its two sines apart.")
PYTHON
