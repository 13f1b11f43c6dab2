"""Rows of several requests, answered together."""

import asyncio
import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np

from bertbin_tf.export.servable import DEFAULT_SIGNATURE, Servable
from bertbin_tf.serving.refused import Refused

MAX_ROWS = 32
# Texts up to so many times longer or shorter than the one that has waited longest go with it: padded further, the short
# ones would cost more than a call of their own.
MAX_RATIO = 2.0
MIN_LENGTH = 32  # bytes; below, all texts are alike


@dataclasses.dataclass(eq=False)
class _Row:
    kind: tuple  # rows of one kind can be stacked: of one signature, and of the same shapes
    length: int
    inputs: dict
    answer: asyncio.Future


class Batcher:
    """Answers the rows of concurrent requests in batches of similar length.

    Nothing waits for company: while one batch is computed, the rows that come in gather, and the next one is the row
    that has waited longest with those most like it in length. One batch is computed at a time, for TensorFlow
    spreads each over all cores.

    Args:
        servable: The `Servable`.
        max_waiting: Int >= 1, rows that may wait at a time.
        observe: Function called with the number of rows of each batch. Defaults to nothing.
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
        """How many rows wait for an answer."""
        return len(self._rows)

    async def answer(self, inputs: dict[str, np.ndarray], signature: str = DEFAULT_SIGNATURE) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature for some rows, in their order.

        If it is cancelled, the rows that are not being computed are forgotten.

        Args:
            inputs: Dict from the name of each input to an array of shape `(rows, ...)`.
            signature: String. Defaults to `"serving_default"`.

        Raises:
            Refused: If too many rows are waiting, or the inputs differ in their number of rows.
            InputError: If the model cannot take a row.
        """
        counts = {len(array) if array.ndim else -1 for array in inputs.values()}
        if len(counts) != 1 or -1 in counts:
            raise Refused(400, "All inputs must be lists of the same number of rows")
        (num_rows,) = counts
        if not num_rows:
            return await self._run(inputs, signature)
        if len(self._rows) + num_rows > self._max_waiting:
            raise Refused(
                503,
                f"{len(self._rows)} rows are waiting, and {self._max_waiting} may. Try again later.",
                Retry_After="1",
            )
        loop = asyncio.get_running_loop()
        kind = (signature, *(array.shape[1:] for array in inputs.values()))
        rows = [
            _Row(kind, _length(row), dict(zip(inputs, row, strict=True)), loop.create_future())
            for row in zip(*inputs.values(), strict=True)
        ]
        self._rows.extend(rows)
        if self._task is None:
            self._task = loop.create_task(self._work())
        try:
            answers = await asyncio.gather(*(row.answer for row in rows))
        finally:  # one failed, or whoever asked is gone: the others need no answer
            for row in rows:
                row.answer.cancel()
            self._rows = [row for row in self._rows if not row.answer.done()]
        return {name: _stack([answer[name] for answer in answers]) for name in answers[0]}

    async def close(self) -> None:
        """Frees the model; nobody may be waiting any more."""
        await asyncio.to_thread(self._thread.shutdown)
        self.servable.close()

    async def _work(self):
        try:
            while self._rows:
                batch = self._next_batch()
                try:
                    await self._compute(batch)
                except Exception:  # of one row perhaps: the others must not suffer
                    for row in batch:
                        try:
                            await self._compute([row])
                        except Exception as error:
                            if not row.answer.done():
                                row.answer.set_exception(error)
                self._observe(len(batch))
        finally:
            self._task = None

    def _next_batch(self):
        oldest = self._rows[0]
        alike = [
            row
            for row in self._rows
            if row.kind == oldest.kind and 1 / MAX_RATIO <= row.length / oldest.length <= MAX_RATIO
        ]
        # Stable, so that of two alike the one that waited longer goes first, and the oldest of all always.
        alike.sort(key=lambda row: abs(row.length - oldest.length))
        batch = alike[:MAX_ROWS]
        taken = set(map(id, batch))
        self._rows = [row for row in self._rows if id(row) not in taken]
        return batch

    async def _compute(self, batch):
        batch = [row for row in batch if not row.answer.done()]  # whoever asked may be gone
        if not batch:
            return
        inputs = {name: _stack([row.inputs[name] for row in batch]) for name in batch[0].inputs}
        outputs = await self._run(inputs, batch[0].kind[0])
        for i, row in enumerate(batch):
            if not row.answer.done():
                row.answer.set_result({name: values[i] for name, values in outputs.items()})

    async def _run(self, inputs, signature):
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.servable.run, inputs, signature)


def _length(row):
    return max([MIN_LENGTH, *(len(value) for value in row if isinstance(value, bytes))])


def _stack(values):
    if not isinstance(values[0], bytes):
        return np.stack(values)
    array = np.empty(len(values), object)  # NumPy's own bytes lose their last NULs
    array[:] = values
    return array
