"""Load on ``recbole-tokenrec serve``: requests at a fixed rate over loopback, and how long each took.

    python -m benchmarks.serve_load --checkpoint C --rate 50 --seconds 20

Starts the server itself, asks it for random known users, one request every 1 / rate seconds whether or not earlier ones
are answered: a slow server cannot slow the load, and a request's time runs from when it was due. After each of
``--rounds`` such loads come malformed requests, of which each must get a 4xx. The asking side is the standard library
alone and runs on the same machine. The server's CPU seconds are read from the kernel.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

from benchmarks.harness import begin, finish, parser
from benchmarks.use import about
from recbole_tokenrec import load

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}

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


def main() -> None:
    arguments_parser = parser(__doc__.splitlines()[0], "serve_load", rounds=3)
    arguments_parser.add_argument("--checkpoint", required=True)
    arguments_parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default: %(default)s)")
    arguments_parser.add_argument("--seconds", type=float, default=20.0, help="of a round (default: %(default)s)")
    arguments = arguments_parser.parse_args()
    before = begin(arguments)
    model = load(arguments.checkpoint)
    words = [sys.executable, "-m", "recbole_tokenrec.cli.main", "serve", "--port", "0"]
    words += ["--threads", str(arguments.threads), "--checkpoint", arguments.checkpoint]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    rounds = []
    try:
        line = server.stdout.readline()
        if not line.startswith("serving"):
            sys.exit(f"the server did not start: {line!r}")
        port = int(line.split()[3].rsplit(":", 1)[1])
        for number in range(arguments.rounds):
            load_before, cpu = os.getloadavg()[0], cpu_seconds(server.pid)
            taken, codes = load_test(port, model.users, arguments.rate, arguments.seconds, seed=number)
            cpu = cpu_seconds(server.pid) - cpu
            answers = list(malformed(port))
            rounds.append(
                {
                    "requests": len(taken),
                    "not_200": sum(code != 200 for code in codes),
                    "ms": {name: percentile(taken, share) for name, share in SHARES.items()},
                    "server_cpu_ms_per_request": 1000 * cpu / len(taken),
                    "malformed": len(answers),
                    "malformed_not_4xx": [answer for answer in answers if not 400 <= answer[2] < 500],
                    "load_average": load_before,
                }
            )
            print(rounds[-1], flush=True)
    finally:
        server.terminate()
        server.wait(30)
    finish(arguments, before, {**about(model), "rounds": rounds})


def percentile(seconds: list[float], share: float) -> float:
    """Milliseconds within which this share of the requests was answered."""
    return 1000 * sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)]


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load_test(port: int, users: list[str], rate: float, seconds: float, seed: int) -> tuple[list[float], list[int]]:
    """Seconds from the moment a request was due to its answer, and status codes."""
    local, draw = threading.local(), random.Random(seed)

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
        yield method, path[:40], connection.getresponse().status
        connection.close()


if __name__ == "__main__":
    main()
