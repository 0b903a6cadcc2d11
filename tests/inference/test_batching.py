"""What arrives while the thread is busy is handed to it at once; what was given up is not."""

import asyncio
import threading

import pytest

from reprise.inference.batching import Batched


class Gate:
    """A function that records its batches, and waits until it is opened."""

    def __init__(self):
        self.begun, self.open, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, items):
        self.batches.append(items)
        self.begun.set()
        assert self.open.wait(60)
        if "bad" in items:
            raise MemoryError
        return [item * 2 for item in items]


async def blocked(gate, most):
    """Return a Batched whose thread is at work on "a", and that task."""
    batched = Batched(gate, most)
    first = asyncio.create_task(batched("a"))
    await asyncio.to_thread(gate.begun.wait, 60)
    return batched, first


def test_items_that_wait_are_one_batch_of_at_most_so_many_and_each_gets_its_own_result():
    async def scenario():
        gate = Gate()
        batched, first = await blocked(gate, 3)
        others = [asyncio.create_task(batched(item)) for item in "bcde"]
        await asyncio.sleep(0)  # all are waiting now
        gate.open.set()
        assert await asyncio.gather(first, *others) == ["aa", "bb", "cc", "dd", "ee"]
        assert await batched("f") == "ff"
        assert gate.batches == [["a"], ["b", "c", "d"], ["e"], ["f"]]

    asyncio.run(scenario())


def test_what_was_given_up_is_not_computed_and_an_error_reaches_its_batch_alone():
    async def scenario():
        gate = Gate()
        batched, first = await blocked(gate, 2)
        others = [asyncio.create_task(batched(item)) for item in ("gone", "bad", "c")]
        await asyncio.sleep(0)
        others[0].cancel()
        gate.open.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(each) for each in found] == [str, asyncio.CancelledError, MemoryError, str]
        assert gate.batches == [["a"], ["bad"], ["c"]]

    asyncio.run(scenario())


def test_an_item_given_up_while_it_is_computed_harms_no_other():
    async def scenario():
        gate = Gate()
        batched, first = await blocked(gate, 2)
        first.cancel()
        second = asyncio.create_task(batched("b"))
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second == "bb"

    asyncio.run(scenario())
