"""Load on ``recbole-tokenrec serve``: requests at a fixed rate over loopback, and how long each took.

    python benchmarks/serve_load.py --checkpoint C --rate 50 --seconds 20

Starts the server itself, asks it for random known users, one request every 1 / rate seconds whether or not earlier ones
are answered (so that a slow server cannot slow the load), and prints one JSON line. Then it sends malformed requests
and counts answers other than 4xx. Standard library only on the asking side, which runs on the same machine.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from urllib.parse import quote

MALFORMED = [
    ("GET", "/recommend", None),
    ("GET", "/recommend?user=a&k=-1", None),
    ("GET", "/recommend?user=a&k=1e9", None),
    ("GET", "/recommend?user=" + "a" * 5000, None),
    ("GET", "/items/%FF/tokens", None),
    ("POST", "/recommend", b""),
    ("POST", "/recommend", b"{"),
    ("POST", "/recommend", b"\x00\xff"),
    ("POST", "/recommend", b"[]"),
    ("POST", "/recommend", b'{"users": {"a": 1}}'),
    ("POST", "/recommend", b'{"users": ["a"], "k": 1e400}'),
    ("POST", "/recommend", b'{"histories": {"a": [[]]}}'),
    ("POST", "/recommend", b'{"users": ["a"], "candidates": ["no such item"]}'),
    ("DELETE", "/recommend", None),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="(default: %(default)s)")
    arguments = parser.parse_args()

    from recbole_tokenrec import load

    users = load(arguments.checkpoint).users
    command = [sys.executable, "-m", "recbole_tokenrec.cli.main", "serve", "--port", "0"]
    server = subprocess.Popen([*command, "--checkpoint", arguments.checkpoint], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().split()[3].rsplit(":", 1)[1])
        taken, codes = load_test(port, users, arguments.rate, arguments.seconds)
        wrong = [(method, path[:40], code) for method, path, code in malformed(port) if not 400 <= code < 500]
    finally:
        server.terminate()
        server.wait(30)
    taken.sort()

    def percentile(share: float) -> float:
        return round(1000 * taken[min(int(share * len(taken)), len(taken) - 1)], 1)

    print(
        json.dumps(
            {
                "requests": len(taken), "rate": arguments.rate, "not_200": sum(code != 200 for code in codes),
                "ms": {"p50": percentile(0.5), "p95": percentile(0.95), "p99": percentile(0.99), "max": percentile(1)},
                "malformed": len(MALFORMED), "malformed_not_4xx": wrong,
            }
        )
    )  # fmt: skip
    return 0


def load_test(port: int, users: list[str], rate: float, seconds: float) -> tuple[list[float], list[int]]:
    """Seconds from the moment a request was due to its answer, and status codes."""
    local, draw = threading.local(), random.Random(0)

    def ask(user: str, due: float) -> tuple[float, int]:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        local.connection.request("GET", f"/recommend?user={quote(user)}&k=10")
        answer = local.connection.getresponse()
        answer.read()
        return time.perf_counter() - due, answer.status

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        begin, waiting = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            waiting.append(pool.submit(ask, draw.choice(users), due))
        results = [future.result() for future in waiting]
    return [seconds for seconds, _ in results], [code for _, code in results]


def malformed(port: int):
    """Each malformed request with the status it got."""
    for method, path, body in MALFORMED:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(method, path, body, {"content-type": "application/json"} if body is not None else {})
        yield method, path, connection.getresponse().status
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
