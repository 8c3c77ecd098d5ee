"""The metadata at the head of a model card, as the Hugging Face hub reads them."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from int_lm import config
from int_lm.errors import UserError
from int_lm.export import card

if TYPE_CHECKING:
    from int_lm.run import Run

_TAGS = ["int8", "integer-only", "recurrent", "evolution-strategies"]
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")


def checked_license(identifier: str) -> str:
    """The identifier of a licence in lower case, as the hub has them.

    Raises:
      UserError: it has other characters.
    """
    if not _LICENSE.fullmatch(identifier.lower()):
        raise UserError(
            f"--license is {identifier!r}; give an identifier such as apache-2.0, or other"
        )
    return identifier.lower()


def checked_language(code: str) -> str:
    """The code of a language.

    Raises:
      UserError: it is none.
    """
    if not _LANGUAGE.fullmatch(code):
        raise UserError(f"--language is {code!r}; give codes such as en or de, or code")
    return code


def front(
    run: "Run",
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    license: str | None,
    languages: Sequence[str],
) -> str:
    """The card's metadata as the hub reads them: YAML between lines of dashes.

    Figures are in them, as `model-index`, if they belong to these weights.

    Args:
      run: the model.
      settings: content of config.json.
      evaluation: content of evaluation.json, or None.
      license: as `checked_license` returns it; None for no entry.
      languages: as `checked_language` returns them.
    """
    model, data = run.config.model, run.config.data
    metadata: dict[str, Any] = {"library_name": "int_lm", "pipeline_tag": "text-generation"}
    if license:
        metadata["license"] = license
    if languages:
        metadata["language"] = list(languages)
    metadata["tags"] = [*_TAGS, model.architecture.split(":")[-1].lower()]
    if of_hub := [each.path[0] for each in config.sources_of(data) if each.source == "hub"]:
        metadata["datasets"] = of_hub
    if evaluation and card.belongs(settings, evaluation):
        of_text = {
            "type": of_hub[0] if of_hub else "text",
            "name": f"held out of {card.described_text(data)}",
            "args": {"sha256": evaluation["text"]["sha256"]},
        }
        metrics = [
            {"type": name, "name": name.replace("_", " "), "value": round(evaluation[name], 4)}
            for name in ("bits_per_byte", "byte_perplexity")
        ]
        result = {"task": {"type": "text-generation"}, "dataset": of_text, "metrics": metrics}
        name = f"int_lm {model.architecture} {model.layers} x {model.width}"
        metadata["model-index"] = [{"name": name, "results": [result]}]
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"
