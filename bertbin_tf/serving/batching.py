"""Texts of several requests, answered together."""

import asyncio
import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from bertbin_tf.export.servable import Servable

MAX_ROWS = 32
# Texts up to so many times longer or shorter than the one that has waited longest go with it: padded further, the short
# ones would cost more than a call of their own.
MAX_RATIO = 2.0
MIN_LENGTH = 32  # bytes; below, all texts are alike


class Overloaded(RuntimeError):
    """More texts are waiting than the server wants to keep."""


@dataclasses.dataclass(eq=False)
class _Row:
    text: bytes
    answer: asyncio.Future

    @property
    def length(self):
        return max(len(self.text), MIN_LENGTH)


class Batcher:
    """Answers the texts of concurrent requests in batches of similar length.

    Nothing waits for company: while one batch is computed, the texts that come in gather, and the next one is the text
    that has waited longest with those most like it in length. One batch is computed at a time, for TensorFlow
    spreads each over all cores.

    Args:
        servable: The `Servable`.
        max_waiting: Int >= 1, texts that may wait at a time.
        observe: Function called with the number of texts of each batch. Defaults to nothing.
    """

    def __init__(self, servable: Servable, *, max_waiting: int, observe: Callable[[int], None] = lambda rows: None):
        self.servable = servable
        self._max_waiting = max_waiting
        self._observe = observe
        self._rows = []
        self._task = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batch")

    @property
    def num_waiting(self) -> int:
        """How many texts wait for an answer."""
        return len(self._rows)

    async def answer(self, texts: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Returns the outputs for some texts, in their order.

        Args:
            texts: Array or sequence of bytes.

        Raises:
            Overloaded: If too many texts are waiting.
            ValueError: If the model cannot take a text.
        """
        if not len(texts):
            return await self.run({"text": np.array([], object)})
        if len(self._rows) + len(texts) > self._max_waiting:
            raise Overloaded(f"{len(self._rows)} texts are waiting, and {self._max_waiting} may. Try again later.")
        loop = asyncio.get_running_loop()
        rows = [_Row(text, loop.create_future()) for text in texts]
        self._rows.extend(rows)
        if self._task is None:
            self._task = loop.create_task(self._work())
        try:
            answers = await asyncio.gather(*(row.answer for row in rows))
        finally:  # one failed, or whoever asked is gone: the others need no answer
            self._rows = [row for row in self._rows if not row.answer.done()]
        return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}

    async def run(self, inputs: dict[str, np.ndarray], signature: str = "serving_default") -> dict[str, np.ndarray]:
        """Returns the outputs of a signature, computed between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.servable.run, inputs, signature)

    async def close(self) -> None:
        """Frees the model; nobody may be waiting any more."""
        await asyncio.to_thread(self._thread.shutdown)
        self.servable.close()

    async def _work(self):
        while self._rows:
            batch = self._next_batch()
            try:
                self._give(batch, await self.run({"text": _texts(batch)}))
            except Exception:  # of one text perhaps: the others must not suffer
                for row in batch:
                    try:
                        self._give([row], await self.run({"text": _texts([row])}))
                    except Exception as error:
                        if not row.answer.done():
                            row.answer.set_exception(error)
            self._observe(len(batch))
        self._task = None

    def _next_batch(self):
        oldest = self._rows[0]
        alike = [row for row in self._rows if 1 / MAX_RATIO <= row.length / oldest.length <= MAX_RATIO]
        alike.sort(key=lambda row: abs(row.length - oldest.length))  # stable: of two alike, the one that waited longer
        batch = [oldest, *(row for row in alike if row is not oldest)][:MAX_ROWS]
        taken = set(map(id, batch))
        self._rows = [row for row in self._rows if id(row) not in taken]
        return batch

    @staticmethod
    def _give(batch, outputs):
        for i, row in enumerate(batch):
            if not row.answer.done():  # whoever asked may be gone
                row.answer.set_result({name: values[i] for name, values in outputs.items()})


def _texts(batch):
    texts = np.empty(len(batch), object)
    texts[:] = [row.text for row in batch]
    return texts
