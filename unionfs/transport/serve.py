"""Which transport serves a mount: the direct one, or pyfuse3 where that is asked for or the kernel is too old."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from unionfs.fuse.init import Refused
from unionfs.options import MountPlan
from unionfs.transport import branches
from unionfs.transport.delivery import Delivery

_log = logging.getLogger(__name__)


def serve(plan: MountPlan, delivery: Delivery, ready: Callable[[], None]) -> None:
    """Serve a resolved plan until it is unmounted; `ready` is called when the mount is delivered. Raises OSError."""
    reason = "asked for"
    if plan.transport != "pyfuse3":
        from unionfs.transport import direct

        opened = branches.open_branches(plan)
        try:
            direct.serve(
                opened, delivery, flags=plan.flags, allow_other=plan.allow_other, volatile=plan.volatile,
                xino=plan.xino, passthrough=plan.passthrough, spin_us=plan.spin, ready=ready,
                reason=reason if plan.transport == "direct" else "the kernel speaks what it needs",
            )  # fmt: skip
            return
        except Refused as refused:
            if plan.transport == "direct":
                raise OSError(errno.EPROTO, f"{refused}; try -o transport=pyfuse3", delivery.name) from None
            reason = str(refused)
            _log.warning("%s; going on with pyfuse3", reason)
    opened = branches.open_branches(plan)
    try:
        from unionfs.transport import session  # after the checks: it takes a tenth of a second
    except ImportError as error:
        raise OSError(
            errno.ENOPKG, f"the transport pyfuse3 ({reason}) takes the Python packages trio and pyfuse3: {error.msg}",
            delivery.name,
        ) from None

    session.serve(
        opened, delivery, flags=plan.flags, allow_other=plan.allow_other, volatile=plan.volatile, xino=plan.xino,
        ready=ready, reason=reason,
    )  # fmt: skip
