"""Run a program under another account that may still pass directories closed to it.

    python drop_privileges.py UID GID PROGRAM ARGUMENT...

Root's home is closed to others, and a data directory in it would be out of reach for the account that PostgreSQL
must run under. So root drops everything but one capability, the weakest that there is for reading directories, and
becomes the account. A script of its own, not a `preexec_fn`: the parent has threads.
"""

import ctypes
import os
import sys

PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 4
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def main(arguments: list[str]) -> None:
    """Become the account and turn into the program."""
    uid, gid, program, *rest = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    # Or access(2), by which initdb looks for its companions, would pass over the capability. It is not refused where
    # this cannot be had, because it matters only if the programs lie in a closed directory too.
    libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    # Containers often lack the first of the two.
    if not (_keep_only(libc, CAP_DAC_READ_SEARCH) or _keep_only(libc, CAP_DAC_OVERRIDE)):
        sys.exit("the data directory is closed to the account of PostgreSQL, and no capability opens it")
    os.execv(program, [program, *rest])  # noqa: S606 -- the caller's own program


def _keep_only(libc: ctypes.CDLL, capability: int) -> bool:
    bits = 1 << capability
    data = (_Data * 2)(_Data(bits, bits, bits), _Data(0, 0, 0))
    if libc.capset(ctypes.byref(_Header(CAPABILITY_VERSION, 0)), data) != 0:
        return False
    return bool(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0)


def _check(result: int) -> None:
    if result != 0:
        sys.exit(f"cannot keep a capability: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1:])
