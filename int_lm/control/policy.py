"""A policy: an architecture of the language models behind observations and in front of actions.

The network is the same one, with one tensor of another kind: where a language model looks up the
row of a token in its EMBEDDING, a policy applies a MATRIX to the encoded observation. The readout's
outputs are those of the actions in place of logits of tokens. A policy has no context tables.

Axes: R episodes that are played together, N numbers of an observation, A outputs, D width.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import Array

from int_lm.control.border import LEVEL_BITS
from int_lm.control.environment import Environment
from int_lm.model import architecture, sampler
from int_lm.model.architecture import Architecture
from int_lm.model.params import Parameters, Role, Spec, Tree
from int_lm.settings import ModelSettings


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy's sizes and equations, without weights: to a `Recipe` the same as a `LanguageModel`.

    Attributes:
      settings: the section `model` of a configuration.
      observations: N.
      outputs: A.
    """

    settings: ModelSettings
    observations: int
    outputs: int

    @functools.cached_property
    def architecture(self) -> Architecture:
        """The architecture that the settings name."""
        return architecture.get(self.settings.architecture)

    @functools.cached_property
    def specs(self) -> Parameters:
        """The `params.Spec` of every tensor: the architecture's, with a MATRIX for inputs."""
        network = dict(self.architecture.specs(self.settings, self.outputs))
        width = network["embedding"].shape[-1]
        network["embedding"] = Spec((width, self.observations + 1), Role.MATRIX)
        return Parameters(network)

    def initial_state(self, batch: int, readers: int = 1) -> Tree:
        """The state at an episode's start: a dict of arrays [L, batch, ...].

        Members share nothing of it, whatever the number of `readers` (`LanguageModel`).
        """
        return self.architecture.initial_state(self.settings, batch)

    def step(self, weights: Parameters, state: Tree, inputs_RN: Array) -> tuple[Tree, Array]:
        """Look at an observation: (next state, outputs int8 or int16 q4 [R, A]).

        Args:
          weights: a `perturb.Weight` for every tensor.
          state: of `initial_state` or of the step before.
          inputs_RN: int8 q4 [R, N + 1], of `observations.encoded`.
        """
        state, outputs_RA, _ = self.architecture.step(weights.network, state, inputs_RN)
        return state, outputs_RA


def chosen(environment: Environment, outputs_RA: Array) -> Array:
    """What the outputs say to do: int32, [R, number of actions].

    Of every discrete action the value with the largest output (of equal ones the first); of every
    continuous action a level from -2^6 to 2^6, its output clipped (`border.acted`).
    """
    if not environment.choices:
        most = 1 << LEVEL_BITS
        return jnp.clip(outputs_RA.astype(jnp.int32), -most, most)
    parts, first = [], 0
    for count in environment.choices:
        parts.append(sampler.greedy(outputs_RA[:, first : first + count]))
        first += count
    return jnp.stack(parts, axis=1)
