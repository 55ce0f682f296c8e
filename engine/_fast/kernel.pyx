# What each function promises is in the .pyi; the meaning is in _reference_kernel.py.
#
# No call here waits for anybody, so the interpreter's lock is kept, as in sockets.pyx: while another thread
# wants the lock, letting go of it wakes that thread, which costs more than the call and mostly finds the
# lock taken again.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t c_pwrite "pwrite"(int fd, const void *buffer, size_t size, int64_t offset)

cdef extern from "<sys/random.h>" nogil:
    Py_ssize_t c_getrandom "getrandom"(void *buffer, size_t size, unsigned int flags)

DEF MOST = 256  # so many octets the kernel gives in one piece


def note_now(int fd, bytes data not None, int64_t offset):
    cdef Py_ssize_t wrote
    while True:
        wrote = c_pwrite(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), offset)
        if wrote >= 0:
            return wrote
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)


def random_now(Py_ssize_t size):
    cdef char found[MOST]
    cdef Py_ssize_t got
    if not 0 < size <= MOST:
        raise ValueError("size must be 1 to 256")
    while True:
        got = c_getrandom(found, size, 0)
        if got == size:
            return PyBytes_FromStringAndSize(found, size)
        if got < 0 and errno != EINTR:
            PyErr_SetFromErrno(OSError)
