"""The plan of a run: counts by hand, and a command that leaves nothing behind."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from int_lm import config, plugins
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.method import bounds, evolve, recipe
from int_lm.model import perturb
from int_lm.model.language_model import LanguageModel
from int_lm.training import plan

TINY = Config(
    model=ModelConfig(
        architecture="rwkv", width=8, layers=3, ffn_multiple=2, direct=(1, 2), direct_bits=8
    ),
    es=EsConfig(
        population=1024, segment_length=2, rank=2, votes="unit", readout="exact", update="carry"
    ),
)
VOCABULARY = 11


def test_counts() -> None:
    counted = plan.costs(recipe.of(TINY, VOCABULARY))
    layer = 24 * 16 + 16 * 8 + 8 * 16  # time mixing, key, value
    assert counted.weights == 2 * VOCABULARY * 8 + 3 * layer
    assert counted.table_weights == 2 * 256 * VOCABULARY
    assert counted.inference_operations == 2 * (3 * layer + VOCABULARY * 8)
    # projections and the head have exact votes: they are not perturbed
    assert counted.perturbation_operations == 2 * 2 * 3 * (24 + 16 + 16 + 8)
    # an outer product for every pair, that is half of them, and credit through head and value
    assert counted.voting_operations == 3 * (layer + 8 * 16) + 2 * VOCABULARY * 8
    alone = dataclasses.replace(TINY.es, votes="local", members_per_stream=1)
    of_all = plan.costs(recipe.of(dataclasses.replace(TINY, es=alone), VOCABULARY))
    assert of_all.voting_operations == 2 * counted.voting_operations  # every member votes
    assert of_all.perturbation_operations == 0
    assert counted.state_bytes == 3 * 3 * 1024 * 8 + 4 * 2 * 1024
    assert counted.carried_bytes == 4 * 2 * 256 + 2 * counted.weights


@pytest.mark.parametrize(
    ("architecture", "pooled"), [("egg", False), ("rwkv", False), ("rwkv", True)]
)
def test_what_is_held_is_what_a_state_takes(architecture: str, pooled: bool) -> None:
    model = dataclasses.replace(TINY.model, architecture=architecture)
    es = dataclasses.replace(TINY.es, pooled=pooled)
    settings = dataclasses.replace(TINY, model=model, es=es)
    of_settings = recipe.of(settings, VOCABULARY)
    state = evolve.initial(of_settings)
    held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    assert plan.costs(of_settings).held_bytes == held


@pytest.mark.slow
def test_the_command_prints_a_plan_and_writes_nothing(run_command, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(config.to_yaml(dataclasses.replace(TINY, data=config.DataConfig())))
    done = run_command("train.py", "--config", "tiny.yaml", "--plan")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    found = dict(re.findall(r"^(\w+(?: \w+)?) {2,}(.*)$", done.stdout, re.MULTILINE))
    assert list(found) == ["weights", "a step", "operations", "memory", "speed", "the run"]
    counted = plan.costs(recipe.of(TINY, 256))
    assert found["weights"].startswith(f"{counted.weights:,} int8")
    numbers = re.findall(r"([\d,]+) MB", found["memory"])
    held, height, process = (int(number.replace(",", "")) for number in numbers[:3])
    assert held == round(counted.held_bytes / 1e6) and height >= held and process > 50
    assert float(found["speed"].split()[0].replace(",", "")) > 0


def terms_of_dots(jaxpr: jax.extend.core.Jaxpr) -> Iterator[int]:
    """How many products every dot of a program sums."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            yield math.prod(shape[axis] for axis in contracted)
        for part in jax.extend.core.jaxprs_in_params(equation.params):
            yield from terms_of_dots(part)


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize("architecture", list(plugins.BUILT_IN["architecture"]))
def test_the_bounds_know_the_widest_matrix(architecture: str, multiple: int) -> None:
    """What `recipe.of` checks sums over is what the architecture multiplies."""
    sizes = ModelConfig(architecture=architecture, width=8, layers=1, ffn_multiple=multiple)
    model = LanguageModel(sizes, VOCABULARY)
    weights = jax.tree.map(lambda spec: jnp.zeros(spec.full_shape, jnp.int8), model.specs)
    bare, token = perturb.unperturbed(weights), jnp.zeros(1, jnp.int32)
    program = jax.make_jaxpr(model.step)(bare, model.initial_state(1), token)
    assert bounds.widest_inputs(model.specs.network) == max(terms_of_dots(program.jaxpr))
