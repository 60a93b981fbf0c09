"""Which files of lower branches the kernel may read by itself, once they are open (the option `passthrough`).

What is lent cannot be taken back: whoever has such a file open when it is copied up goes on with the lower one. So the
default lends what is mapped by every process and written by none, programs and libraries, where one page cache for all
mounts of a layer is worth most; overlayfs has the same limit for maps. All else is read through the server into the
kernel's cache of the union's own file, which stays that file's when it is copied up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

# elf(5), EI_MAG0 to EI_MAG3. By content: Debian's libraries have mode 0644, and any name.
_ELF = b"\x7fELF"

Lends = Callable[[bytes], bool]

# The option's word -> whether it lends the lower file that begins with these bytes, four or more if it has them.
LENDS: Mapping[str, Lends] = {
    "programs": lambda head: head.startswith(_ELF),
    "all": lambda head: True,
    "none": lambda head: False,
}
