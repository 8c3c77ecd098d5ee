"""The plan of a run: counts by hand, and a command that leaves nothing behind."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from int_lm import config
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.method import bounds, evolve
from int_lm.model import language_model
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
    counted = plan.costs(TINY, VOCABULARY)
    layer = 24 * 16 + 16 * 8 + 8 * 16  # time mixing, key, value
    assert counted.weights == 2 * VOCABULARY * 8 + 3 * layer
    assert counted.direct_weights == 2 * 256 * VOCABULARY
    assert counted.inference_operations == 2 * (3 * layer + VOCABULARY * 8)
    # projections and the head have exact votes: they are not perturbed
    assert counted.perturbation_operations == 2 * 2 * 3 * (24 + 16 + 16 + 8)
    # an outer product for every pair, that is half of them, and credit through head and value
    assert counted.voting_operations == 3 * (layer + 8 * 16) + 2 * VOCABULARY * 8
    assert counted.state_bytes == 3 * 3 * 1024 * 8 + 4 * 2 * 1024
    assert counted.carried_bytes == 4 * 2 * 256 + 2 * counted.weights


@pytest.mark.parametrize("architecture", ["egg", "rwkv"])
def test_what_is_held_is_what_a_state_takes(architecture: str) -> None:
    model = dataclasses.replace(TINY.model, architecture=architecture)
    settings = dataclasses.replace(TINY, model=model)
    state = evolve.initial(settings, VOCABULARY)
    held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    assert plan.costs(settings, VOCABULARY).held_bytes == held


@pytest.mark.slow
def test_the_command_prints_a_plan_and_writes_nothing(run_command, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(config.to_yaml(dataclasses.replace(TINY, data=config.DataConfig())))
    done = run_command("train.py", "--config", "tiny.yaml", "--plan")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    found = dict(re.findall(r"^(\w+(?: \w+)?) {2,}(.*)$", done.stdout, re.MULTILINE))
    assert list(found) == ["weights", "a step", "operations", "memory", "speed", "the run"]
    counted = plan.costs(TINY, 256)
    assert found["weights"].startswith(f"{counted.weights:,} int8")
    numbers = re.findall(r"([\d,]+) MB", found["memory"])
    held, height, process = (int(number.replace(",", "")) for number in numbers[:3])
    assert held == round(counted.held_bytes / 1e6) and height >= held and process > 50
    assert float(found["speed"].split()[0].replace(",", "")) > 0


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize("architecture", list(language_model.ARCHITECTURES))
def test_the_bounds_know_the_widest_matrix(architecture: str, multiple: int) -> None:
    """What `config.validate` checks sums over is what the architecture multiplies."""
    model = ModelConfig(architecture=architecture, width=8, layers=1, ffn_multiple=multiple)
    inputs = [inputs for _, inputs in plan.matrices(language_model.specs(model, VOCABULARY))]
    assert bounds.widest_inputs(model) == max(inputs)
