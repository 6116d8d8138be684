"""Runs a swarm on this machine for a while and watches that it stays healthy and does not grow.

Usage: python3 scripts/soak servers  [--servers 24] [--blocks 80] [--minutes 10] [--period 120]
       python3 scripts/soak sessions [--at-a-time 200] [--blocks 8] [--minutes 10]
       python3 scripts/soak people   [--at-a-time 6] [--minutes 30]
       python3 scripts/soak jobs     [--at-a-time 3] [--minutes 30]
Needs: `cargo build --release`, for sessions also `--example sessions_bench`; nothing but Python's standard library.
Prints one line a minute and a verdict; exits with 1 if anything was missed, lost or wrong, a process died that nobody
killed, or the memory of the processes grew by more than a tenth after warming up. `people` chat and use the API while
servers are killed, frozen and restarted under them; `jobs` are submitted while the same happens to their workers.
"""
import argparse
import pathlib
import sys
import tempfile

import jobs
import people
import servers
import sessions
from model import write_model
from swarm import BINARY, Swarm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    many = kinds.add_parser("servers", help="many servers, watched by the health map")
    many.add_argument("--servers", type=int, default=24)
    many.add_argument("--blocks", type=int, default=80)
    many.add_argument("--period", type=int, default=120, help="seconds between announcements; 120 is what servers do")
    churn = kinds.add_parser("sessions", help="sessions come and go on one server")
    churn.add_argument("--at-a-time", type=int, default=200)
    churn.add_argument("--blocks", type=int, default=8)
    talk = kinds.add_parser("people", help="people chat and use the API while servers are killed and rejoin")
    talk.add_argument("--at-a-time", type=int, default=6, help="users of the API at a time")
    talk.add_argument("--seed", type=int, default=1, help="of what happens to whom")
    work = kinds.add_parser("jobs", help="jobs are submitted while workers are killed and rejoin")
    work.add_argument("--at-a-time", type=int, default=3, help="submitters at a time")
    work.add_argument("--seed", type=int, default=1, help="of what happens to whom")
    for kind, minutes in ((many, 10), (churn, 10), (talk, 30), (work, 30)):
        kind.add_argument("--minutes", type=int, default=minutes)
    options = parser.parse_args()
    if not BINARY.exists():
        sys.exit(f"{BINARY} is missing: cargo build --release")
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        swarm = Swarm(work)
        try:
            healthy = watch(swarm, work, options)
        finally:
            for process in swarm.processes.values():
                process.kill()
    sys.exit(0 if healthy else 1)


def watch(swarm: Swarm, work: pathlib.Path, options) -> bool:
    if options.kind == "jobs":
        return jobs.watch(swarm, options)
    if options.kind == "people":
        return people.watch(swarm, options)
    model = work / "soak-model"
    model.mkdir()
    write_model(model, options.blocks)
    return (servers if options.kind == "servers" else sessions).watch(swarm, model, options)


main()
