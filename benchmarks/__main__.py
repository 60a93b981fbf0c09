"""`python -m benchmarks`: measure the drivers and the installed peers, print the table, keep the JSON.

Needs root (mounts). Exit status 0; 1 when nothing could be measured or a subject failed; 2 for a usage error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from benchmarks import copyup, facts, lookup, peers, report
from benchmarks.subjects import Driver, Subject
from benchmarks.timing import Sample
from drivers.errors import DriverError
from drivers.registry import NAMES, probe

QUESTIONS = {"copyup": copyup.run, "lookup": lookup.run}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    known = [*NAMES, *peers.COMMANDS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare the storage drivers.")
    parser.add_argument(
        "--driver", action="append", choices=known, metavar="NAME", dest="drivers",
        help=f"measure this one; may be repeated (default: all that work here) [{', '.join(known)}]",
    )
    parser.add_argument("--question", action="append", choices=QUESTIONS, dest="questions", help="default: every one")
    parser.add_argument("--rounds", type=_positive, help="default: 10, with --quick 3")
    parser.add_argument("--quick", action="store_true", help="small files and shallow stacks: seconds, not minutes")
    parser.add_argument("--json", metavar="FILE", help="write facts, results and samples there")
    parser.add_argument("--work", metavar="DIR", default="/var/tmp", help="on the disk to measure [%(default)s]")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def choose(names: Sequence[str], work: str) -> tuple[list[Subject], dict[str, str]]:
    """The subjects among `names` that work below `work`, and of the others, why they do not."""
    subjects: list[Subject] = []
    unavailable: dict[str, str] = {}
    for name in names:
        own = os.path.join(work, name)
        os.mkdir(own)
        if name in peers.COMMANDS:
            if name in peers.installed():
                subjects.append(peers.Peer(name, own))
            else:
                unavailable[name] = "is not installed"
        else:
            result = probe(name, own)
            if result.works:
                subjects.append(Driver(name, own))
            else:
                unavailable[name] = result.reason
    return subjects, unavailable


def measure(options: argparse.Namespace, work: str) -> int:
    subjects, unavailable = choose(options.drivers or [*NAMES, *peers.installed()], work)
    for name, reason in unavailable.items():
        print(f"{name}: not measured: {reason}", file=sys.stderr)
    if not subjects:
        return 1
    machine = facts.gather(work, [subject.name for subject in subjects if subject.name in peers.COMMANDS])
    print(", ".join(f"{fact} {value}" for fact, value in machine.items()), flush=True)
    rounds = options.rounds or (3 if options.quick else 10)
    samples: list[Sample] = []
    for question in options.questions or QUESTIONS:
        taken = list(QUESTIONS[question](subjects, rounds, quick=options.quick))
        samples += taken
        print(f"\n{report.table(report.rows(taken))}", flush=True)
    print(f"\nMedian of {rounds} rounds, ± half the interquartile range, and the ratio to {report.BASELINE}.")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report.document(machine, report.rows(samples), samples, unavailable), file, indent=1)
            file.write("\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    # SIGTERM must unwind the context managers, which unmount, as SIGINT does by itself.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with tempfile.TemporaryDirectory(prefix="fuse-aufs-benchmark-", dir=options.work) as work:
            return measure(options, work)
    except (OSError, DriverError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
