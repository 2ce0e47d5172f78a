"""Memory of every process of stage 1 over many rows; flat is what one wants to see.

    python benchmarks/refine_memory.py [--rows 100000] [--out docs]

`raft-ray refine` of so many made-up rows, rewritten by an endpoint of its own that answers at once (no model), with
guards, embeddings and the filter; no fusion, no gap. Prints each process's memory when a fifth of the rows were
written, and at the end, and writes a picture and JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from memory import MemoryWatch
from rich.console import Console

ROLES = {
    "-m raft_ray": "driver",
    "RewriteWorker": "rewrite worker",
    "FuseWorker": "fuse worker",
    "CacheActor": "cache actor",
    "ray::": "other worker",
}


def serve() -> None:
    """An endpoint that says the answer in the prompt anew; prints its port."""
    from aiohttp import web

    fact = re.compile(r"The code of item (\d+) is (\w+)")

    async def complete(request: web.Request) -> web.Response:
        item, code = fact.findall((await request.json())["messages"][-1]["content"])[-1]
        message = {"role": "assistant", "content": f"Item {item} has the code {code}, which is {code} of item {item}."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 60, "completion_tokens": 20, "total_tokens": 80}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "echo", "usage": usage}
        return web.json_response({**reply, "choices": [choice]})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "echo", "object": "model"}]})

    application = web.Application()
    application.router.add_post("/v1/chat/completions", complete)
    application.router.add_get("/v1/models", models)
    web.run_app(application, host="127.0.0.1", port=0, print=lambda text: print(text, flush=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.serve:
        serve()
        return
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = next(re.search(r"127\.0\.0\.1:(\d+)", line) for line in server.stdout)
        assert found is not None
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), f"http://127.0.0.1:{found[1]}/v1", arguments.rows, arguments.out)
    finally:
        server.terminate()
        server.wait()


def measure(folder: Path, url: str, rows: int, out: Path) -> None:
    data, run = folder / "train.jsonl", folder / "run"
    with data.open("w") as file:
        for item in range(rows):
            code = f"K{item * 7919 % 1_000_003:06d}"
            row = {"prompt": f"What is the code of item {item}?", "answer": f"The code of item {item} is {code}."}
            file.write(json.dumps(row) + "\n")
    keys = [
        f"run.dir={run}",
        f"data.train={data}",
        "data.limit=null",
        "refine.rewriter=echo",
        f"refine.models={{echo: {{base_url: '{url}', model: echo, concurrency: 64}}}}",
        "refine.fuser=none",
        "refine.gap=false",
        "refine.tau=0.5",
        "refine.similarity_on=question_answer",
        "refine.attempts=1",
        "refine.batch=512",
    ]
    refined = run / "refined"

    def written() -> int:
        # A part file appears as a whole.
        return sum(pq.read_metadata(part).num_rows for part in refined.glob("part-*.parquet"))

    start = time.perf_counter()
    with MemoryWatch(ROLES, lambda: written() >= rows // 5, me="this measurement") as watch:
        subprocess.run([sys.executable, "-m", "raft_ray", "refine", "smoke", *keys], check=True)
    seconds = time.perf_counter() - start
    console = Console()
    watch.print(console)
    summary = json.loads((refined / "_summary.json").read_text())
    console.print(f"{written()} rows in {seconds:.0f} s, {written() / seconds:.0f} a second; {summary}"[:600])
    result = {
        "rows": written(),
        "seconds": seconds,
        "part_files": len(list(refined.glob("part-*.parquet"))),
        "processes": watch.growth(),
    }
    (out / "benchmark-refine-memory.json").write_text(json.dumps(result, indent=1) + "\n")
    watch.draw(out / "benchmark-refine-memory.png")


if __name__ == "__main__":
    main()
