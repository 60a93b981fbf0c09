"""What people do with containers every day, from end to end; each of it has gone wrong in some engine."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Runtime, Terminal, wait_until

pytestmark = pytest.mark.needs("root")


@contextlib.contextmanager
def running(runtime: Runtime, *words: str) -> Iterator[str]:
    name = runtime("run", "-d", *words).strip()
    try:
        yield name
    finally:
        runtime("rm", "-f", name)


# -- Streams --


def test_a_reader_that_takes_its_time_gets_all(runtime: Runtime) -> None:
    """Much more than pipes and sockets hold, a few bytes at first."""
    script = "seq 1000000 1999999 | head -c 8000000"
    expected = b"".join(b"%d\n" % number for number in range(1_000_000, 2_000_000))
    with runtime.popen("run", "--rm", "--network=none", "box", "sh", "-c", script, bufsize=0) as process:
        assert process.stdout is not None
        found = [process.stdout.read(7) or b"" for _ in range(20_000)]
        while data := process.stdout.read(3000):
            found.append(data)
        assert process.wait(PATIENCE) == 0
    assert b"".join(found) == expected


def test_much_goes_through_exec(runtime: Runtime, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 16
    (tmp_path / "in").write_bytes(data)
    with running(runtime, "--network=none", "box", "sleep", "600") as name:
        with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as sink:
            done = subprocess.run(runtime.command("exec", "-i", name, "cat"), stdin=source, stdout=sink, timeout=120)
        assert done.returncode == 0
        assert runtime("exec", "-i", name, "true", stdin=data) == ""  # who does not read it is not waited for
    assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_log_has_every_byte(runtime: Runtime, tmp_path: Path) -> None:
    data = b"\0\n" + bytes(range(256)) * 300 + b"long" * 40_000 + b"\r\n\n\xff\xfe\n" + "ä→\U0001f600".encode() * 9000
    data += b"\x1b[2J\0\0no end"
    (tmp_path / "data").write_bytes(data)
    done = runtime.call("run", "--name=said", "--network=none", "-v", f"{tmp_path}:/v", "box", "cat", "/v/data")
    logged = runtime.call("logs", "said")
    runtime("rm", "said")
    assert done.stdout.encode("utf-8", "surrogateescape") == data
    assert logged.stdout.encode("utf-8", "surrogateescape") == data


def test_standard_streams_of_a_user_can_be_opened_again(
    runtime: Runtime, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    """As nginx does with its logs, whatever they are out here."""
    write = "echo out >/dev/stdout; echo err >/dev/stderr; echo fd >/proc/self/fd/1"
    words = ("-u", "1000", "box", "sh", "-c", write)
    done = runtime.call("run", "--rm", "--network=none", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\nfd\n", "err\n")
    with open(tmp_path / "out", "wb") as sink:
        subprocess.run(runtime.command("run", "--rm", "--network=none", *words), stdout=sink, check=True, timeout=60)
    assert (tmp_path / "out").read_bytes() == b"out\nfd\n"
    shown = terminal(runtime.command("run", "--rm", "-it", "--network=none", *words))
    assert shown.wait() == 0 and shown.output.split() == [b"out", b"err", b"fd"]
    with running(runtime, "--network=none", "box", "sleep", "600") as name:
        done = runtime.call("exec", "-u", "1000", name, "sh", "-c", write)
        assert (done.returncode, done.stdout, done.stderr) == (0, "out\nfd\n", "err\n")


# -- Processes --


def test_working_directories_that_are_closed_to_the_user(runtime: Runtime) -> None:
    """Home directories are 0700; one that is somebody else's is entered before the container's user is taken on."""
    script = "mkdir -m 700 /mine /others; chown 1000 /mine; sleep 600"
    with running(runtime, "--network=none", "box", "sh", "-c", script) as name:
        wait_until(lambda: "others" in runtime("exec", name, "ls", "/"), "they are there")
        for place in ("/mine", "/others"):
            assert runtime("exec", "-u", "1000", "-w", place, name, "sh", "-c", "pwd; id -u").split() == [place, "1000"]
        runtime("commit", "-c", "WORKDIR /mine", "-c", "USER 1000", name, "closed")
    try:
        assert runtime.run("closed", "pwd") == "/mine\n"
    finally:
        runtime("rmi", "closed")


@pytest.mark.parametrize("number", ["SIGUSR1", "RTMIN+3"])
def test_the_signal_that_an_image_wants_for_its_end(runtime: Runtime, rootfs_tar: Path, number: str) -> None:
    runtime("import", "-c", f"STOPSIGNAL {number}", rootfs_tar, "signals")
    trap = {"RTMIN+3": str(signal.SIGRTMIN + 3)}.get(number, number.removeprefix("SIG"))
    script = f"trap 'exit 7' {trap}; trap : TERM; echo ready; while :; do sleep 0.05; done"
    try:
        with running(runtime, "--network=none", "signals", "sh", "-c", script) as name:
            wait_until(lambda: runtime("logs", name) == "ready\n", "it listens")
            runtime("stop", "-t", "60", name)
            assert runtime("inspect", "-f", "{{.State.ExitCode}}", name) == "7\n"
    finally:
        runtime("rmi", "signals")


def test_a_program_with_capabilities_of_its_own(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    """As ping has, for users that are not root."""
    root = tmp_path / "root"
    shutil.copytree(rootfs, root, symlinks=True)
    os.remove(root / "bin/ping")
    shutil.copy(rootfs / "bin/busybox", root / "bin/ping")
    net_raw = 1 << 13
    os.setxattr(root / "bin/ping", "security.capability", struct.pack("<5I", 0x02000001, net_raw, 0, 0, 0))
    subprocess.run(["tar", "-C", root, "--xattrs", "--xattrs-include=*", "-cf", tmp_path / "tar", "."], check=True)
    runtime("import", tmp_path / "tar", "pings")
    try:
        for driver in ("fuse-aufs", "overlay2"):
            run, ping = ("run", "--rm", "--network=none", "-u", "1000", "pings"), ("ping", "-c1", "-W9", "127.0.0.1")
            assert "1 packets received" in runtime.on(driver)(*run, *ping), driver
            assert "permission denied" in runtime.on(driver).call(*run, "busybox", *ping).stderr, driver
    finally:
        runtime("rmi", "pings")


# -- Files --


def test_directories_that_change_from_layer_to_layer(runtime: Runtime) -> None:
    """Renamed, exchanged for files and links, linked: three layers on top of each other."""
    first = "mkdir -p /d/sub /was; echo a >/d/sub/a; ln /d/sub/a /d/b; echo f >/file; ln -s d /link; echo k >/d/k"
    second = (
        "mv /d /e; mv /home /house; rm -r /was; echo file >/was; rm /file; mkdir /file; echo in >/file/in; rm /link; "
        "mkdir /link; mv /e/sub /link/sub; ln /e/k /link/k"
    )
    third = (
        "mv /link /d; rm /was; ln -s file /was; mv /house/app /home; echo more >>/d/sub/a; rm -r /e; mkdir /e; "
        "mv /etc /etc2; mv /etc2 /etc"
    )
    look = (
        "cat /d/sub/a /d/k /was/in /etc/motd; stat -c '%F %h' /d/sub/a /d/k; readlink /was; ls -A /e; ls /home; "
        "test -e /house/app || test -e /link || echo gone; stat -c %u /home"
    )
    made, image = [], "box"
    try:
        for number, script in enumerate((first, second, third)):
            runtime("run", "--name=step", "--network=none", image, "sh", "-ec", script)
            image = f"step:{number}"
            runtime("commit", "step", image)
            made.append(image)
            runtime("rm", "step")
        for driver in ("fuse-aufs", "overlay2"):
            assert runtime.on(driver).run(image, "sh", "-c", look).splitlines() == [
                "a", "more", "k", "in", "hello from the image", "regular file 1", "regular file 1", "file", "gone",
                "1000",
            ], driver  # fmt: skip
    finally:
        if "step" in runtime("ps", "-a"):
            runtime("rm", "-f", "step")
        for name in reversed(made):
            runtime("rmi", name)


# Says "ready", then the names that come to or go from its argument, three of them.
_WATCH = r"""
#include <stdio.h>
#include <sys/inotify.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char events[4096];
    int fd = inotify_init(), names = 0;
    if (inotify_add_watch(fd, argv[1], IN_CREATE | IN_MOVED_TO | IN_DELETE) < 0)
        return 1;
    puts("ready");
    fflush(stdout);
    while (names < 3) {
        ssize_t length = read(fd, events, sizeof events), at = 0;
        for (; at < length; names++) {
            struct inotify_event *event = (struct inotify_event *)(events + at);
            puts(event->name);
            at += sizeof *event + event->len;
        }
    }
    return 0;
}
"""


@pytest.mark.parametrize("driver", ["fuse-aufs", "overlay2"])
def test_watching_a_directory_of_the_image(runtime: Runtime, compiled: Callable[[str], str], driver: str) -> None:
    """inotify(7), which fs.watch and its like are made of."""
    script = (
        "/watch /etc >/seen & until grep -q ready /seen; do :; done; "
        "echo >/etc/new; mv /etc/new /etc/moved; rm /etc/motd; wait $!; cat /seen"
    )
    words = ("-v", f"{compiled(_WATCH)}:/watch", "box", "sh", "-c", script)
    assert runtime.on(driver).run(*words).split() == ["ready", "new", "moved", "motd"]


@pytest.fixture(scope="module")
def database(installation: Runtime, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with sqlite and a database in one of its layers, in its write-ahead form."""
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("sqlite3 is not installed")
    place = tmp_path_factory.mktemp("sqlite")
    shutil.copytree(rootfs, place / "root", symlinks=True)
    libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.split()
    for path in (program, *(word for word in libraries if word.startswith("/"))):
        target = Path(f"{place}/root{path}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run(["tar", "-C", place / "root", "-cf", place / "tar", "."], check=True)
    installation("import", place / "tar", "sqlite")
    sql = (
        "pragma journal_mode=wal; create table a(n integer primary key, text); create table b(n integer primary key);"
        "with recursive c(n) as (select 1 union all select n + 1 from c where n < 500) insert into a select n, "
        "hex(randomblob(200)) from c; insert into b select n from a;"
    )
    installation("run", "--name=makes", "--network=none", "sqlite", "sqlite3", "/data.db", sql)
    installation("commit", "makes", "sqlite:filled")
    installation("rm", "makes")
    yield "sqlite:filled"
    installation("rmi", "sqlite:filled")
    installation("rmi", "sqlite")


_WHOLE = "pragma integrity_check; select (select count(*) from a) - (select count(*) from b), (select count(*) from a) "


@pytest.mark.parametrize("driver", ["fuse-aufs", "overlay2"])
def test_a_database_in_a_layer_of_the_image(runtime: Runtime, database: str, driver: str) -> None:
    """It is locked, mapped, synced and copied up, and comes out whole; also where it is committed while it is written
    to, as after a power cut."""
    on = runtime.on(driver)
    change = "update a set text = 'new' where n % 3 = 0; delete from a where n > 400; delete from b where n > 400;"
    sql = f"begin; {change} commit; vacuum; {_WHOLE}; select sum(text = 'new') from a"
    done = on.run(database, "sqlite3", "/data.db", sql)
    assert done.split() == ["ok", "0|400", "133"]
    insert = "begin; insert into a default values; insert into b select max(n) from a; commit;"
    # A process each time: what one has to say to a pipe it keeps until that is 4096 bytes.
    script = f'while :; do sqlite3 -cmd ".timeout 9000" /data.db "{insert} select 1 where changes()"; done'
    with running(on, "--network=none", database, "sh", "-c", script) as name:
        wait_until(lambda: on("logs", "--tail=1", name) == "1\n", "it writes")
        on("commit", name, "sqlite:busy")
        try:
            found = on.run("sqlite:busy", "sqlite3", "/data.db", _WHOLE).split()
        finally:
            on("rmi", "sqlite:busy")
    assert found[0] == "ok" and found[1].startswith("0|") and int(found[1][2:]) >= 500


@pytest.mark.parametrize("driver", ["fuse-aufs", "overlay2"])
def test_a_log_of_the_image_is_followed(runtime: Runtime, driver: str) -> None:
    """From before its first change on."""
    on = runtime.on(driver)
    with running(on, "--network=none", "box", "tail", "-n1", "-F", "/etc/group") as name:
        wait_until(lambda: on("logs", name), "it has it open")
        told = on("logs", name)
        for number in (1, 2):
            on("exec", name, "sh", "-c", f"echo line {number} >>/etc/group")
        wait_until(lambda: on("logs", name) == f"{told}line 1\nline 2\n", "both lines are told")


# -- The bridge --


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory, and the port on which every address of ours serves it."""
    (tmp_path / "www").mkdir()
    handler = lambda *given: Quiet(*given, directory=str(tmp_path / "www"))  # noqa: E731
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield tmp_path / "www", server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_what_is_fetched_over_the_bridge_is_whole(runtime: Runtime, served: tuple[Path, int]) -> None:
    place, port = served
    data = os.urandom(1 << 20) * 8
    (place / "data").write_bytes(data)
    script = f"wget -qO- http://$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'):{port}/data | sha256sum"
    assert runtime("run", "--rm", "box", "sh", "-c", script).split()[0] == hashlib.sha256(data).hexdigest()


@pytest.mark.needs("program:apt-get", "program:dpkg-deb")
def test_apt_over_the_bridge(runtime: Runtime, served: tuple[Path, int], tmp_path: Path) -> None:
    """The host's own apt and dpkg, in a root that has their files and nothing else; they become another user, fetch,
    unpack, rename and sync."""
    if not os.path.islink("/bin") or not os.path.islink("/lib"):
        pytest.skip("this machine's programs are not all in /usr")
    place, port = served
    package, root = tmp_path / "package", tmp_path / "root"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "opt").mkdir()
    (package / "opt/hello").write_text("installed\n")
    control = "Package: hello\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a file\n"
    (package / "DEBIAN/control").write_text(control)
    subprocess.run(["dpkg-deb", "--build", package, place / "hello.deb"], check=True, capture_output=True)
    data = (place / "hello.deb").read_bytes()
    entry = f"Filename: ./hello.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
    (place / "Packages").write_text(control + entry)
    apt = ("etc/apt/apt.conf.d", "etc/apt/preferences.d", "var/cache/apt/archives/partial", "var/log/apt")
    for name in (*apt, "var/lib/dpkg/info", "var/lib/dpkg/updates", "tmp", "usr"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/lib/dpkg/status").touch()
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n_apt:x:42:65534::/nonexistent:/usr/sbin/nologin\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    subprocess.run(["tar", "-C", root, "-cf", tmp_path / "tar", "."], check=True)
    runtime("import", tmp_path / "tar", "apt")
    try:
        with running(runtime, "-v", "/usr:/usr:ro", "apt", "sleep", "600") as name:
            gateway = runtime("inspect", "-f", "{{.NetworkSettings.Gateway}}", name).strip()
            source = f"echo 'deb [trusted=yes] http://{gateway}:{port} ./' >/etc/apt/sources.list"
            script = f"{source}; apt-get -q update; apt-get -qy install hello"
            done = runtime.call("exec", name, "sh", "-ec", script)
            assert done.returncode == 0, done.stdout + done.stderr
            assert runtime("exec", name, "cat", "/opt/hello") == "installed\n"
    finally:
        runtime("rmi", "apt")
