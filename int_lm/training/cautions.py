"""Cautions: what a configuration may ask for, but hardly means. They are said, never refused."""

from int_lm.config import Config
from int_lm.limits import DECAY_MIN

ONE = 16  # units of a weight, 1/16, in the weight 1.0
STREAMS_OF_POOL = 64  # of which each begins with a document: all miss one in 16 in one case of 60


def of(settings: Config) -> list[str]:
    """One sentence for each: what is set, what comes of it, and what to set instead.

    Args:
      settings: validated.
    """
    model, es, steps = settings.model, settings.es, settings.run.steps
    found = []
    if 0 < steps <= es.warmup:
        found.append(
            f"es.warmup {es.warmup} does not end before the last step, {steps}, so that the rate "
            "never gets to es.learning_rate; make es.warmup smaller or run.steps larger"
        )
    move = 1.0 if es.update == "threshold" else es.learning_rate  # of a step, in units
    if es.decay * ONE > move:  # where moves and decay cancel, decay |w| = move
        found.append(
            f"es.decay {es.decay:g} keeps weights below about {move / es.decay / ONE:.2g}, for a "
            f"step takes this share of them away and moves them by about {move:g}/{ONE}; try "
            f"{max(DECAY_MIN, move / 1000):g}"
        )
    long = [length for length in model.direct if length > es.direct_dropout_above]
    if es.direct_dropout and not (long or model.words):
        found.append(
            f"es.direct_dropout {es.direct_dropout:g} leaves out nothing, for no context table is "
            f"of words or of more than {es.direct_dropout_above} tokens; add one (model.direct, "
            "model.words), or make es.direct_dropout_above smaller"
        )
    if es.pooled and es.streams < STREAMS_OF_POOL:
        found.append(
            f"es.pooled learns trust from one document in 16, and {es.streams} streams of a short "
            f"text may read none of these; raise es.population to {STREAMS_OF_POOL} streams"
        )
    return found
