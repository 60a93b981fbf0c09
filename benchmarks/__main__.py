"""`python -m benchmarks`: measure the drivers and the installed peers, print the tables, keep the results.

Needs root (mounts). Exit status 0; 1 when nothing could be measured or a question failed; 2 for a usage error.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from benchmarks import (
    containers,
    copyup,
    facts,
    lookup,
    memory,
    metadata,
    pagecache,
    peers,
    record,
    report,
    targets,
    throughput,
    walk,
    workloads,
)
from benchmarks.isolation import isolate
from benchmarks.subjects import Driver, Subject, split_name
from benchmarks.timing import Sample
from benchmarks.unions import Union
from drivers.catalog import NAMES, options_of, probe
from drivers.errors import DriverError

ON_LAYERS = {"copyup": copyup.run, "lookup": lookup.run, "containers": containers.run}  # asked of drivers and peers
ON_UNIONS = {
    "throughput": throughput.run, "metadata": metadata.run, "walk": walk.run, "workloads": workloads.run,
    "pagecache": pagecache.run, "memory": memory.run,
}  # fmt: skip
QUESTIONS = (*ON_LAYERS, *ON_UNIONS)
ONCE = "memory"  # has its own backing file system

TRANSPORTS = ("fuse-aufs:direct", "fuse-aufs:pyfuse3")
KNOWN = (*NAMES, *TRANSPORTS, *peers.COMMANDS)
UNIONS = ("overlay2", "fuse-aufs", *TRANSPORTS, *peers.COMMANDS)
# What the targets compare; the portable transport as well as the one that is taken by default.
TARGETED = ("overlay2", "fuse-aufs", "fuse-aufs:pyfuse3", *peers.COMMANDS)

BACKINGS = {"work": ("work",), "tmpfs": ("tmpfs",), "both": ("tmpfs", "work")}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare the storage drivers.")
    parser.add_argument(
        "--driver", action="append", choices=KNOWN, metavar="NAME", dest="drivers",
        help=f"measure this one; may be repeated (default: all that work here) [{', '.join(KNOWN)}]",
    )
    parser.add_argument(
        "--question", action="append", choices=QUESTIONS, metavar="NAME", dest="questions",
        help=f"may be repeated; default: every one [{', '.join(QUESTIONS)}]",
    )
    parser.add_argument("--rounds", type=_positive, help="default: 5, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="small files and shallow stacks: seconds, not minutes")
    parser.add_argument(
        "--processors", type=_positive, metavar="N",
        help="run clients and servers on N processors only. With one, no request wakes another processor, which is"
        " most of a request's time on an idle machine and next to nothing on a busy one",
    )
    parser.add_argument("--json", metavar="FILE", help="write facts, results and samples there")
    parser.add_argument("--work", metavar="DIR", default="/var/tmp", help="on the disk to measure [%(default)s]")
    parser.add_argument(
        "--backing", choices=BACKINGS,
        help="the file system of DIR (default), or a tmpfs mounted below it for the run, or both in turn",
    )
    parser.add_argument(
        "--storage-opt", action="append", default=[], metavar="NAME=VALUE", dest="storage_options",
        help="an option of a storage driver; may be repeated. It is given to the driver that has it",
    )
    parser.add_argument(
        "--targets", action="store_true",
        help="say which targets are met. Without other arguments, measures what has targets, on both file systems",
    )
    parser.add_argument("--record", metavar="NAME", help="write benchmarks/results/NAME.json and NAME.md")
    options = parser.parse_args(argv)
    if options.targets:
        options.drivers = options.drivers or list(TARGETED)
        options.questions = options.questions or list(targets.QUESTIONS)
    options.backing = options.backing or ("both" if options.targets else "work")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


Chosen = tuple[list[Subject], list[Union], dict[str, str]]


def choose(
    names: Sequence[str], work: str, storage_options: Mapping[str, str]
) -> Chosen:
    """Those among `names` that work below `work`, as stacks and as unions; and for the others, why they do not."""
    subjects: list[Subject] = []
    unions: list[Union] = []
    unavailable: dict[str, str] = {}
    for name in names:
        own = os.path.join(work, name.replace(":", "-"))  # ":" separates paths in mount options
        os.mkdir(own)
        mine: dict[str, str] = {}
        if name not in peers.COMMANDS:
            has = options_of(split_name(name)[0])
            mine = {option: value for option, value in storage_options.items() if option in has}
        if reason := _why_not(name, own, mine):
            unavailable[name] = reason
            continue
        subjects.append(peers.Peer(name, own) if name in peers.COMMANDS else Driver(name, own, mine))
        if name in UNIONS:
            unions.append(Union(name, own))
    return subjects, unions, unavailable


def _why_not(name: str, work: str, storage_options: Mapping[str, str]) -> str | None:
    if name in peers.COMMANDS and name not in peers.installed():
        return "is not installed"
    if name not in peers.COMMANDS:
        result = probe(split_name(name)[0], work, storage_options)
        if not result.works:
            return result.reason
    return Union(name, work).why_not() if name in UNIONS else None


@contextmanager
def backing(kind: str, work: str) -> Iterator[str]:
    """A directory below `work`, on the same file system or on a tmpfs of its own."""
    directory = os.path.join(work, kind)
    os.mkdir(directory)
    if kind == "tmpfs":
        with memory.tmpfs(directory):
            yield directory
    else:
        yield directory


def measure(options: argparse.Namespace, work: str) -> int:
    names = options.drivers or [*NAMES, *TRANSPORTS[1:], *peers.installed()]
    machine = facts.gather([name for name in names if name in peers.COMMANDS])
    rounds = options.rounds or (2 if options.quick else 5)
    machine |= {"rounds": rounds, "sizes": "quick" if options.quick else "full"}
    print(", ".join(f"{fact} {value}" for fact, value in machine.items()), flush=True)
    questions = list(options.questions or QUESTIONS)
    storage_options = dict(text.split("=", 1) for text in options.storage_options)
    runs: list[report.Run] = []
    failures = 0
    for kind in BACKINGS[options.backing]:
        with backing(kind, work) as directory:
            run = report.Run(facts.filesystem(directory), [], {})
            runs.append(run)
            chosen = choose(names, directory, storage_options)
            failures += measure_on(run, directory, chosen, questions, rounds, quick=options.quick)
        if ONCE in questions:
            questions.remove(ONCE)
    print(f"\nMedian of {rounds} rounds (fewer of long work), ± half the interquartile range,", end=" ")
    print(f"and the ratio to {report.BASELINE}.")
    if options.targets:
        for run in runs:
            print(f"\nOn {run.backing}:\n\n{targets.markdown(targets.judged(report.rows(run.samples)))}")
    if options.json:
        record.write_json(options.json, machine, runs)
    if options.record:
        record.write(options.record, machine, runs)
    return 1 if failures or not any(run.samples for run in runs) else 0


def measure_on(
    run: report.Run, work: str, chosen: Chosen, questions: Sequence[str], rounds: int, *, quick: bool
) -> int:
    """Fill `run`, printing each table when it is complete. The number of questions that failed.

    The samples taken before a question fails are kept, and the next is asked: a long run is not to be in vain.
    """
    subjects, unions, unavailable = chosen
    run.unavailable.update(unavailable)
    for name, reason in unavailable.items():
        print(f"{name}: not measured on {run.backing}: {reason}", file=sys.stderr)
    failures = 0
    for question in questions:
        first = len(run.samples)
        try:
            for sample in _ask(question, subjects, unions, work, rounds, quick=quick):
                run.samples.append(sample)
        except (OSError, DriverError, subprocess.CalledProcessError) as error:
            print(f"benchmarks: {question} on {run.backing}: {error}", file=sys.stderr)
            failures += 1
        if taken := run.samples[first:]:
            print(f"\nOn {run.backing}:\n{report.table(report.rows(taken))}", flush=True)
    return failures


def _ask(
    question: str, subjects: Sequence[Subject], unions: Sequence[Union], work: str, rounds: int, *, quick: bool
) -> Iterator[Sample]:
    if question in ON_LAYERS:
        return ON_LAYERS[question](subjects, rounds, quick=quick)
    return ON_UNIONS[question](unions, work, rounds, quick=quick)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    # SIGTERM must unwind the context managers, which unmount, as SIGINT does by itself.
    signal.signal(signal.SIGTERM, _terminate)
    if options.processors:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.processors])  # servers inherit it
    try:
        if os.geteuid() == 0:  # others can mount nothing, and are told so
            isolate(options.work)
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
