"""Write texts: from a place in a document on, one or several, each of which can go on later."""

import dataclasses
from collections.abc import Callable, Iterator

from int_lm.runtime import SEPARATOR, Sampler, generate
from int_lm.sample.saved import Saved
from int_lm.sampling import StateReader

OpenReader = Callable[[dict], StateReader]  # a reader that goes on from a state


@dataclasses.dataclass
class Text:
    """A text that is being written: iterate over its ids once, then ask where it stopped."""

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
        """Where it stopped; a text that the model has ended goes on as a new one."""
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
    """One text for each sampler. The prompt is read once, all but its last token.

    Args:
      start: of `saved`. prompt: ids that come after it. progress: told every token of it read.
    """
    unread, reader = [*start.unread, *prompt], open_reader(start.state)
    for token in unread[:-1]:
        reader(token)
        progress(1)
    place = Saved(start.state, [*start.before, *prompt], unread[-1:], start.number)
    for sampler in samplers:
        yield Text(place, reader.copy(), sampler, tokens, stop)
