"""Layer 2: adapters between a protocol and one union. Each only translates; OSError becomes an errno here only.

    filesystem   what they ask of the union: the protocol that UnionFs follows
    lending      which lower files the kernel may read by itself
    passthrough  which open files the kernel reads and writes by itself (filesystem, lending)
    requests/    FUSE messages, by what they are about (filesystem, passthrough)
    wire         all of them, one answer each: for the direct transport and the one in memory
    inplace      in which thread a request of pyfuse3 is answered, and what becomes of errors
    pyfuse       pyfuse3's operations (filesystem, inplace)

Nothing but a transport imports the last two, for they load trio.
"""
