"""Layer 3: what a mount is to the machine.

    branches     paths to open branches, and why one is refused
    device       /dev/fuse mounted, and off again
    delivery     where the mount goes: to a mount point, or to who asked for it
    serve        which of the two transports serves a mount
    direct       one that speaks to /dev/fuse itself, its main thread
    workers      ... and the threads that read requests and write answers
    pause        ... how the one of them that reads waits for the next request
    companion    what keeps client and server on one of two processors
    memory       one without a kernel, for tests and measurements
    session      pyfuse3 and trio: read requests until the last user is gone
    interrupt    what pyfuse3's blocking read needs
    serving      what both do around their own work
    watch        the end of a session whose main thread cannot see to it
    background   the server as a process of its own, its readiness and its log
    control      how others find a mount's server, and ask it
    info         what it answers, and how that is shown
    remount      what of a mount can change, and who has to know
    unmount      take a mount away and wait for its server
    namespace    mounting in another mount namespace

Only `session` imports trio and pyfuse3.
"""
