"""Runs a command that cannot use io_uring: a seccomp filter refuses its system calls, as containers do.

usage: no_io_uring.py PROGRAM ARGUMENT...
"""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
# io_uring_setup, io_uring_enter, io_uring_register: the same numbers on all architectures.
FIRST, LAST = 425, 427
LOAD, AT_LEAST, ABOVE, RETURN = 0x20, 0x35, 0x25, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001


class Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def instruction(code, if_true, if_false, value):
    """`struct sock_filter`."""
    return struct.pack("HBBI", code, if_true, if_false, value)


FILTER = b"".join(
    [
        instruction(LOAD, 0, 0, 0),
        instruction(AT_LEAST, 0, 2, FIRST),
        instruction(ABOVE, 1, 0, LAST),
        instruction(RETURN, 0, 0, EPERM),
        instruction(RETURN, 0, 0, ALLOW),
    ]
)

libc = ctypes.CDLL(None, use_errno=True)
program = Program(len(FILTER) // 8, FILTER)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
    sys.exit("no_io_uring.py: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
