"""``python -m benchmarks.probe``: a fresh process, which prints one number about itself."""

from time import perf_counter

STARTED = perf_counter()  # before anything is imported that a peer needs as well

import asyncio  # noqa: E402
import gc  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tracemalloc  # noqa: E402

from benchmarks.peers import PEERS  # noqa: E402
from benchmarks.scenarios.probes import write  # noqa: E402


async def first_write(peer: str, backend: str, url: str, _sessions: int) -> float:
    """Milliseconds until the first write is acknowledged, imports included."""
    opened = await PEERS[peer].load(backend).open(url)
    await write(opened, f"first-{os.getpid()}")
    elapsed = perf_counter() - STARTED
    await opened.close()
    return elapsed * 1000


async def memory(peer: str, backend: str, url: str, sessions: int) -> float:
    """Kilobytes that Python holds for 1,000 sessions, each opened and written to once."""
    opened = await PEERS[peer].load(backend).open(url)
    await write(opened, f"warm-up-{os.getpid()}")
    gc.collect()
    tracemalloc.start()
    for i in range(sessions):
        await write(opened, f"session-{os.getpid()}-{i}")
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await opened.close()
    return held / 1024 * 1000 / sessions


if __name__ == "__main__":
    what, peer, backend, url, sessions = sys.argv[1:]
    program = {"first_write": first_write, "memory": memory}[what]
    print(asyncio.run(program(peer, backend, url, int(sessions))))
