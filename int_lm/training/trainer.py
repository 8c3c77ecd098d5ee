"""The training loop: step, log, evaluate, sample, save, until the end or a request to stop.

The loop sees token ids only. `Text`, which `train.py` makes, has the tokenizer and the documents.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from int_lm import lengths, progress, resume, sample
from int_lm.arithmetic import constants
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
from int_lm.training import distributed, memory, pooling, runlog, warmup
from int_lm.training.distributed import Watchdog
from int_lm.training.interrupt import StopFlag
from int_lm.training.metrics_file import MetricsFile
from int_lm.training.runlog import Console
from int_lm.training.text import Documents as Documents, Text as Text
from int_lm.training.warmup import WarmUp

SAMPLE_TEMPERATURE = 1.0  # below, a document cache goes round in circles
COMPILING_SECONDS = 3600.0  # added to the watchdog's time at the first step, which compiles
# The status of a run; if processes differ, the largest value holds.
GOING_ON, SAVING, FINISHED, STOPPED = range(4)


@dataclasses.dataclass
class Trainer:
    """A run that is being trained: its state, and the objects that report and save it.

    `tune.tuner` trains with a reward in place of text: it has other steps, reports and samples.

    Attributes:
      settings: the configuration.
      recipe: made of `settings`.
      text: the tokens, documents and tokenizer of the run.
      console: prints lines.
      metrics: `metrics.jsonl`; None in processes that do not write.
      checkpointer: writes checkpoints; None in processes that do not write.
      stop: says whether a signal asked the run to stop or to save.
      state: the current state, laid out over the devices of `place`.
      place: the devices; None for one device.
      step: number of updates done.
      saved: the step whose save began last, whether or not it succeeded; -1 for none.
      resumed: host data of the checkpoint that the run goes on from; None for a new run.
    """

    program = "train.py"  # the watchdog's message begins with it

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
    resumed: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._lengths = lengths.after(self.resumed, self.settings, self.step)
        self._started = time.monotonic() - (self.resumed["seconds"] if self.resumed else 0)
        # steps after the last row of metrics, and the seconds that they took
        self._stepped, self._seconds_of_steps = 0, 0.0
        self._valid: float | None = None  # validation bits per byte of the last save

    @property
    def seconds(self) -> float:
        """Seconds of training so far, with those of earlier processes of the run."""
        return time.monotonic() - self._started

    def _watchdog(self, longer: float = 0) -> Watchdog:
        """A context for calls that wait for other processes, `longer` seconds beyond the limit."""
        return Watchdog(self.program, self.settings.distributed.timeout + longer)

    def _standing(self) -> int:
        """Whether the run goes on, must save now, has reached its end, or was asked to stop.

        All processes call this at the same steps, and get the same answer.
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
        """Train until the end of the run or a request to stop, then begin to save the last state.

        Returns:
          Whether the run reached its end.
        """
        tokens_ST, validation = self.text.streams.at(self.step), self.text.validation.ids
        sampling = self.settings.run.sample_tokens > 0
        with warmup.beside(self.recipe, tokens_ST, validation, sampling=sampling) as warm:
            return self._steps(tokens_ST, warm)

    def step_function(self) -> evolve.StepFunction:
        """The compiled step: (state, tokens_ST, step) -> (next state, metrics)."""
        return evolve.compiled_step(self.recipe, self.place)

    def _steps(self, tokens_ST: np.ndarray, warm: WarmUp) -> bool:
        """The body of `loop`.

        Args:
          tokens_ST: tokens of the next step.
          warm: compiles the programs that an evaluation needs.
        """
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
                memory.large_pages(self.state)  # which the next steps change in place
                warm.begin()
            evaluate = last or _due(self.step, settings.eval_every)
            valid = None
            if evaluate:
                warm.ready()
            if evaluate or self.step == 1 or _due(self.step, settings.log_every):
                with memory.returned():
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
        """The model's weights, as the first device of this process holds them."""
        return placement.copies(evolve.weights(self.recipe, self.state))[0]

    def hash_weights(self) -> str:
        """The hash of the weights, 16 hex digits, after a check that all copies are the same.

        Raises:
          UserError: names the device and process whose copy differs.
        """
        copies = placement.copies(evolve.weights(self.recipe, self.state))
        lanes = np.stack([np.asarray(hashing.compiled_lanes(copy)) for copy in copies])
        with self._watchdog():
            distributed.require_equal_weights(self.step, lanes)
        return hashing.shown(lanes[0])

    def patience(self, first: bool) -> float:
        """Seconds that a step may take beyond the limit; `first` is True for the first step."""
        return COMPILING_SECONDS if first else 0

    def standing(self, measured: Metrics, tokens: int) -> dict[str, Any]:
        """The values of `runlog.Standing` by name.

        Args:
          measured: metrics of the step just done.
          tokens: tokens of all members in each step after the last report.
        """
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
        """Report the step just done.

        Args:
          measured: metrics of the step.
          evaluate: whether to measure bits per byte of the validation text.
          last: whether it is the last step of the run.

        Returns:
          Bits per byte of the validation text; None if not evaluated.
        """
        es = self.settings.es
        score = int(np.asarray(measured.scores_P, np.int64).sum())
        in_bits, tokens = self.recipe.objective.in_bits, es.population * es.segment_length
        standing = self.standing(measured, tokens)
        read_bytes = self.text.streams.text_bytes(self.step - 1) * es.members_per_stream
        valid = self.evaluate(self.text.validation).bits_per_byte if evaluate else None
        report = runlog.Report(
            train_bits_per_byte=constants.bits(score) / max(1, read_bytes) if in_bits else None,
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
        if evaluate and es.pooled and self.metrics:
            row |= pooling.row(self.settings.model, self.state.tables, self.console)
        self.append(row)
        self.console.report(report)
        if evaluate and not last:  # the end of the run shows one beside the final figures
            self.sample()
        return valid

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the metrics; if the file system refuses it, warn and go on."""
        try:
            if self.metrics:
                self.metrics.append(row)
        except OSError as error:
            self.console.warn(
                f"metrics of step {self.step} not written yet: {error.strerror}; "
                "training goes on and will try again"
            )

    @memory.returned()
    def _diagnose(self) -> diagnose.Counts:
        """The diagnosis of the current state, with tokens and perturbations of the next step."""
        members = self.state.members
        if self.place is not None:
            with self._watchdog():
                members = placement.on_host(members)
        tokens_ST = self.text.streams.at(self.step)
        weights = placement.copies(self.state.weights)[0]
        return diagnose.count(self.recipe, weights, members, tokens_ST, self.step)

    @memory.returned()
    def evaluate(self, documents: Documents) -> CodeLengths:
        """Code lengths of documents under the unperturbed weights."""
        total = sum(len(ids) + 1 for ids in documents.ids)
        with progress.bar("evaluating", total) as update:
            ids, sizes, model = documents.ids, documents.text_bytes, self.recipe.model
            return evaluate.evaluate(model, self.weights, ids, sizes, progress=update)

    @memory.returned()
    def sample(self) -> None:
        """Print what the model writes after the configured prompt."""
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

    @memory.returned()
    def save(self, valid: float | None) -> None:
        """Checkpoint the state in the background, after the log of its steps is on the disk.

        All processes must call this: their members' states are collected. One process writes them.

        Args:
          valid: bits per byte of the validation text at this step; None if not evaluated.
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
        """The host data of a checkpoint: all that it keeps beside the arrays (`resume`)."""
        text = self.text
        return resume.host_data(
            self.settings, text.identity, text.sha256, text.mixture, self.seconds, self._lengths
        )

    def kept(self) -> bool:
        """Wait for the last save; returns whether it succeeded. All processes must call this."""
        failed = self.checkpointer is not None and not self.checkpointer.wait()
        return not distributed.most(failed)

    def let_go(self) -> None:
        """Forget the state but for the weights: it is saved, and no step follows."""
        self.state = evolve.without_memory(self.recipe, self.state)

    def secure(self) -> None:
        """Wait until the current state is on the disk; if its save failed, try once more.

        Raises:
          UserError: it failed again; the earlier checkpoints are unchanged.
        """
        if not self.kept():
            self.save(self._valid)
        if self.checkpointer:
            self.checkpointer.close()


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
