"""A recipe: all that a step depends on but arrays, in one record that every part of it is asked.

    model        an architecture and its sizes
    objective    what members do with a batch, and the score of it
    estimators   how votes are made of what the population did
    update       how votes move weights

`of` finds the values that a configuration names and refuses sums that could overflow.
"""

import dataclasses
import functools

from int_lm.errors import UserError, require
from int_lm.limits import INT32_MAX
from int_lm.method import bounds, estimator, objective, update
from int_lm.method.estimator import Estimator
from int_lm.method.objective import Objective
from int_lm.method.update import Update
from int_lm.model import architecture
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Spec, flatten
from int_lm.settings import Settings, StrategySettings

ANY_VOCABULARY = 256  # bounds do not depend on it


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Hashable, so that compiled programs can depend on it.

    Attributes:
      settings: the configuration that was resolved.
      chunk: members that a device evaluates at once; 0 for all (see `population.chunked`).
    """

    settings: Settings
    model: LanguageModel
    objective: Objective
    estimators: tuple[Estimator, ...]
    update: Update
    chunk: int

    @property
    def es(self) -> StrategySettings:
        return self.settings.es

    def estimator_of(self, spec: Spec) -> Estimator:
        """Which estimator votes on a tensor of the network."""
        return estimator.votes_on(self.estimators, spec.role)

    def perturbs(self, spec: Spec) -> bool:
        """Whether members perturb a tensor of the network."""
        return spec.role in self.estimator_of(spec).perturbed

    @functools.cached_property
    def voting(self) -> dict[Estimator, dict[str, Spec]]:
        """The estimators in use, each with the specs of the tensors it votes on, by path."""
        parts: dict[Estimator, dict[str, Spec]] = {}
        for path, spec in flatten(self.model.specs.network):
            parts.setdefault(self.estimator_of(spec), {})[path] = spec
        return parts

    @property
    def needs_errors(self) -> bool:
        """Whether something learns from the errors of an exact readout."""
        token_votes = [one.of_tokens for one in self.voting if one.of_tokens]
        return bool(self.model.specs.tables) or any(votes.needs_errors for votes in token_votes)


def of(settings: Settings, vocab_size: int) -> Recipe:
    """The recipe of a configuration.

    Raises:
      UserError: a name that stands for nothing, parts that do not go together, or sizes with which
        an int32 sum could overflow; one sentence with what to change.
    """
    es = settings.es
    recipe = Recipe(
        settings=settings,
        model=LanguageModel(settings.model, vocab_size),
        objective=objective.get(es.objective),
        estimators=estimator.choose(es),
        update=update.get(es.update),
        chunk=es.chunk,
    )
    if settings.model.direct and es.readout != "exact":
        raise UserError("model.direct needs the readout's exact errors; add --es.readout exact")
    of_tokens = [one.name for one in recipe.voting if one.of_tokens]
    require(
        recipe.objective.of_tokens or not of_tokens,
        f"es.objective {es.objective} has no log-likelihood of every token, which es.votes "
        f"{es.votes} and es.readout {es.readout} need; use --es.votes eggroll and --es.readout "
        "perturbed",
    )
    require(
        es.learning_rate >= recipe.update.least_rate,
        f"es.learning_rate is {es.learning_rate}, of which nothing would move; make it at least "
        f"{recipe.update.least_rate}",
    )
    network = recipe.model.specs.network
    architecture.check(settings.model.architecture, network)
    for what, bound in bounds.sums(es, network, recipe.objective, recipe.voting):
        problem = f"{what} can reach {bound}, above the int32 limit {INT32_MAX}; make it smaller"
        require(bound <= INT32_MAX, problem)
    return recipe


def check(settings: Settings) -> None:
    """Refuse, as `of` does, before anything is compiled, prepared or written."""
    of(settings, ANY_VOCABULARY)
