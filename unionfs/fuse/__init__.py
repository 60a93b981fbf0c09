"""Layer 1a: the FUSE wire protocol, bytes in and bytes out. No descriptor, no thread, no os.

    abi       the constants and structures of linux/fuse.h, 7.45, under their kernel names
    table     what each opcode's request and reply are made of
    request   a message that was read -> Request
    reply     one function per answer -> the message to write; notifications
    dirents   the answer to READDIR and READDIRPLUS, filled entry by entry
    init      INIT: what the kernel offers and what the server wishes -> what both will do
    wiretext  a message as one line of text

Imports nothing of ours but itself. Everything is a pure function or belongs to one request: any thread may call it.
Versions 7.31 (Linux 5.4) to 7.45 (Linux 6.18) are spoken. An older kernel is refused at INIT, so no structure of an
older ABI occurs. Integers are little endian; a big-endian machine is not served.
"""
