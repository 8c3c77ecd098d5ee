"""Configurations and recipes that tests start from."""

from typing import Any

from int_lm import config as configuration, plugins
from int_lm.config import Config, EsConfig, ModelConfig
from int_lm.method import recipe
from int_lm.method.recipe import Recipe

STOCHASTIC = "plugins.stochastic:STOCHASTIC"  # an update that is a plug-in

PAPER_ES: dict[str, Any] = {
    "population": 2048,
    "segment_length": 50,
    "sigma_shift": 4,
    "votes": "eggroll",
    "readout": "perturbed",
    "update": "threshold",
    "schedule": "inverse",
}


def paper_es(**fields: Any) -> EsConfig:
    """The section `es` of the paper's recipe, with other values of some fields."""
    return EsConfig(**(PAPER_ES | fields))


def readers(architecture: str, votes: str) -> int:
    """`es.members_per_stream` of a small recipe: 1 where no weight is perturbed."""
    return 1 if architecture == "rwkv" and votes in ("local", "deep") else 2


def egg(**fields: Any) -> ModelConfig:
    """The section `model` with the paper's architecture."""
    return ModelConfig(**({"architecture": "egg"} | fields))


def resolved(config: Config, vocab_size: int) -> Recipe:
    """The recipe of a valid configuration. Its plug-ins are trusted."""
    plugins.trust_settings(config)
    return recipe.of(configuration.validate(config), vocab_size)
