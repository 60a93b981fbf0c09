"""`runtime commit`."""

from __future__ import annotations

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "make an image of what a container has changed"
USAGE = "[OPTIONS] CONTAINER [NAME[:TAG]]"
INTERSPERSED = True
OPTIONS = (
    Option("author", "a", "AUTHOR", 'who made it, as in "Ada Lovelace <ada@example.org>"'),
    Option("change", "c", "INSTRUCTION", "as in a Dockerfile: CMD, ENTRYPOINT, ENV, WORKDIR, USER, STOPSIGNAL …"),
    Option("message", "m", "MESSAGE", "a note on it, for history"),
    Option("pause", "p", help="stop the container's processes meanwhile (default true)"),
)


def main(given: Given, settings: Settings) -> int:
    if not 1 <= len(given.arguments) <= 2:
        raise UsageError("it requires 1 or 2 arguments, a container and a name for the image")

    from runtime.engine.containers.commit import CommitRequest, commit

    request = CommitRequest(
        reference=given.arguments[1] if len(given.arguments) == 2 else "",
        message=given.value("message"),
        author=given.value("author"),
        changes=tuple(given.values("change")),
        pause=given.value("pause", "true") == "true",
    )
    with settings.recovered() as installation:
        print(commit(installation, installation.containers.get(given.arguments[0]), request).id)
    return 0
