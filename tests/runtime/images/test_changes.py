from __future__ import annotations

import pytest

from runtime.errors import InvalidValue
from runtime.images.changes import parse


@pytest.mark.parametrize(
    ("instructions", "config"),
    [
        ([], {}),
        (['CMD ["sh", "-c", "a b"]'], {"Cmd": ["sh", "-c", "a b"]}),
        (["cmd echo $HOME"], {"Cmd": ["/bin/sh", "-c", "echo $HOME"]}),
        (['ENTRYPOINT ["/init"]', "CMD []"], {"Entrypoint": ["/init"], "Cmd": []}),
        (["ENV A=1 B='two words'"], {"Env": ["A=1", "B=two words"]}),
        (["ENV A the rest of it"], {"Env": ["A=the rest of it"]}),
        (["ENV A=1 B=2", "ENV A=3"], {"Env": ["B=2", "A=3"]}),
        (["WORKDIR /srv", "WORKDIR app/../www"], {"WorkingDir": "/srv/www"}),
        (["USER nobody:nogroup"], {"User": "nobody:nogroup"}),
        (["LABEL a=b", 'LABEL c="d e"'], {"Labels": {"a": "b", "c": "d e"}}),
        (["EXPOSE 80/tcp 53/udp"], {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        (['VOLUME ["/data"]', "STOPSIGNAL SIGINT"], {"Volumes": {"/data": {}}, "StopSignal": "SIGINT"}),
    ],
)
def test_changes(instructions: list[str], config: dict[str, object]) -> None:
    assert parse(instructions) == config


@pytest.mark.parametrize(
    ("instruction", "says"),
    [
        ("RUN x", "is no change for an image; use one of CMD, ENTRYPOINT, ENV"), ("", "is no change"),
        ("CMD", "has no value"), ('CMD ["a"', "JSON array of strings"), ("ENTRYPOINT [1]", "JSON array of strings"),
        ("USER a b", "it has one value"), ("ENV A=1 B", "NAME=VALUE"), ("ENV 'A=1", "No closing quotation"),
    ],
)
def test_wrong_changes(instruction: str, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        parse([instruction])
