"""What the pipeline around a call costs, without any transport: run inside a generated project."""

from __future__ import annotations

import logging
import os
import sys
import time

sys.modules["sniffio"] = None  # type: ignore[assignment] # a generated server has none; FastMCP brings it here
import anyio  # noqa: E402


async def _cost_us(package: str, calls: int) -> tuple[float, float]:
    pipeline_module = __import__(f"{package}.reliability.pipeline", fromlist=["Pipeline"])
    metrics = __import__(f"{package}.reliability.metrics", fromlist=["CallMetrics"]).CallMetrics()
    shedder = __import__(f"{package}.reliability.load_shedding", fromlist=["LoadShedder"]).LoadShedder(
        max_concurrent=32, max_queued=64, queue_timeout_s=5
    )
    logs = __import__(f"{package}.reliability.logs", fromlist=["configure_logging"])
    metrics.register("save_note")
    pipeline = pipeline_module.Pipeline(metrics=metrics, load_shedder=shedder)

    __import__(f"{package}.reliability.memory", fromlist=["memory"]).freeze_startup_objects()  # as the server does

    async def work() -> int:
        return 1

    async def guarded() -> int:
        result: int = await pipeline.run(pipeline_module.Call("save_note", "1", 25), work)
        return result

    async def once(function: object) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            await function()  # type: ignore[operator]
        return (time.perf_counter() - started) / calls * 1e6

    await once(guarded)
    bare = min([await once(work) for _ in range(5)])
    silent = min([await once(guarded) for _ in range(5)]) - bare
    logs.configure_logging("info", fd=os.open(os.devnull, os.O_WRONLY))
    return silent, min([await once(guarded) for _ in range(5)]) - bare


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    print("{:.1f} us, with its log line {:.1f} us".format(*anyio.run(_cost_us, sys.argv[1], 20_000)))
