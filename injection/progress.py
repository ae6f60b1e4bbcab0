"""Progress with the time left: one live line on a terminal, sparse lines in a log."""

import sys
import time


class Progress:
    """Report `done` of `total` on stderr. In a log, at most one line in `every` seconds."""

    def __init__(self, label: str, total: int, every: float = 15.0):
        self.label, self.total, self.every = label, total, every
        self.start = self.last = time.monotonic()
        self.first: int | None = None
        self.live = sys.stderr.isatty()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self.first is None:
            # What an earlier, interrupted run did took no time in this one.
            self.first = max(done - 1, 0)
        if not self.live and done < self.total and now - self.last < self.every:
            return
        self.last = now
        elapsed = now - self.start
        left = elapsed / max(done - self.first, 1) * (self.total - done)
        times = f"{clock(elapsed)} gone, {clock(left)} left"
        line = f"{self.label} {done}/{self.total}  {times}  {note}"
        end = "\n" if not self.live or done >= self.total else ""
        print(f"\r{line:<100}" if self.live else line, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{rest:02d}"
