"""Prompts for training and held-out prompts, and their conversion to and from tokens.

Axes: S prompts of a step, N tokens of a prompt, P members, C tokens of a completion, V vocabulary.
"""

import functools
import hashlib
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from int_lm import tasks
from int_lm.config import RewardConfig
from int_lm.errors import counted, require
from int_lm.files import digest
from int_lm.limits import SEPARATOR
from int_lm.tasks import Example
from int_lm.training.text import Tokenizer as RunTokenizer


class Tokenizer(RunTokenizer, Protocol):
    """The part of a tokenizer that prompts and completions need."""

    @property
    def vocab_size(self) -> int:
        """V, the size of the vocabulary."""
        ...

    def encode_all(self, texts: Sequence[bytes], threads: int = 1) -> list[np.ndarray]:
        """The ids of every text, in an unsigned dtype."""
        ...


class Prompts(NamedTuple):
    """The prompts of a run.

    Attributes:
      at: a pure function (step) -> the S examples of the step.
      held_out: examples that never occur in training.
      stop: text that ends a completion; empty for none.
      solved: least reward that counts as solved.
      sha256: digest of a task's name, stop and first held-out example, or of all examples of a
        file; a resumed run must have the same.
      examples: all examples of a file; empty for a task, whose examples have no end.
    """

    at: Callable[[int], list[Example]]
    held_out: list[Example]
    stop: str
    solved: float
    sha256: str
    examples: Sequence[Example] = ()


def of_task(name: str, settings: RewardConfig, count: int, seed: int) -> Prompts:
    """The prompts of a shipped task.

    Args:
      name: of the task.
      settings: of the rewards; the number of held-out prompts is used.
      count: S, prompts of a step.
      seed: of the run.

    Raises:
      UserError: there is no such task; the message has the nearest name.
    """
    task = tasks.of(name)

    def at(step: int) -> list[Example]:
        return [tasks.training(task, seed, step * count + number) for number in range(count)]

    held_out = tasks.held_out(task, settings.heldout_prompts)
    first = list(held_out[0])
    sha256 = digest.of_json([task.name, task.stop, [first]])
    return Prompts(at, held_out, task.stop, task.solved, sha256)


def of_file(examples: Sequence[Example], settings: RewardConfig, count: int, seed: int) -> Prompts:
    """The prompts of a file. Those with the lowest hashes of their text are held out.

    Every other prompt occurs once in each pass over the file, in an order that depends on seed and
    pass.

    Args:
      examples: of the file.
      settings: of the rewards.
      count: S, prompts of a step.
      seed: of the run.

    Raises:
      UserError: fewer than two different prompts.
    """
    different = sorted({example.prompt for example in examples}, key=_hash)
    require(
        len(different) >= 2,
        f"{settings.prompts} holds {counted(len(different), 'different prompt')}, of which one is "
        "to be held out; give at least 2",
    )
    share = round(settings.holdout * len(different))
    apart = set(different[: min(max(1, share), len(different) - 1)])
    training = [example for example in examples if example.prompt not in apart]
    held_out = [example for example in examples if example.prompt in apart]

    @functools.lru_cache(maxsize=2)
    def order(number: int) -> list[int]:
        generator = random.Random((number << 32) + seed)
        draws = [generator.random() for _ in training]  # only these are the same in every Python
        return sorted(range(len(training)), key=draws.__getitem__)

    def at(step: int) -> list[Example]:
        places = range(step * count, (step + 1) * count)
        passes = [divmod(place, len(training)) for place in places]
        return [training[order(number)[within]] for number, within in passes]

    sha256 = digest.of_json([list(example) for example in examples])
    some = held_out[: settings.heldout_prompts]
    return Prompts(at, some, settings.stop, settings.solved, sha256, examples)


def _hash(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode(), digest_size=16).digest()


class Batch(NamedTuple):
    """Examples and their tokens.

    Attributes:
      examples: S examples.
      tokens_SN: their prompts, int32 [S, N], with separators in front.
      count: number of tokens of the prompts, with one separator each.
    """

    examples: Sequence[Example]
    tokens_SN: np.ndarray
    count: int


class Coder:
    """Converts prompts to tokens, and tokens to completions.

    All prompts get the length of the longest prompt so far, rounded up to a multiple of 8 tokens,
    by separators in front. Separators change no completion. Every new length is compiled once.

    Attributes:
      ends_V: bool [V], the tokens that end a completion.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str, most: int):
        """Make a coder.

        Args:
          tokenizer: of the model.
          stop: text that ends a completion; empty for none.
          most: largest number of tokens of a prompt.
        """
        self._tokenizer, self._stop, self._most = tokenizer, stop, most
        self._length = 8
        ids = range(tokenizer.vocab_size)
        stop_bytes = stop.encode()
        self.ends_V = np.array(
            [
                token == SEPARATOR or (stop != "" and stop_bytes in tokenizer.decode([token]))
                for token in ids
            ]
        )

    def check(self, prompts: Prompts, where: str) -> None:
        """Check all prompts of a file at the start; those of a task are checked step by step.

        Args:
          prompts: of the run.
          where: the file; empty for a task.

        Raises:
          UserError: as `batch`.
        """
        if where:
            for first in range(0, len(prompts.examples), 1024):
                self.batch(prompts.examples[first : first + 1024])

    def batch(self, examples: Sequence[Example]) -> Batch:
        """The prompts as tokens.

        Raises:
          UserError: a prompt is too long, or has a zero byte.
        """
        encoded = self._tokenizer.encode_all([example.prompt.encode() for example in examples])
        for example, ids in zip(examples, encoded, strict=True):
            shown = f"the prompt that begins with {example.prompt[:40]!r}"
            require(
                len(ids) <= self._most,
                f"{shown} has {counted(len(ids), 'token')}, above reward.prompt_tokens "
                f"{self._most}; shorten it, or raise --reward.prompt_tokens",
            )
            require(SEPARATOR not in ids, f"{shown} has a zero byte, which stands between texts")
        longest = 1 + max(len(ids) for ids in encoded)
        self._length = max(self._length, -(-longest // 8) * 8)
        tokens_SN = np.full((len(examples), self._length), SEPARATOR, np.int32)
        for row, ids in zip(tokens_SN, encoded, strict=True):
            row[len(row) - len(ids) :] = ids
        return Batch(examples, tokens_SN, sum(len(ids) + 1 for ids in encoded))

    def completion(self, ids_C: np.ndarray) -> str:
        """The text of a completion before its stop; bytes that are not UTF-8 are replaced."""
        ends = np.flatnonzero(self.ends_V[ids_C])
        ids = ids_C[: ends[0] + 1] if len(ends) else ids_C
        text = self._tokenizer.decode(ids[ids != SEPARATOR]).decode(errors="replace")
        return text.partition(self._stop)[0] if self._stop else text

    def written(self, ids: np.ndarray) -> int:
        """The number of tokens of completions [..., C], with the token that ends each."""
        ends = self.ends_V[ids]
        first = np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, ids.shape[-1])
        return int(first.sum())
