"""What a configuration costs: weights, operations, bytes moved and held, before anything runs.

Counts follow from the parameter tree alone. A multiplication and its addition are two operations;
only those of matrices are counted, of which there are hundreds for every other one.

Axes: P members, T segment length, M outputs, N inputs, R rank, V vocabulary.
"""

import dataclasses

import numpy as np

from int_lm import models, params, votes
from int_lm.config import Config
from int_lm.params import Role, Tree

DENSE = (Role.MATRIX, Role.PROJECTION, Role.READOUT)


def matrices(specs: Tree) -> list[tuple[int, int]]:
    """(M, N) of every matrix that a token passes, a stacked one once for every layer."""
    return [
        (spec.shape[0], spec.shape[1])
        for _, spec in params.flatten(specs)
        if spec.role in DENSE
        for _ in range(max(1, spec.layers))
    ]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one configuration.

    Attributes:
      weights: of the network, in number and, being int8, in bytes.
      direct_weights: of the tables of direct connections, likewise.
      inference_operations: per token read, of the bare model's matrices.
      perturbation_operations: per token, of x B and the addition of A.
      voting_operations: per token, of the votes gathered token by token; plain ones are free of T.
      inference_bytes: per token, that must be moved: inputs and outputs of every matrix, int8, the
        members' states read and written, and logits.
      state_bytes: of the members' recurrent states.
      carried_bytes: of remainders and of the counts of direct connections.
    """

    weights: int
    direct_weights: int
    inference_operations: int
    perturbation_operations: int
    voting_operations: int
    inference_bytes: int
    state_bytes: int
    carried_bytes: int

    @property
    def operations(self) -> int:
        """Per token, of a training step."""
        return self.inference_operations + self.perturbation_operations + self.voting_operations

    @property
    def held_bytes(self) -> int:
        """Of everything that a run carries from step to step."""
        return self.weights + self.direct_weights + self.state_bytes + self.carried_bytes


def costs(config: Config, vocab_size: int) -> Costs:
    """Costs of a configuration; nothing is compiled or allocated."""
    import jax

    model, es = config.model, config.es
    specs = models.specs(model, vocab_size)
    network = params.without_direct(specs)
    state = jax.eval_shape(lambda: models.initial_state(model, es.population))
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    inference = perturbation = voting = moved = 0
    for _, spec in params.flatten(network):
        count, kind = max(1, spec.layers), votes.estimator(es, spec.role)
        if spec.role in DENSE:
            outputs, inputs = spec.shape
            inference += 2 * count * outputs * inputs
            moved += count * (outputs + inputs)
            if kind != votes.EXACT:
                perturbation += 2 * count * es.rank * (outputs + inputs)
            if kind in ("unit", votes.EXACT):  # one outer product for every pair and token
                voting += count * outputs * inputs
        if spec.through:
            voting += count * int(np.prod(spec.shape))  # credit through the projection
    if es.votes == "unit":
        voting += vocab_size * model.width  # credit through the head
    weights = params.count(network)
    rows = len(model.direct) << model.direct_bits
    return Costs(
        weights=weights,
        direct_weights=rows * vocab_size,
        inference_operations=inference,
        perturbation_operations=perturbation,
        voting_operations=voting,
        inference_bytes=moved + 2 * vocab_size + 2 * state_bytes // es.population,
        state_bytes=state_bytes,
        carried_bytes=4 * rows + (2 * weights if es.update == "carry" else 0),
    )
