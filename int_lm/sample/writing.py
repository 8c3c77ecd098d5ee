"""Writes one or several texts from a saved state; each text can itself be saved and continued."""

import dataclasses
from collections.abc import Callable, Iterator

from int_lm.runtime import SEPARATOR, Sampler, generate
from int_lm.sample.saved import Saved
from int_lm.sampling import StateReader

OpenReader = Callable[[dict], StateReader]  # makes a reader that begins with a state


@dataclasses.dataclass
class Text:
    """A text that is being written. Iterate over its ids once, then call `stopped`.

    Attributes:
      start: the state at which the text begins.
      reader: reads the tokens.
      sampler: settings of the draws.
      tokens: the largest number of ids.
      stop: whether to end where the model ends its text.
    """

    start: Saved
    reader: StateReader
    sampler: Sampler
    tokens: int
    stop: bool

    def __iter__(self) -> Iterator[int]:
        self.drawn: list[int] = []
        for token in generate(
            self.reader,
            self.start.before,
            self.sampler,
            tokens=self.tokens,
            stop=self.stop,
            unread=self.start.unread,
            first=self.start.number,
        ):
            self.drawn.append(token)
            yield token

    def stopped(self) -> Saved:
        """The state at the end. If the model has ended the text, it is that of a new document."""
        unread = [*self.start.unread, *self.drawn][self.reader.count :]
        number = self.start.number + len(self.drawn)
        if not unread:  # the separator was drawn
            return Saved(self.reader.state, [], [SEPARATOR], number + 1)
        return Saved(self.reader.state, [*self.start.before, *self.drawn], unread, number)


def texts(
    start: Saved,
    prompt: list[int],
    open_reader: OpenReader,
    samplers: list[Sampler],
    *,
    tokens: int,
    stop: bool,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Iterator[Text]:
    """Yield one text for each sampler. The prompt, without its last token, is read only once.

    Args:
      start: the state before the prompt.
      prompt: ids.
      open_reader: makes the readers.
      samplers: settings of the draws of each text.
      tokens: the largest number of ids of a text.
      stop: whether a text ends where the model ends it.
      progress: called with 1 for every token of the prompt that is read.
    """
    unread, reader = [*start.unread, *prompt], open_reader(start.state)
    for token in unread[:-1]:
        reader(token)
        progress(1)
    place = Saved(start.state, [*start.before, *prompt], unread[-1:], start.number)
    for sampler in samplers:
        yield Text(place, reader.copy(), sampler, tokens, stop)
