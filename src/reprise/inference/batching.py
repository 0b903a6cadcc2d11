"""Dynamic batching: what arrives while a thread is busy waits, and is then handed to it at once."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Batched:
    """A function of several items as a coroutine of one; it has a thread of its own.

    function: takes at most `most` items, in the order in which they came, and returns a result for each.
    """

    def __init__(self, function: Callable[[list[Any]], Sequence[Any]], most: int) -> None:
        self.function, self.most = function, most
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self.work: asyncio.Task[None] | None = None

    async def __call__(self, item: Any) -> Any:
        """Return the function's result for one item; raises what it raises."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        self.waiting.append((item, result))
        if self.work is None:
            self.work = loop.create_task(self._run(loop))
        return await result

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while self.waiting:
            taken = [self.waiting.popleft() for _ in range(min(self.most, len(self.waiting)))]
            batch = {result: item for item, result in taken if not result.done()}  # the others were given up
            work = loop.run_in_executor(self.thread, self.function, list(batch.values()))
            found: Any = (await asyncio.gather(work, return_exceptions=True))[0]
            for place, result in enumerate(batch):
                if isinstance(found, BaseException) and not result.done():
                    result.set_exception(found)
                elif not result.done():
                    result.set_result(found[place])
        self.work = None
