# What each function promises is in the .pyi; the meaning is in _reference_kernel.py.
#
# No call here waits (MSG_DONTWAIT), so the interpreter's lock is kept: letting go of it and taking it again
# costs as much as a small send, and whoever takes it meanwhile may keep it for milliseconds.

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno

cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    Py_ssize_t c_recv "recv"(int fd, void *buffer, size_t size, int flags)
    Py_ssize_t c_send "send"(int fd, const void *buffer, size_t size, int flags)
    Py_ssize_t c_sendmsg "sendmsg"(int fd, const msghdr *message, int flags)

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_wait(int fd, epoll_event *events, int most, int timeout)

cdef extern from "<string.h>" nogil:
    void *memset(void *where, int value, size_t size)

DEF ROOM = 65536
DEF VECTORS = 512  # the kernel's own limit (IOV_MAX) is 1024
DEF EVENTS = 256

# One for all: nothing else runs between the call and the copy, because the lock is kept.
cdef char arrival[ROOM]


def receive_now(int fd, Py_ssize_t limit):
    cdef Py_ssize_t got
    if limit < 1:
        raise ValueError("limit must be at least 1")
    if limit > ROOM:
        limit = ROOM
    while True:
        got = c_recv(fd, arrival, limit, MSG_DONTWAIT)
        if got >= 0:
            return PyBytes_FromStringAndSize(arrival, got)
        if errno == EAGAIN:
            return None
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)


def send_now(int fd, data not None):
    cdef Py_buffer view
    cdef Py_ssize_t sent
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        while True:
            sent = c_send(fd, view.buf, view.len, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent >= 0:
                return sent
            if errno == EAGAIN:
                return 0
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
    finally:
        PyBuffer_Release(&view)


def send_parts_now(int fd, list parts not None, Py_ssize_t index, Py_ssize_t offset):
    cdef iovec vectors[VECTORS]
    cdef msghdr message
    cdef Py_ssize_t count = len(parts), number, at, sent, size
    cdef bytes part
    if not 0 <= index <= count or offset < 0 or (offset and index == count):
        raise ValueError("there is no such place in the parts")
    number = min(count - index, VECTORS)
    for at in range(number):
        part = parts[index + at]
        if part is None:
            raise TypeError("a part must be bytes")
        size = PyBytes_GET_SIZE(part)
        vectors[at].iov_base = PyBytes_AS_STRING(part)
        vectors[at].iov_len = size
        if at == 0 and offset:
            if offset > size:
                raise ValueError("there is no such place in the parts")
            vectors[0].iov_base = PyBytes_AS_STRING(part) + offset
            vectors[0].iov_len = size - offset
    memset(&message, 0, sizeof(message))
    message.msg_iov = vectors
    message.msg_iovlen = number
    while True:
        sent = c_sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent >= 0:
            break
        if errno == EAGAIN:
            return index, offset
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
    for at in range(number):
        size = vectors[at].iov_len
        if sent < size:
            return index + at, (offset if at == 0 else 0) + sent
        sent -= size
    return index + number, 0


def events_now(epoll not None):
    cdef epoll_event events[EVENTS]
    cdef int fd = epoll.fileno(), number
    while True:
        number = epoll_wait(fd, events, EVENTS, 0)
        if number >= 0:
            return [(events[at].data.fd, events[at].events) for at in range(number)]
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
