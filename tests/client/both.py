"""The two clients behind one interface, so that a test runs once by each.

Each call has a connection of its own. ``connection`` is what the client's constructor takes besides
address and timeout.
"""

import asyncio

from alinfik.client import AsyncClient, Client, Sample

SAMPLES = [
    Sample(id="sum", provider="p", prompt="How many?", completion="She sold 48 / 2 = 24 clips."),
    Sample(id="code", provider="q", completion="def add(a, b): return a + b"),
]


class _Both:
    def score(self, address, samples, **options):
        return self.call(address, "score", samples, **options)

    def bundles(self, address):
        return self.call(address, "bundles")

    def bundle(self, address, bundle_id=""):
        return self.call(address, "bundle", bundle_id)


class Blocking(_Both):
    """The blocking client."""

    def call(self, address, method, *arguments, timeout_seconds=10, connection=None, **options):
        with Client(address, timeout_seconds, **(connection or {})) as client:
            return getattr(client, method)(*arguments, **options)

    def score_stream(self, address, samples, *, timeout_seconds=10, connection=None, **options):
        with Client(address, timeout_seconds, **(connection or {})) as client:
            yield from client.score_stream(samples, **options)


class Asyncio(_Both):
    """The asyncio client, driven to the end of each call."""

    def call(self, address, method, *arguments, timeout_seconds=10, connection=None, **options):
        async def call():
            async with AsyncClient(address, timeout_seconds, **(connection or {})) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(call())

    def score_stream(self, address, samples, *, timeout_seconds=10, connection=None, **options):
        async def score_stream():
            async with AsyncClient(address, timeout_seconds, **(connection or {})) as client:
                async for scored in client.score_stream(samples, **options):
                    yield scored

        stream = score_stream()
        with asyncio.Runner() as runner:
            while True:
                try:
                    yield runner.run(anext(stream))
                except StopAsyncIteration:
                    return
