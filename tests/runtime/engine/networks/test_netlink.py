"""The codec against bytes written down here, the socket against the kernel."""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address

import pytest

from runtime.engine.networks import netlink, rtnetlink
from runtime.engine.networks.netlink import Message, NetlinkSocket, Request
from tests.runtime.engine.networks.netns import fresh_host, links


def test_a_message() -> None:
    packed = netlink.pack(Request(16, 0x600, b"\x01\x02\x03"), 0x5, 7)
    assert packed == bytes.fromhex(
        "13000000"  # length 19: header and body, without padding
        "1000"  # RTM_NEWLINK
        "0506"  # REQUEST | ACK, EXCL | CREATE
        "07000000"  # sequence
        "00000000"  # port: the kernel fills in ours
        "010203 00"  # body, padding
    )  # fmt: skip
    assert list(netlink.unpack(packed)) == [Message(16, 0x605, 7, 0, b"\x01\x02\x03")]
    assert [m.seq for m in netlink.unpack(packed + netlink.pack(Request(3, 0, b""), 0, 8))] == [7, 8]


def test_attributes() -> None:
    body = netlink.string(3, "lo") + netlink.u32(4, 1500) + netlink.nested(18, netlink.string(1, "veth"))
    assert body == bytes.fromhex(
        "0700 0300 6c6f00 00"  # "lo" with its NUL, padding
        "0800 0400 dc050000"
        "1000 1280"  # NLA_F_NESTED
            "0900 0100 7665746800 000000"
    )  # fmt: skip
    found = netlink.attributes(body)
    assert netlink.text(found[3]) == "lo"
    assert struct.unpack("=I", found[4]) == (1500,)
    assert netlink.attributes(found[18]) == {1: b"veth\0"}


@pytest.mark.parametrize("body", [b"\xff\x00\x01\x00", b"\x03\x00\x01\x00", b"\x08\x00\x01\x00ab"])
def test_attributes_that_lie_about_their_length(body: bytes) -> None:
    with pytest.raises(OSError) as caught:
        netlink.attributes(body)
    assert caught.value.errno == errno.EBADMSG


@pytest.mark.parametrize("length", [0, 15, 33])
def test_messages_that_lie_about_their_length(length: int) -> None:
    with pytest.raises(OSError) as caught:
        list(netlink.unpack(netlink.nlmsghdr.pack(length, 2, 0, 1, 0) + bytes(16)))
    assert caught.value.errno == errno.EBADMSG


def test_errors_say_what_the_kernel_says() -> None:
    request = netlink.nlmsghdr.pack(20, 16, 5, 1, 0)
    code = struct.pack("=i", -errno.EEXIST)
    words = netlink.string(netlink.NLMSGERR_ATTR_MSG, "it is there")
    tlvs = netlink.NLM_F_ACK_TLVS
    capped = Message(2, tlvs | netlink.NLM_F_CAPPED, 1, 0, code + request + words)
    whole = Message(2, tlvs, 1, 0, code + request + b"abcd" + words)
    done = Message(3, tlvs, 1, 0, code + words)
    for message in (capped, whole, done):
        failure = netlink.error_of(message)
        assert isinstance(failure, FileExistsError)
        assert failure.strerror == "File exists (it is there)"
    silent = netlink.error_of(Message(2, 0, 1, 0, code + request))
    assert silent and silent.strerror == "File exists"
    assert netlink.error_of(Message(2, 0, 1, 0, bytes(4) + request)) is None


@pytest.mark.needs("netns")
class TestKernel:
    def test_a_refusal_carries_the_kernels_sentence(self, host: None) -> None:
        with NetlinkSocket() as sock, pytest.raises(OSError, match="Nexthop has invalid gateway") as caught:
            sock.request(rtnetlink.add_default_route(1, IPv4Address("203.0.113.1")))
        assert caught.value.errno == errno.ENETUNREACH

    def test_the_first_failure_is_raised_and_the_rest_was_done(self, host: None) -> None:
        with NetlinkSocket() as sock:
            with pytest.raises(OSError) as caught:
                sock.request(
                    rtnetlink.delete_link("absent"),
                    rtnetlink.create_bridge("made", mac="02:00:00:00:00:01", mtu=1500, group=0),
                    rtnetlink.delete_link(20 * "x"),
                )
            assert caught.value.errno == errno.ENODEV
            assert "made" in links()
            (link,) = rtnetlink.links(sock.request(rtnetlink.get_link("made")))  # the socket is in step again
            assert link.name == "made"

    def test_a_dump_of_many_parts(self, host: None) -> None:
        names = {f"b{number}" for number in range(80)}  # 80 links do not fit into one part
        with NetlinkSocket() as sock:
            sock.request(*(rtnetlink.create_bridge(n, mac="02:00:00:00:00:01", mtu=1500, group=9) for n in names))
            assert set(links()) >= names
            sock.request(rtnetlink.delete_group(9))
            assert not set(links()) & names

    def test_answers_of_others_are_not_ours(self, host: None) -> None:
        with NetlinkSocket() as sock, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as other:
            forged = netlink.nlmsghdr.pack(20, netlink.NLMSG_ERROR, 0, 1, sock.port) + struct.pack("=i", -errno.EIO)
            other.sendto(forged, (sock.port, 0))
            assert list(rtnetlink.links(sock.request(rtnetlink.get_link("lo"))))

    def test_answers_to_an_abandoned_request_are_dropped(self, host: None) -> None:
        with NetlinkSocket() as sock:
            (lo,) = sock.request(rtnetlink.get_link("lo"))
            interrupted = netlink.pack(rtnetlink.dump_addresses(1), netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, lo.seq)
            sock._socket.send(interrupted)  # and nobody read what it said: an exception came first
            (again,) = sock.request(rtnetlink.get_link("lo"))
            assert (again.type, again.seq) == (rtnetlink.RTM_NEWLINK, lo.seq + 1)

    def test_it_keeps_its_namespace(self, host: None) -> None:
        with NetlinkSocket() as sock:
            sock.request(rtnetlink.create_bridge("here", mac="02:00:00:00:00:01", mtu=1500, group=0))
            with fresh_host():
                assert "here" not in links()
                assert list(rtnetlink.links(sock.request(rtnetlink.get_link("here"))))

    def test_a_protocol_that_is_not_there(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError) as caught:
            NetlinkSocket(31)
        assert caught.value.errno == errno.EPROTONOSUPPORT
        assert len(os.listdir("/proc/self/fd")) == before
