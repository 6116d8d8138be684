"""Runs the sections of scripts/bench.sh, which builds and installs what they need, and prints and writes what they found.

Only Python's standard library. What is measured is in sections.py, what is said about it in report.py.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import report
import sections


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--programs", type=pathlib.Path, required=True, help="folder of the release build")
    parser.add_argument("--petals", required=True, help="python with Petals; empty: there is none")
    parser.add_argument("--llama-cpp", required=True, help="python with llama.cpp; empty: there is none")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="what every engine computes on")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    results = []
    with tempfile.TemporaryDirectory(prefix="sepal-bench-") as folder:
        bench = sections.Bench(options, pathlib.Path(folder))
        for name in options.sections or sections.ALL:
            print(f"=== {name}", file=sys.stderr, flush=True)
            started = time.monotonic()
            try:
                section = sections.ALL[name](bench)
            except Exception as error:  # whatever it is, the other sections go on
                section = report.Section(name, failure=f"{type(error).__name__}: {error}")
                print(f"{name} failed: {section.failure}", file=sys.stderr)
            section.seconds = time.monotonic() - started
            results.append(section)
            print(report.section_text(section), flush=True)
    machine = report.machine(options.threads, bench.pythons)
    print(report.summary(results, machine))
    if not options.quick:
        # Without the versions of all peers it would say less than is there.
        report.write(results, machine if all(bench.pythons.values()) else None, list(sections.ALL))
        print(f"written to {report.FILE}")
    return any(section.failure for section in results)


sys.exit(main())
