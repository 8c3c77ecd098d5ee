"""A small run with given or random weights, and its export, for tests."""

from pathlib import Path

import jax
import numpy as np

from int_lm.config import Config, ModelConfig
from int_lm.export import export_model
from int_lm.method import recipe
from int_lm.model import params
from int_lm.run import Run
from tests import presets
from tokenization import ByteTokenizer
from tokenization.interface import identity

MODEL = presets.egg(width=24, layers=3, ffn_multiple=3)


def tiny_run(vocab_size: int = 256, model: ModelConfig = MODEL, extreme: bool = False) -> Run:
    """A run whose weights are random in all of [-127, 127], or -127 and 127 only.

    Norms and biases are random too, unlike those of `params.initialise`.
    """
    generator = np.random.default_rng(1)
    exact = model.direct or model.words or model.cache
    es = presets.paper_es(readout="exact" if exact else "perturbed")
    config = Config(model=model, es=es)
    of_run = recipe.of(config, vocab_size)

    def leaf(spec: params.Spec) -> np.ndarray:
        if extreme:
            return generator.choice(np.array([-127, 127], np.int8), spec.full_shape)
        values = generator.normal(0, 24, spec.full_shape)
        return np.clip(np.rint(values), -127, 127).astype(np.int8)

    return Run(
        config=config,
        recipe=of_run,
        step=7,
        weights=jax.tree.map(leaf, of_run.model.specs),
        tokenizer={**identity(ByteTokenizer()), "vocab_size": vocab_size},
        text_sha256="5" * 64,
    )


def export_tiny_run(run: Run, directory: Path) -> Path:
    """The export of `run` at `directory`/export."""
    tokenizer = directory / "tokenizer"
    ByteTokenizer().save(tokenizer)
    vocab_size = run.recipe.model.vocab_size
    if vocab_size != 256:
        path = tokenizer / "identity.json"
        text = path.read_text()
        path.write_text(text.replace('"vocab_size": 256', f'"vocab_size": {vocab_size}'))
    return export_model(run, directory / "export", tokenizer_directory=tokenizer)
