"""Layer 2: adapters between a protocol and one union. Each only translates; OSError becomes an errno here only.

    filesystem   what they ask of the union: the protocol that UnionFs follows
    passthrough  which open files the kernel reads and writes by itself
    wire         FUSE messages, for the direct transport and the one in memory (filesystem, passthrough)
    inplace      in which thread a request of pyfuse3 is answered, and what becomes of errors; it loads trio
    pyfuse       pyfuse3's operations (filesystem); nothing but a transport imports it, for it loads trio
"""
