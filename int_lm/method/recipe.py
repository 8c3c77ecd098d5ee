"""A recipe: everything that a step depends on, except arrays, in one record.

    model        an architecture and its sizes
    objective    what members do with a batch, and how they are scored
    estimators   how votes are computed
    update       how votes move weights

`of` looks up the parts that a configuration names and refuses sizes with which an int32 sum could
overflow.
"""

import dataclasses
import functools

from int_lm.errors import UserError, nearest, require
from int_lm.limits import FITNESS_MAX, INT32_MAX, voters
from int_lm.method import bounds, estimator, objective, pool, pull, schedules, update
from int_lm.method.estimator import Estimator
from int_lm.method.objective import Objective
from int_lm.method.update import Update
from int_lm.model import architecture
from int_lm.model.language_model import LanguageModel
from int_lm.model.params import Spec, flatten
from int_lm.settings import Settings, StrategySettings

ANY_VOCABULARY = 256  # a vocabulary size for `check`: the bounds do not depend on it

# fields of the section `es` that name no plug-in, and the names that each may have
CHOICES = {
    "noise": ("rademacher", "gaussian"),
    "readout": ("perturbed", "exact"),
    "fitness": tuple(FITNESS_MAX),
    "schedule": schedules.NAMES,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The parts of a step. Hashable, so that it can be a static argument of compiled programs.

    Attributes:
      settings: the configuration.
      model: the language model: architecture and sizes, without weights.
      objective: runs the members and scores them.
      estimators: in order; the first one that can vote on a tensor does.
      update: moves the weights.
    """

    settings: Settings
    model: LanguageModel
    objective: Objective
    estimators: tuple[Estimator, ...]
    update: Update

    @functools.cached_property
    def learner(self) -> LanguageModel:
        """The model as members read it in training: apart from its tables, if it is a pool."""
        return dataclasses.replace(self.model, apart=True) if self.es.pooled else self.model

    @property
    def es(self) -> StrategySettings:
        """The section `es` of the configuration."""
        return self.settings.es

    def estimator_of(self, spec: Spec) -> Estimator:
        """The estimator that computes the votes on a tensor of the network."""
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
        """Whether an estimator or a context table needs the errors of the exact readout."""
        token_votes = [one.of_tokens for one in self.voting if one.of_tokens]
        return bool(self.model.specs.tables) or any(votes.needs_errors for votes in token_votes)


def of(settings: Settings, vocab_size: int) -> Recipe:
    """The recipe of a configuration, for a language model.

    Raises:
      UserError: as `of_model`.
    """
    return of_model(settings, LanguageModel(settings.model, vocab_size))


def of_model(settings: Settings, model: LanguageModel) -> Recipe:
    """The recipe of a configuration.

    Args:
      model: a language model, or a policy in its place (`control.policy`).

    Raises:
      UserError: a name is unknown, two parts cannot be used together, or with these sizes an int32
        sum could overflow. The sentence says what to change.
    """
    es = settings.es
    for field, names in CHOICES.items():
        name = getattr(es, field)
        hint = nearest(str(name), names, otherwise="")
        require(name in names, f"es.{field} is {name!r}, expected one of {', '.join(names)}{hint}")
    moves = update.get(es.update)
    if es.decay:
        moves = pull.decayed(es.update, moves)
    if es.anchor:
        moves = pull.anchored(es.update, moves)
    scored = objective.get(es.objective)
    if not scored.has_token_likelihoods:
        _check_without_likelihoods(es)
    recipe = Recipe(
        settings=settings,
        model=model,
        objective=scored,
        estimators=estimator.choose(es),
        update=moves,
    )
    written = recipe.objective.written
    require(
        written or es.fitness in ("sign", "linear"),
        f"es.fitness {es.fitness} and es.objective {es.objective} do not go together; use "
        "--es.fitness linear or sign",
    )
    for name in ("direct", "words", "cache"):
        if getattr(settings.model, name) and es.readout != "exact" and not written:
            needs = f"model.{name} needs the readout's exact errors; add --es.readout exact"
            raise UserError(needs)
    if es.pooled:
        _check_pool(recipe)
    for one, specs in recipe.voting.items():
        if one.of_tokens and one.of_tokens.check:
            one.of_tokens.check(model.architecture, specs)
    require(
        es.learning_rate >= recipe.update.least_rate,
        f"es.learning_rate is {es.learning_rate}, of which nothing would move; make it at least "
        f"{recipe.update.least_rate}",
    )
    network = model.specs.network
    perturbed = next((path for path, spec in flatten(network) if recipe.perturbs(spec)), None)
    alone = es.members_per_stream == 1
    require(
        not alone or perturbed is None,
        f"es.members_per_stream is 1, but {perturbed} is perturbed, and a pair reads one stream; "
        "make it 2",
    )
    require(
        alone or perturbed is not None,
        f"es.votes {es.votes} perturbs nothing, so that members of one stream would be equal; add "
        "--es.members_per_stream 1, and halve es.population for as many streams",
    )
    if isinstance(model, LanguageModel):
        architecture.check(settings.model.architecture, network)
    for what, bound in bounds.sums(es, network, recipe.objective, recipe.voting):
        problem = f"{what} can reach {bound}, above the int32 limit {INT32_MAX}; make it smaller"
        require(bound <= INT32_MAX, problem)
    return recipe


def _check_pool(recipe: Recipe) -> None:
    """Refuse `es.pooled` where there is nothing to pool, or nothing to learn trust from.

    Raises:
      UserError: no table, no text, or streams without tables.
    """
    es = recipe.es
    require(
        isinstance(recipe.model, LanguageModel) and bool(recipe.model.specs.tables),
        "es.pooled pools a network with context tables or a document cache; add model.direct, "
        "model.words or model.cache, or leave it out",
    )
    require(
        not recipe.objective.written,
        f"es.pooled learns trust from text, and es.objective {es.objective} reads none; leave it "
        "out",
    )
    bound = voters(es) * pool.PICKS * pool.GRADIENT_MOST
    require(
        bound <= INT32_MAX,
        f"the gradients of trust can reach {bound}, above the int32 limit {INT32_MAX}; make "
        "es.population smaller",
    )
    require(
        not es.direct_dropout,
        f"es.pooled and es.direct_dropout {es.direct_dropout:g} do not go together: in a pool the "
        "network learns without tables in all streams; add --es.direct_dropout 0",
    )


def _check_without_likelihoods(es: StrategySettings) -> None:
    """Refuse votes made token by token beside an objective without log-likelihoods of tokens.

    Raises:
      UserError: es.votes or es.readout needs them.
    """
    instead = {}
    if estimator.get(es.votes).of_tokens:
        instead[f"es.votes {es.votes}"] = "--es.votes eggroll"
    if es.readout == "exact":
        instead["es.readout exact"] = "--es.readout perturbed"
    require(
        not instead,
        f"es.objective {es.objective} has no log-likelihood of every token, which "
        f"{' and '.join(instead)} need{'s' * (len(instead) == 1)}; use "
        f"{' and '.join(instead.values())}",
    )


def check(settings: Settings) -> None:
    """Raise the errors of `of` before anything is compiled, prepared or written."""
    of(settings, ANY_VOCABULARY)
