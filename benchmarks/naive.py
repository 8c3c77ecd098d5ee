"""What low-rank perturbations save: the same forward pass with every member's own weights.

    python benchmarks/naive.py [--json] [--width 256] [--layers 4] [--population 2048]
        [--segment 20] [--members 32] [--repeats 5]

Naive evolution strategies draw a full-rank perturbation for each member, add it to a copy of every
matrix, and read a segment with that: as many bytes and products of one vector as there are members.
Here a few members do so, in int8, by one batched dot a matrix and nothing else of the model; the
cost per member and token does not depend on their number. The population reads as in training.
Both draw the same kind of noise, once a segment, and take turns. XLA's batched dot is slow, so a
bound is given beside it: what a naive pass could do at best, were it to read its weights as fast as
memory can be copied, and to have them for nothing.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import throughput

from int_lm.arithmetic import fixed, noise
from int_lm.method import evolve, population
from int_lm.model.perturb import shift_for
from int_lm.training import plan


def naive_linear(weight_PMN: jax.Array, x_PN: jax.Array) -> jax.Array:
    """A linear in which every row has a matrix of its own: int8 [P, M]."""
    sums_PM = jnp.einsum("pmn,pn->pm", weight_PMN, x_PN, preferred_element_type=jnp.int32)
    return fixed.saturate(fixed.shift_floor(sums_PM, shift_for(x_PN.shape[-1])))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--population", type=int, default=2048, help="of the low-rank pass")
    parser.add_argument("--members", type=int, default=32, help="of the naive pass")
    parser.add_argument("--segment", type=int, default=20, help="tokens that each member reads")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    shape = arguments.width, arguments.layers, arguments.population, arguments.segment
    settings = throughput.sized(throughput.recipes()["egg"], shape, rank=1, chunk=0)
    settings = population.chunked(settings)
    specs = evolve.specs_of(settings, throughput.VOCAB_SIZE)
    functions, _ = throughput.functions_of(settings)

    members, generator = arguments.members, np.random.default_rng(0)
    es, pairs_I = settings.es, jnp.arange(members // 2, dtype=jnp.int32)
    shapes = plan.matrices(specs)
    shared = [jnp.asarray(generator.integers(-40, 41, shape, dtype=np.int8)) for shape in shapes]

    def own(tensor: int, weight_MN: jax.Array, seed: jax.Array, step: jax.Array) -> jax.Array:
        """Every member's copy of one matrix: int8 [P, M, N]."""
        key = noise.tensor_key(seed, step, jnp.uint32(tensor))
        drawn_IK = noise.draw(es.noise, key, pairs_I, weight_MN.size) >> es.sigma_shift
        both_I2MN = jnp.stack([drawn_IK, -drawn_IK], axis=1).reshape(-1, *weight_MN.shape)
        return fixed.saturate(weight_MN.astype(jnp.int16) + both_I2MN)

    @jax.jit
    def naive(shared: list[jax.Array], x_PD: jax.Array, seed: Any, step: Any) -> jax.Array:
        """Every member's matrices, and all of them applied to every token, one after another."""
        owned = [own(tensor, weight, seed, step) for tensor, weight in enumerate(shared)]

        def token(x_PD: jax.Array, _: None) -> tuple[jax.Array, None]:
            total = jnp.int32(0)
            for weight_PMN in owned:
                repeat = weight_PMN.shape[-1] // x_PD.shape[-1]
                out_PM = naive_linear(weight_PMN, jnp.tile(x_PD, (1, repeat)))
                total = total + jnp.sum(out_PM, dtype=jnp.int32)
            return x_PD ^ total.astype(jnp.int8), None

        return jax.lax.scan(token, x_PD, length=arguments.segment)[0]

    x_PD = jnp.asarray(generator.integers(-40, 41, (members, arguments.width), dtype=np.int8))
    times = throughput.medians(
        {
            "low-rank": functions["perturbed"],
            "naive": lambda: naive(shared, x_PD, np.uint32(0), np.uint32(0)),
        },
        arguments.repeats,
    )
    readers = {"low-rank": arguments.population, "naive": members}
    tokens = {name: count * arguments.segment for name, count in readers.items()}
    rates = {name: tokens[name] / times[name].seconds for name in times}
    cpu = {name: tokens[name] / times[name].cpu for name in times}
    weights = plan.costs(settings, throughput.VOCAB_SIZE).weights
    word = jnp.uint32(0)
    drawn = jax.eval_shape(lambda: population.chunk_noise(es, specs, word, word, jnp.int32(0)))
    bound = throughput.machine_rates(arguments.repeats)[1] * 1e9 / weights
    found = {
        "width": arguments.width,
        "layers": arguments.layers,
        "population": arguments.population,
        "low_rank_tokens_per_s": rates["low-rank"],
        "naive_tokens_per_s": rates["naive"],
        "speedup": rates["low-rank"] / rates["naive"],
        "speedup_cpu": cpu["low-rank"] / cpu["naive"],
        "naive_bound_tokens_per_s": bound,
        "speedup_over_bound": rates["low-rank"] / bound,
        "naive_weight_bytes": weights * arguments.population,
        "low_rank_noise_bytes": sum(leaf.size for leaf in jax.tree.leaves(drawn)),
    }
    print(json.dumps(found) if arguments.json else throughput.table([found]))


if __name__ == "__main__":
    main()
