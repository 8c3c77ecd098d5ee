"""The thread that computes the batch, and the queue in front of it."""

import collections
import sys
import threading
import traceback
from collections.abc import Callable

from int_lm.runtime import Model
from int_lm.serve import refusal
from int_lm.serve.lanes import Batch, Job
from int_lm.serve.refusal import RefusalError
from int_lm.serve.request import Limits


class Worker:
    """Computes jobs: as many at once as fit, the others in the order in which they came.

    Args:
      model: of all texts.
      limits: `concurrent` texts and `queued` jobs.
      moved: called in the thread after every step with the jobs that have something new: a text has
        grown, or ended.
    """

    def __init__(self, model: Model, limits: Limits, moved: Callable[[list[Job]], None]) -> None:
        self._batch, self._limits, self._moved = Batch(model), limits, moved
        self._changed = threading.Condition()
        self._running: list[Job] = []
        self._new: list[Job] = []  # of these, those whose lanes are not in the batch yet
        self._waiting: collections.deque[Job] = collections.deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="int_lm.serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
          RefusalError: too many wait already, or the server is being stopped.
        """
        with self._changed:
            if self._stopping:
                raise refusal.stopping()
            self._waiting.append(job)
            self._admit()
            if job in self._waiting and len(self._waiting) > self._limits.queued:
                self._waiting.remove(job)
                raise refusal.overloaded(len(self._waiting))
            self._changed.notify()

    def give_up(self, job: Job) -> None:
        """Forget a job: its place is free before the next step."""
        with self._changed:
            job.given_up = True
            self._admit()
            self._changed.notify()

    def counts(self) -> dict[str, int]:
        """Texts that are being computed, and jobs that wait."""
        with self._changed:
            return {"texts": self._taken(), "waiting": len(self._waiting)}

    def stop(self) -> None:
        """Refuse every job, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _taken(self) -> int:
        return sum(job.left for job in self._running if not job.given_up)

    def _fits(self, job: Job) -> bool:
        return self._taken() + job.wanted.size <= self._limits.concurrent

    def _run(self) -> None:
        while True:
            with self._changed:
                self._admit()
                while not (self._stopping or self._running):
                    self._changed.wait()
                if self._stopping:
                    return self._fail([*self._running, *self._waiting], refusal.stopping())
                running, new, self._new = self._running, self._new, []
            try:
                self._batch.add([lane for job in new for lane in job.lanes()])
                self._batch.step()
            except Exception:  # of a plug-in, or no memory: the server goes on
                traceback.print_exc(file=sys.stderr)
                self._batch.clear()
                self._fail(running, RefusalError(500, "the model could not be computed"))
                continue
            if moved := [job for job in running if not job.left or job.streams()]:
                self._moved(moved)

    def _admit(self) -> None:
        """Forget jobs that have ended or were given up, and take up those that now fit."""
        self._running = [job for job in self._running if job.left and not self._over(job)]
        self._waiting = collections.deque(job for job in self._waiting if not self._over(job))
        while self._waiting and self._fits(self._waiting[0]):
            job = self._waiting.popleft()
            self._running.append(job)
            self._new.append(job)

    @staticmethod
    def _over(job: Job) -> bool:
        return job.given_up or job.refusal is not None

    def _fail(self, jobs: list[Job], reason: RefusalError) -> None:
        for job in jobs:
            job.refusal = reason
        self._moved(jobs)
