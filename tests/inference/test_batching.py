"""What arrives while the thread is busy is handed to it at once; what was given up is not."""

import asyncio
import threading

from reprise.inference.batching import Batched


def test_what_waits_is_one_batch_without_what_was_given_up_and_an_error_reaches_its_batch_alone():
    begun, go_on, batches = threading.Event(), threading.Event(), []

    def double(items):
        batches.append(items)
        begun.set()
        assert go_on.wait(60)
        if "bad" in items:
            raise MemoryError
        return [item * 2 for item in items]

    async def scenario():
        batched = Batched(double, 3)
        first = asyncio.create_task(batched("a"))
        await asyncio.to_thread(begun.wait, 60)
        others = [asyncio.create_task(batched(item)) for item in ("b", "gone", "c", "bad", "d", "e")]
        await asyncio.sleep(0)  # all are waiting now
        others[1].cancel()
        first.cancel()  # while it is computed
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(first, *others, return_exceptions=True), await batched("f")

    (first, b, gone, c, *bad), last = asyncio.run(scenario())
    assert [b, c, last] == ["bb", "cc", "ff"] and batches == [["a"], ["b", "c"], ["bad", "d", "e"], ["f"]]
    assert isinstance(first, asyncio.CancelledError) and isinstance(gone, asyncio.CancelledError)
    assert all(isinstance(each, MemoryError) for each in bad)
