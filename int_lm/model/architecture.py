"""Architectures: an architecture is one `Architecture` value of pure integer functions."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jax import Array

from int_lm import plugins
from int_lm.errors import require
from int_lm.model.layers import Activity
from int_lm.model.params import TABLES, Role, Tree, flatten
from int_lm.settings import ModelSettings


class Credit(NamedTuple):
    """Credit of some numbers: the derivative of the log-likelihood with respect to each.

    Attributes:
      value: int8 [T, I, ...], rounded.
      bits: the unit is 2^bits of that of the stream's credit, int32 scalar.
    """

    value: Array
    bits: Array


class Back(Protocol):
    """How credit goes back through the operations of a network, for `Architecture.credit`.

    Every result is rounded to int8 by a dither. `weight` is a `perturb.Weight` of one layer.
    """

    def through(self, weight: Any, of_outputs: Credit, finer: int = 0) -> Credit:
        """Through a linear, from its outputs [T, I, M] to its inputs [T, I, N].

        Args:
          finer: bits by which the result is finer than is right for credit of about 32 everywhere:
            0 to 4, more for outputs whose credit is small or mostly 0.
        """
        ...

    def moved(self, *parts: tuple[Credit, Array], finer: int = 0) -> Credit:
        """From effects [T, I, E] to outputs [T, I, M] in front of them: the sum over the parts.

        Args:
          parts: the credit of effects, and how they answer (`layers.responses`); an effect that
            fewer outputs change has fewer responses.
          finer: bits by which the unit is finer than that of the first part, 0 to 4.
        """
        ...

    def inward(self, of_outputs: Credit, outputs: Array) -> Credit:
        """The credit of outputs without what asks those at an end of their range to leave it.

        Votes of it would make weights larger, and the outputs would stay where they are: gates that
        are shut or open for all tokens would never come back.

        Args:
          outputs: what the linear gave, int8 [T, I, M].
        """
        ...

    def later(self, of_next: Credit) -> Credit:
        """From what a token reads of its state to the token before, which left it there."""
        ...

    def norm(self, stream: Array, of_stream: Credit, normed: Credit, shift: Array) -> Credit:
        """The credit of a stream and, beside it, of its norm after a token shift.

        Args:
          stream: int8 q4 [T, I, D].
          of_stream: of the stream without this norm.
          normed: of h + ((shift (h' - h)) >> 7), h the norm of the stream and h' that of the token
            before.
          shift: int32 [D], 0 to 127.
        """
        ...


class Architecture(NamedTuple):
    """A recurrent network that reads one token after another.

    The residual stream begins as a row of the tensor `embedding`, and every layer adds to it. The
    logits are the tensor `head` (READOUT) applied to a norm of the residual stream.

    Attributes:
      specs: (model, vocabulary size) -> nested dict of `params.Spec`.
      initial_state: (model, batch) -> dict of arrays [L, batch, ...], the state at a document's
        start. `LanguageModel` puts it in place of a member's state before a separator is read.
      step: reads one token: (weights, state, tokens int32 [P]) -> (next state, logits int8 or int16
        q4 [P, V], `Activity`). `weights` is a tree of `perturb.Weight`s.
      runtime: "module:Class" of the same network in NumPy, for exports (see
        `runtime.Architecture`). The module is copied into exports; it may import NumPy and the
        standard library only.
      credit: how credit goes back through a block, for es.votes `deep`: (back, `Weight`s of one
        layer, `Use`s of its tensors with T in front, credit of the stream after the block) ->
        (credit of the stream before it, credit of the outputs of each tensor by name). None for an
        architecture without.
    """

    specs: Callable[[ModelSettings, int], Tree]
    initial_state: Callable[[ModelSettings, int], Tree]
    step: Callable[[Tree, Tree, Array], tuple[Tree, Array, Activity]]
    runtime: str
    credit: Callable[[Back, Tree, Tree, Credit], tuple[Credit, dict[str, Credit]]] | None = None


def check(name: str, specs: Tree) -> None:
    """Refuse an architecture whose tensors would get wrong votes.

    Args:
      name: name of the architecture.
      specs: its tree of `params.Spec`s.

    Raises:
      UserError: a tensor has the wrong role or shape, or is missing. The sentence names its path
        and says what it must be.
    """
    by_path, where = dict(flatten(specs)), f"the architecture {name}"
    for path, role in (("embedding", Role.EMBEDDING), ("head", Role.READOUT)):
        found = by_path[path].role if path in by_path else None
        require(found is role, f"{where} must have the tensor {path}, of the role {role.name}")
    for path, spec in by_path.items():
        own = spec.role is not Role.TABLE and path.split("/")[0] != TABLES
        require(own, f"{where} has a tensor {path}, which only context tables may be")
        single = spec.role is not Role.READOUT or path == "head"
        require(single, f"{where} has a second tensor of the role READOUT, {path}")
        if spec.through is None:
            continue
        through = by_path.get(spec.through)
        require(
            through is not None
            and (through.role, through.layers) == (Role.PROJECTION, spec.layers)
            and spec.shape[0] % through.shape[-1] == 0,
            f"{where} has {path} act through {spec.through}, which must be a PROJECTION of as many "
            f"layers ({spec.layers}), whose inputs divide its {spec.shape[0]} outputs",
        )


def get(name: str) -> Architecture:
    """The architecture that a configuration names.

    Raises:
      UserError: as `plugins.resolve`.
    """
    return plugins.resolve("architecture", name, Architecture)
