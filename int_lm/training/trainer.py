"""The training loop: step, log, evaluate, sample, checkpoint, until done or asked to stop.

It sees token ids only; what they mean enters through `Text`, which `train.py` puts together.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from int_lm import progress, resume, sample
from int_lm.arithmetic import tables
from int_lm.config import Config
from int_lm.files.checkpointer import Checkpointer
from int_lm.measure import diagnose, evaluate
from int_lm.measure.code_length import CodeLengths
from int_lm.method import evolve, placement
from int_lm.method.placement import Placement
from int_lm.method.recipe import Recipe
from int_lm.method.state import Metrics, State
from int_lm.model import hashing, params
from int_lm.model.params import Parameters
from int_lm.runtime import Sampler
from int_lm.training import distributed, memory, runlog, warmup
from int_lm.training.distributed import Watchdog
from int_lm.training.interrupt import StopFlag
from int_lm.training.runlog import Console, MetricsFile
from int_lm.training.text import Documents as Documents, Text as Text

SAMPLE_TEMPERATURE = 0.7
COMPILING_SECONDS = 3600.0  # that a process may wait longer for the others at its first step
# How a run stands: the largest that a process says holds.
GOING_ON, SAVING, FINISHED, STOPPED = range(4)


@dataclasses.dataclass
class Trainer:
    """A run under way: its state, and everything that watches and keeps it.

    Attributes:
      recipe: of `settings`. place: the devices, None for one.
      metrics, checkpointer: None in processes that do not write.
      step: steps done. saved: step that was saved last, if it succeeded, -1 for none.
      seconds_before: seconds of training in earlier processes.

    `tune.tuner` trains with a reward in place of text: it has other steps, reports and samples.
    """

    program = "train.py"  # begins a sentence of the watchdog

    settings: Config
    recipe: Recipe
    text: Text
    console: Console
    metrics: MetricsFile | None
    checkpointer: Checkpointer | None
    stop: StopFlag
    state: State
    place: Placement | None = None
    step: int = 0
    saved: int = -1
    seconds_before: float = 0.0

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._stepped, self._seconds_of_steps = 0, 0.0  # since the last row of metrics
        self._valid: float | None = None  # of the last save

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._started

    def _watchdog(self, longer: float = 0) -> Watchdog:
        """Around what waits for the other processes; `longer` seconds beside the time they have."""
        return Watchdog(self.program, self.settings.distributed.timeout + longer)

    def _standing(self) -> int:
        """Whether the run goes on, is to save now, has reached its end, or is asked to stop.

        All processes ask at the same steps, and get one answer.
        """
        settings = self.settings.run
        again = self.checkpointer is not None and self.checkpointer.retry_due()
        own = SAVING if again or self.stop.save_requested else GOING_ON
        if self.step >= settings.steps or 0 < settings.seconds <= self.seconds:
            own = FINISHED
        elif self.stop.requested:
            own = STOPPED
        return distributed.most(own)

    def loop(self) -> bool:
        """Step until the run is finished (True) or is asked to stop; the last state is saved."""
        tokens_ST, validation = self.text.streams.at(self.step), self.text.validation.ids
        sampling = self.settings.run.sample_tokens > 0
        with warmup.beside(self.recipe, tokens_ST, validation, sampling=sampling) as ready:
            return self._steps(tokens_ST, ready)

    def step_function(self) -> evolve.StepFunction:
        """What computes a step from the state, what it reads, and its number."""
        return evolve.compiled_step(self.recipe, self.place)

    def _steps(self, tokens_ST: np.ndarray, ready: Callable[[], None]) -> bool:
        """`loop`, from the next step's tokens on; `ready` waits for what evaluating needs."""
        take_step = self.step_function()
        settings, first = self.settings.run, self.step
        standing, valid = self._standing(), None
        while standing in (GOING_ON, SAVING):
            began = time.monotonic()
            with self._watchdog(self.patience(self.step == first)):
                self.state, measured = take_step(self.state, tokens_ST, self.step)
                if self.step + 1 < settings.steps:  # read while the step is computed
                    tokens_ST = self.text.streams.at(self.step + 1)
                measured.scores_P.block_until_ready()
                self.step += 1
                standing = self._standing()
            self._stepped += 1
            self._seconds_of_steps += time.monotonic() - began
            self.console.advance(self.step, self.seconds)
            if self.checkpointer and (failure := self.checkpointer.poll()):
                self.console.warn(f"{failure}; training goes on and will try again")
            last = standing == FINISHED
            if self.step == first + 1:  # the step was compiled
                memory.trim()
                memory.keep()
            evaluate = last or _due(self.step, settings.eval_every)
            valid = None
            if evaluate:
                ready()
            if evaluate or self.step == 1 or _due(self.step, settings.log_every):
                valid = self.log(measured, evaluate, last)
            due = last or _due(self.step, settings.checkpoint_every)
            if due or standing == SAVING:
                self.save(valid)
            if evaluate and not last:  # it may have taken long
                with self._watchdog():
                    standing = self._standing()
        if self.saved < self.step:
            self.save(valid)
        return standing == FINISHED

    @property
    def weights(self) -> Parameters:
        """The weights as this process's first device has them."""
        return placement.copies(self.state.weights)[0]

    def hash_weights(self) -> str:
        """The hash of the weights, after every copy of them was found to be the same.

        Raises:
          UserError: names the device and process whose copy differs.
        """
        copies = placement.copies(self.state.weights)
        lanes = np.stack([np.asarray(hashing.compiled_lanes(copy)) for copy in copies])
        with self._watchdog():
            distributed.require_equal_weights(self.step, lanes)
        return hashing.shown(lanes[0])

    def patience(self, first: bool) -> float:
        """Seconds that the other processes may take longer for a step, or for the first one."""
        return COMPILING_SECONDS if first else 0

    def standing(self, measured: Metrics, tokens: int) -> dict[str, Any]:
        """What every report has (`runlog.Standing`); `tokens` per step since the last one."""
        seconds, speed = self.seconds, self._stepped * tokens / self._seconds_of_steps
        self._stepped, self._seconds_of_steps = 0, 0.0
        count = sum(leaf.size for _, leaf in params.flatten(self.state.network))
        return {
            "step": self.step,
            "changed": int(measured.changed) / count,
            "saturated": int(measured.saturated) / count,
            "tokens_per_second": speed,
            "seconds": seconds,
            "weights_hash": self.hash_weights(),
        }

    def log(self, measured: Metrics, evaluate: bool, last: bool) -> float | None:
        """Report the step just done; returns the validation bits per byte if evaluated."""
        es = self.settings.es
        score = int(np.asarray(measured.scores_P, np.int64).sum())
        in_bits, tokens = self.recipe.objective.in_bits, es.population * es.segment_length
        standing = self.standing(measured, tokens)
        read_bytes = self.text.streams.text_bytes(self.step - 1) * es.members_per_stream
        valid = self.evaluate(self.text.validation).bits_per_byte if evaluate else None
        report = runlog.Report(
            train_bits_per_byte=tables.bits(score) / max(1, read_bytes) if in_bits else None,
            train_score=None if in_bits else score / es.population,
            valid_bits_per_byte=valid,
            **standing,
        )
        row = runlog.row(report) | {"tokens": self.step * tokens}
        shares = self.text.streams.shares(self.step)
        if len(shares) > 1:
            row["shares"] = shares
        if evaluate and diagnose.possible(es):
            row |= diagnose.summary(self._diagnose())
        self.append(row)
        self.console.report(report)
        if evaluate and not last:  # the end shows one beside the final figures
            self.sample()
        if evaluate:  # at the first one, that was compiled
            memory.trim()
        return valid

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the metrics; a file system that refuses it is no reason to stop."""
        try:
            if self.metrics:
                self.metrics.append(row)
        except OSError as error:
            self.console.warn(
                f"metrics of step {self.step} not written yet: {error.strerror}; "
                "training goes on and will try again"
            )

    def _diagnose(self) -> diagnose.Counts:
        """Counts at the state reached, with the tokens and perturbations of the next step."""
        with self._watchdog():
            members = placement.on_host(self.state.members)
        tokens_ST = self.text.streams.at(self.step)
        return diagnose.count(self.recipe, self.weights, members, tokens_ST, self.step)

    def evaluate(self, documents: Documents) -> CodeLengths:
        """Code lengths of documents under the unperturbed weights."""
        total = sum(len(ids) + 1 for ids in documents.ids)
        with progress.bar("evaluating", total) as update:
            return evaluate.evaluate(
                self.recipe.model,
                self.weights,
                documents.ids,
                documents.text_bytes,
                progress=update,
            )

    def sample(self) -> None:
        """Show what the model writes after the configured prompt."""
        settings = self.settings.run
        if settings.sample_tokens == 0:
            return
        prompt = settings.sample_prompt.encode()
        tokenizer = self.text.tokenizer
        ids = sample.generate(
            self.recipe.model,
            self.weights,
            tokenizer.encode(prompt).tolist(),
            Sampler(temperature=SAMPLE_TEMPERATURE, seed=settings.seed),
            tokens=settings.sample_tokens,
        )
        self.console.sample(self.step, prompt, tokenizer.decode(list(ids)))

    def save(self, valid: float | None) -> None:
        """Checkpoint the state in the background, after the log of its steps is on the disk.

        All processes bring their members' states together; the one that writes writes them.
        """
        self.stop.save_requested = False
        with self._watchdog():
            state = placement.on_host(self.state.stored())
        self.saved, self._valid = self.step, valid
        if self.metrics is None or self.checkpointer is None:
            return
        try:
            self.metrics.flush()
        except OSError as error:
            self.checkpointer.failed(self.step, error)
            return
        self.checkpointer.save(
            self.step,
            state,
            self.host(),
            valid_bits_per_byte=valid,
            lasting=not evolve.lends_memory(self.state),
        )

    def host(self) -> dict[str, Any]:
        """What a checkpoint of this step keeps beside the arrays."""
        text = self.text
        return resume.host_data(
            self.settings, text.identity, text.sha256, text.mixture, self.seconds
        )

    def kept(self) -> bool:
        """Wait for the last save; whether the state reached is on the disk."""
        failed = self.checkpointer is not None and not self.checkpointer.wait()
        return not distributed.most(failed)

    def secure(self) -> None:
        """Wait until the state reached is on the disk; if its save failed, try once more.

        Raises:
          UserError: it failed again; the checkpoints before it are as they were.
        """
        if not self.kept():
            self.save(self._valid)
        if self.checkpointer:
            self.checkpointer.close()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
