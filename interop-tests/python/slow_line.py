"""A slow and lossy line between two network devices, in place of `tc netem`, which not every kernel has.

Usage: python3 slow_line.py ONE OTHER DELAY LOSS [RATE]
Makes two TUN devices of these names in its network namespace, prints `ready`, and carries every packet from each to the
other DELAY milliseconds later, except the share LOSS of them; with a RATE no more than so many bytes per second each way, where
what would have to wait longer than a router lets it is lost.
The devices may be moved to other namespaces afterwards.
Which packets are lost depends on their number alone: it is the same in every run.
"""

import collections
import contextlib
import fcntl
import os
import random
import selectors
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SEED = 20
MOST_ON_THE_WAY = 4096  # packets; more are lost
# Before the narrow part of a line, as in a router that does not hold up everything else behind one transfer.
LONGEST_QUEUE = 0.05  # seconds
MTU = 65536


def tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


class Way:
    """One direction."""

    def __init__(self, source: int, sink: int, delay: float, loss: float, rate: float, seed: int) -> None:
        self.source, self.sink, self.delay, self.loss, self.rate = source, sink, delay, loss, rate
        self.free = 0.0  # when the last packet is through the narrow part of the line
        self.random = random.Random(seed)
        self.queue: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self) -> None:
        """Reads what has come; the order is kept, so the first of the queue is always due first."""
        while True:
            try:
                packet = os.read(self.source, MTU)
            except BlockingIOError:
                return
            now = time.monotonic()
            lost = self.random.random() < self.loss or self.free - now > LONGEST_QUEUE
            if not lost and len(self.queue) < MOST_ON_THE_WAY:
                self.free = max(self.free, now) + (len(packet) / self.rate if self.rate else 0.0)
                self.queue.append((self.free + self.delay, packet))

    def give(self) -> float | None:
        """Writes what is due; the time when the next one is."""
        while self.queue and self.queue[0][0] <= time.monotonic():
            try:
                os.write(self.sink, self.queue.popleft()[1])
            except OSError:
                pass  # the device is down, or full: the packet is lost
        return self.queue[0][0] if self.queue else None


def main(one: str, other: str, delay: str, loss: str, rate: str = "0") -> None:
    devices = tun(one), tun(other)
    seconds = float(delay) / 1000
    ways = [
        Way(devices[0], devices[1], seconds, float(loss), float(rate), SEED),
        Way(devices[1], devices[0], seconds, float(loss), float(rate), SEED + 1),
    ]
    with contextlib.suppress(PermissionError):
        # Other programs that are busy do not make a line longer.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    # The default one counts in milliseconds, which is as much as a whole short line takes.
    selector = selectors.SelectSelector()
    for way in ways:
        selector.register(way.source, selectors.EVENT_READ, way)
    print("ready", flush=True)
    while True:
        due = [time_due for way in ways if (time_due := way.give()) is not None]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        for key, _ in selector.select(wait):
            key.data.take()


if __name__ == "__main__":
    main(*sys.argv[1:])
