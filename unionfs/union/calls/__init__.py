"""What can be asked of a union, by what it is about: the lock is taken and the work delegated, nothing is decided here.

    base         what they have in common
    names        names looked up, made, moved and removed; the numbers that the kernel has for files
    attributes   status, owner, mode, times, extended attributes, flags
    files        open files: their bytes, and ranges of them
    directories  entries listed

`fs.UnionFs` is all of them, and what is asked of the union as a whole.
"""
