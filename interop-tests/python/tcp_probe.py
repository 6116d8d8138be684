"""What a line is like for a plain TCP connection: how long a byte takes there and back, and how much arrives in a second.

Usage: python3 tcp_probe.py serve ADDRESS PORT            prints `ready`, answers one asker after the other
       python3 tcp_probe.py ask ADDRESS PORT SECONDS      prints a JSON object
Only Python's standard library.
"""

import json
import socket
import statistics
import sys
import time

ECHOES = 9
CHUNK = 1 << 16
# What a connection takes to find out how fast it may send.
WARM_UP = 0.5  # share of the time


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port)) as listener:
        print("ready", flush=True)
        while True:
            asker, _ = listener.accept()
            with asker:
                asker.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                answer(asker)


def answer(asker: socket.socket) -> None:
    """Sends each byte back, until a number of seconds comes: then sends for so long, as much as it can."""
    while (said := asker.recv(1)) == b"?":
        asker.sendall(said)
    if said:
        end = time.monotonic() + said[0]
        while time.monotonic() < end:
            asker.sendall(bytes(CHUNK))


def ask(address: str, port: int, seconds: int) -> dict:
    with socket.create_connection((address, port)) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range(ECHOES):
            start = time.perf_counter()
            server.sendall(b"?")
            server.recv(1)
            times.append(time.perf_counter() - start)
        found = {"round_trip_ms": 1e3 * statistics.median(times)}
        return found | ({"bytes_s": rate(server, seconds)} if seconds else {})


def rate(server: socket.socket, seconds: int) -> float:
    server.sendall(bytes([seconds]))
    warm, n_bytes, last = time.perf_counter() + WARM_UP * seconds, 0, 0.0
    begin = None
    while said := server.recv(CHUNK):
        last = time.perf_counter()
        if begin is not None:
            n_bytes += len(said)
        elif last >= warm:
            begin = last
    return n_bytes / (last - begin)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        print(json.dumps(ask(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
