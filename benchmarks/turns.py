"""Programs of several environments take turns on one machine: each does so much work whenever it is told to.

Only the standard library, for it runs in all of the environments.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

MARK = "@turns "


def largest_memory() -> float:
    """Returns the largest memory of this process so far, in MB, on Linux.

    `getrusage` would count that of the process which started it, too, as it was then.
    """
    with open("/proc/self/status", encoding="utf-8") as file:
        (kilobytes,) = (line.split()[1] for line in file if line.startswith("VmHWM:"))
    return int(kilobytes) / 1024


class Player:
    """The program's side: its line of numbers for each turn, and a wait for the next one.

    A turn is counted in whatever the program does again and again, such as training steps.

    Args:
        seed: Int, of what the program draws; an attribute. Defaults to `0`.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._left, self._started = 0, time.perf_counter()

    def wait(self, **facts) -> int:
        """Ends a turn and waits for the next; returns how much is to be done. Ends the program after the last turn.

        Args:
            **facts: Numbers to report of the turn that ends, beside its seconds and the largest memory so far.
        """
        seconds = time.perf_counter() - self._started
        print(MARK + json.dumps({"seconds": seconds, "megabytes": largest_memory(), **facts}), flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            sys.stdout.flush()
            os._exit(0)  # in the middle of a training, which nothing is to be kept of
        self._left = int(line)
        self._started = time.perf_counter()
        return self._left

    def step(self) -> None:
        """Counts one piece of work, and waits after the last of the turn."""
        self._left -= 1
        if self._left <= 0:
            self.wait()

    def play(self, work, first: int) -> None:
        """Has a function do so much in each turn, and a first piece beforehand."""
        work(first)
        while True:
            work(self.wait())


class Race:
    """Ends a training as soon as its model is good enough. What looking costs is not counted.

    Args:
        player: The `Player`.
        goal: Float, the accuracy to reach.
        every: Int, a look is taken after so many steps, and after the last one.

    Attributes:
        labels: Int array of 0 and 1, of shape `(rows,)`, of the rows that are looked at.
        answer: Function that returns what the model says of these rows: an array of 0 and 1 of the same shape.
        finish: Function that makes the model ready to answer, which is counted the last time.
    """

    def __init__(self, player, goal: float, every: int):
        self._player, self._goal, self._every = player, goal, every
        self.labels = self.answer = None
        self.finish = lambda: None
        self._steps, self._uncounted, self._accuracies = 0, 0.0, {}

    @contextlib.contextmanager
    def pause(self):
        """What is done meanwhile is not counted, such as reading the rows that are looked at."""
        began = time.perf_counter()
        yield
        self._uncounted += time.perf_counter() - began

    def step(self) -> None:
        """Counts a step, and looks if it is time to."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._look()

    def end(self) -> None:
        """Looks a last time, and ends the program."""
        if self._steps not in self._accuracies:
            self._look()
        self._report(reached=False)

    def _look(self):
        began = time.perf_counter()
        self.finish()
        finished = time.perf_counter()
        self._accuracies[self._steps] = float((self.answer() == self.labels).mean())
        reached = self._accuracies[self._steps] >= self._goal
        self._uncounted += time.perf_counter() - (finished if reached else began)
        if reached:
            self._report(reached=True)

    def _report(self, reached):
        self._player.wait(reached=reached, steps=self._steps, uncounted=self._uncounted, accuracies=self._accuracies)


class Turns:
    """The benchmark's side: starts a program and tells it when to work.

    Args:
        command: List of strings. The program makes itself ready and then calls `Player.wait`.
        environment: Dict of environment variables, beside this process's own.
    """

    def __init__(self, command: list[str], environment: dict[str, str] | None = None):
        self._command = command
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TOKENIZERS_PARALLELISM": "true"} | (environment or {}),
        )
        self._errors = []
        threading.Thread(target=self._keep_errors, daemon=True).start()
        self.start = self._answer()

    def take(self, count: int) -> dict:
        """Has the program do so much, and returns what it reports."""
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends the program."""
        self._process.stdin.close()
        self._process.wait(60)

    def _keep_errors(self):
        for line in self._process.stderr:
            self._errors = [*self._errors[-30:], line]

    def _answer(self):
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        self._process.wait()
        raise RuntimeError(f"{' '.join(self._command)} has ended:\n{''.join(self._errors)}")
