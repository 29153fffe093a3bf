"""What is printed while an evaluation runs, and the times it takes."""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from maep_lightning.evaluation.ledger import Unit

_EVERY = 5.0
"""Seconds between two lines of an attack."""


class Progress:
    """Prints lines to stderr on the first process, on attacks at most one in `_EVERY` seconds.

    Args:
        shown: Whether to print at all.
        total: Chunks of the evaluation.
        world_size: Processes that share them.
    """

    def __init__(self, shown: bool, total: int, world_size: int) -> None:
        self.shown = shown
        self.total = total
        self.world_size = world_size
        self.upper_bound: float | None = None
        self._afterwards = 0.0
        self._start = time.monotonic()
        self._last = -_EVERY
        self._done = 0
        self._finished: list[float] = []

    def say(self, text: str) -> None:
        """Print a line now."""
        if self.shown:
            print(f"[evaluation] {text}", file=sys.stderr, flush=True)

    def expect(self, attacks: float, sanity: float, milliseconds: float) -> None:
        """Print what the evaluation costs at most.

        Args:
            attacks: Seconds of all attacks if no image breaks.
            sanity: Seconds of the sanity battery after them.
            milliseconds: Of one image through the whole, forward, from which the seconds were reckoned.
        """
        self.upper_bound, self._afterwards = attacks + sanity, sanity
        battery = f", {clock(sanity)} of it the sanity battery" if sanity else ""
        self.say(
            f"at most about {clock(self.upper_bound)} if no image breaks{battery}; broken ones cost far less"
            f" ({milliseconds:.3g} ms a forward pass)"
        )

    def at(self, rung: str, attack: str, chunk: int, alive: int, of: int) -> None:
        """An attack on a chunk begins."""
        now = time.monotonic() - self._start
        if now - self._last >= _EVERY:
            self._last = now
            self.say(
                f"chunk {chunk + 1}/{self.total}, {rung} {attack} on {alive} of {of} images;"
                f" {clock(now)} gone, {self.left(now)}"
            )

    def chunk_done(self, seconds: float, recalled: bool) -> None:
        """A chunk has climbed all rungs; one that was on file says nothing about the time to come."""
        self._done += 1
        if not recalled:
            self._finished.append(seconds)

    def left(self, now: float) -> str:
        """The estimate of the time that is left."""
        if self._finished:
            rest = max(self.total - self._done * self.world_size, 0) / self.world_size
            return f"about {clock(rest * sum(self._finished) / len(self._finished) + self._afterwards)} left"
        if self.upper_bound is not None:
            return f"at most {clock(max(self.upper_bound - now, 0))} left if nothing breaks"
        return "no estimate yet"


class Timings:
    """Seconds and passes of the units, beside the ledger and not part of its hash.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "timings"
        self.path = self.folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"

    def add(self, unit: Unit, seconds: float, forwards: int, backwards: int) -> None:
        """Note a unit that was made just now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {
            "rung": unit.rung,
            "attack": unit.attack,
            "chunk": unit.chunk,
            "samples": len(unit.indices),
            "seconds": round(seconds, 4),
            "forwards": forwards,
            "backwards": backwards,
        }
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """The last entry of every unit, in no particular order; a line cut by a kill is left out."""
        entries: dict[tuple[str, str, int], dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    entries[entry["rung"], entry["attack"], entry["chunk"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue
        return list(entries.values())

    def seconds(self) -> dict[str, float]:
        """Process-seconds of each rung."""
        total: dict[str, float] = {}
        for entry in self.read():
            total[entry["rung"]] = total.get(entry["rung"], 0.0) + float(entry["seconds"])
        return total


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
