"""Dynamic batching: images that arrive while the network is busy are computed together, at most BATCH at once."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reprise.data.prepare.decode import BadImageError
from reprise.inference.predict import BATCH, Model, Prediction
from reprise.inference.sources import pixels


class Batcher:
    """A model that answers single images from one event loop; it decodes in one thread and computes in another.

    One thread decodes, because `decode` is not for several at once, and because that bounds its memory. on_batch: is
    told the number of images of each batch.
    """

    def __init__(self, model: Model, on_batch: Callable[[int], object] = int) -> None:
        self.model, self.on_batch = model, on_batch
        self.decoder, self.network = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self.work: asyncio.Task[None] | None = None

    async def predict(self, name: str, image: bytes, top: int = 5) -> Prediction:
        """Return the answer for one encoded image."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self.decoder, pixels, image, self.model.card.preprocessing)
        except BadImageError as error:
            return Prediction(name, reason=str(error))
        except MemoryError:
            return Prediction(name, reason="not enough memory to decode it; save it smaller")
        row: asyncio.Future[np.ndarray] = loop.create_future()
        self.waiting.append((found, row))
        if self.work is None:
            self.work = loop.create_task(self._compute())
        return self.model.prediction(name, await row, top)

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting:
            batch = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
            batch = [(image, row) for image, row in batch if not row.done()]  # whose request was given up
            if not batch:
                continue
            self.on_batch(len(batch))
            images = np.stack([image for image, _ in batch])
            try:
                rows = await loop.run_in_executor(self.network, self.model.probabilities, images)
            except Exception as error:
                answers: list = [error] * len(batch)
            else:
                answers = list(rows)
            for (_, row), answer in zip(batch, answers, strict=True):
                if not row.done():
                    row.set_exception(answer) if isinstance(answer, Exception) else row.set_result(answer)
        self.work = None
