"""Configurations that tests begin with: the paper's recipe, at its sizes or at small ones."""

from typing import Any

from int_lm.config import EsConfig, ModelConfig

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


def egg(**fields: Any) -> ModelConfig:
    """The section `model` with the paper's architecture."""
    return ModelConfig(**({"architecture": "egg"} | fields))
