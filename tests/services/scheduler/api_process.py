"""The API of `harness` as a process of its own: prints its address, serves until killed."""

import asyncio
import sys

from synerdiff.redis_client import connect
from tests.services.scheduler.harness import start_scheduler


async def main(redis_url: str) -> None:
    scheduler = await start_scheduler(connect(redis_url))
    print(scheduler.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
