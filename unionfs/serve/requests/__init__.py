"""FUSE messages of the kernel, by what they are about. Each method is named as its opcode, and answers it.

    base         what they have in common: entries, and who may keep set-ID bits
    names        LOOKUP, FORGET; names made, moved and removed
    attributes   GETATTR, SETATTR, STATX, ACCESS, extended attributes, flags
    files        open files: OPEN and CREATE to RELEASE, their bytes and ranges of them
    directories  READDIR and READDIRPLUS

`wire.WireOperations` is all of them, with the session's own and those about the whole file system.
"""
