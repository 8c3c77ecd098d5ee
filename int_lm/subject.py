"""The model of a run or an export, opened: what is measured, sampled and asked in one way.

JAX computes the model of a run, NumPy that of an export; for an export JAX is not imported.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from int_lm import config, errors, programs

if TYPE_CHECKING:  # imported where needed, so that --help and a wrong flag answer at once
    import numpy as np

    from int_lm.config import DataConfig
    from int_lm.run import Run
    from int_lm.runtime import Reader
    from tokenization import Tokenizer

    Documents = Sequence[np.ndarray]
    Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Subject:
    """The run or export that is evaluated.

    Attributes:
      name: its directory, for messages.
      step: number of updates that the weights have had.
      data: section of its configuration.
      text_sha256: digest of the text of its training (`Corpus.sha256`); None for an export of an
        older version that does not have it.
      folder: directory from which relative paths in `data` start.
      tokenizer: its tokenizer.
      log2_likelihoods: (ids of documents, progress) -> int64 [documents], in units of 2^-16 bit.
      hits: (ids of documents, first index of each, progress) -> int64 [documents], the number of
        tokens from this index on that are the likeliest ones.
      reader: makes a reader of one document, for samples.
      keep: called with the figures of the whole held-out text.
      run: the run; None for an export.
    """

    name: str
    step: int
    data: "DataConfig"
    text_sha256: str | None
    folder: Path
    tokenizer: "Tokenizer"
    log2_likelihoods: "Callable[[Documents, Progress], np.ndarray]"
    hits: "Callable[[Documents, Sequence[int], Progress], np.ndarray]"
    reader: "Callable[[], Reader]"
    keep: Callable[[dict[str, Any]], None]
    run: "Run | None" = None


def open_run(root: Path, step: int | None) -> Subject:
    """A run's checkpoint, evaluated with JAX.

    Args:
      root: directory of the run.
      step: of the checkpoint; None for the newest one that is not damaged.

    Raises:
      UserError: there is no run, or it is damaged.
    """
    programs.make_importable()
    import tokenization
    from int_lm import run, sample
    from int_lm.measure import evaluate

    opened = run.open_run(root, step, say=errors.say)
    paths = run.Paths(root)
    tokenizer = tokenization.load_own(root, opened.tokenizer)
    return Subject(
        name=str(root),
        step=opened.step,
        data=opened.config.data,
        text_sha256=opened.text_sha256,
        folder=run.folder_of(root, opened.config),
        tokenizer=tokenizer,
        log2_likelihoods=lambda documents, progress: evaluate.log2_likelihoods(
            opened.recipe.model, opened.weights, documents, progress=progress
        ),
        hits=lambda documents, firsts, progress: evaluate.log2_likelihoods(
            opened.recipe.model,
            opened.weights,
            documents,
            progress=progress,
            metric=evaluate.greedy_hit,
            firsts=firsts,
        ),
        reader=lambda: sample.reader(opened.recipe.model, opened.weights),
        keep=lambda figures: run.write_evaluation(paths, opened.step, opened.weights, figures),
        run=opened,
    )


def open_export(root: Path) -> Subject:
    """An export, evaluated with the NumPy runtime: JAX is not imported.

    Raises:
      UserError: there is no export, or it is damaged.
    """
    programs.make_importable()
    import tokenization
    from int_lm import export, runtime

    model = export.load(root)
    tokenizer = tokenization.load_own(root, model.config["tokenizer"])
    return Subject(
        name=str(root),
        step=model.config["step"],
        data=config.validate(
            config.from_dict({"data": model.config["data"]}, f"{root}/config.json")
        ).data,
        text_sha256=model.config.get("text_sha256"),
        folder=Path(),
        tokenizer=tokenizer,
        log2_likelihoods=lambda documents, progress: runtime.log2_likelihoods(
            model, documents, progress=progress
        ),
        hits=lambda documents, firsts, progress: runtime.log2_likelihoods(
            model, documents, progress=progress, metric=runtime.greedy_hit, firsts=firsts
        ),
        reader=lambda: runtime.reader(model),
        keep=lambda figures: None,
    )
