"""`runtime import`."""

from __future__ import annotations

from runtime.cli.arguments import Given, Option
from runtime.cli.settings import Settings
from runtime.cli.usage import UsageError

SUMMARY = "make an image of a root file system archive"
USAGE = "[OPTIONS] TAR|- NAME[:TAG]"
INTERSPERSED = True
OPTIONS = (
    Option("change", "c", "INSTRUCTION", "as in a Dockerfile: CMD, ENTRYPOINT, ENV, WORKDIR, USER, STOPSIGNAL …"),
)


def main(given: Given, settings: Settings) -> int:
    if len(given.arguments) != 2:
        raise UsageError("it requires exactly 2 arguments, an archive and a name")
    archive, reference = given.arguments

    from runtime.images import changes
    from runtime.images.rootfs import import_rootfs

    config = changes.parse(given.values("change"))
    path = "/dev/stdin" if archive == "-" else archive
    with settings.installation() as installation:
        print(import_rootfs(installation.images, path, reference, config=config).id)
    return 0
