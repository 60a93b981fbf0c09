"""What a run leaves in benchmarks/results/: NAME.json with everything, NAME.md to read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from benchmarks import report, targets
from benchmarks.facts import Facts

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


def write(name: str, facts: Facts, runs: Sequence[report.Run], directory: str = RESULTS) -> None:
    """Raises OSError. Files of that name are replaced."""
    os.makedirs(directory, exist_ok=True)
    write_json(os.path.join(directory, f"{name}.json"), facts, runs)
    with open(os.path.join(directory, f"{name}.md"), "w") as file:
        file.write(text(name, facts, runs))


def write_json(path: str, facts: Facts, runs: Sequence[report.Run]) -> None:
    with open(path, "w") as file:
        json.dump(report.document(facts, runs), file, indent=1)
        file.write("\n")


def text(name: str, facts: Facts, runs: Sequence[report.Run]) -> str:
    """The machine, and for each run the targets and all the figures, as Markdown."""
    parts = [f"# {name}", "\n".join(f"- {fact}: {value}" for fact, value in facts.items())]
    for run in runs:
        result = report.rows(run.samples)
        parts.append(f"## On {run.backing}")
        parts += [f"{subject} was not measured: {reason}" for subject, reason in run.unavailable.items()]
        if judged := targets.judged(result):
            parts.append(targets.markdown(judged))
        parts.append(f"Median, ± half the interquartile range, and the ratio to {report.BASELINE}:")
        parts.append(f"```\n{report.table(result)}\n```")
    return "\n\n".join(parts) + "\n"
