"""Networks of containers, in libnetwork's words: a container's network namespace is a Sandbox; an Endpoint is its place
on a Network.

    network      what a Network is, and an Endpoint     table      the networks by name: a new driver is a line here
    bridge  none  host                                             the drivers, a module each

What a bridge is made with, from the bottom up:

    netlink      messages and the socket                rtnetlink  links, addresses and routes as messages
    sandbox      inside the container's namespace       leases     who has which address, in sqlite
    subnets      which subnet is free                   sysctl     forwarding, and no IPv6
    nat          the packet filter, by nft              iptables   the same without nft; both run by command
    links        the lock, and the host's links         files      resolv.conf, hosts, hostname

The state of a bridge is the kernel's: what exists, and the bridge's alias. Only leases are on disk. One lock per host
network namespace orders every change to it, whatever the root (links.py).
"""
