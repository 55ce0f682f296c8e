# What each function promises is in the .pyi; the meaning is in _reference.py.

from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_GET_SIZE,
)

from engine._fast.scanning cimport find


cdef Py_ssize_t line_behind(const unsigned char *p, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # The offset behind the CR LF of the line that begins at `at`; -1 when the line has no end.
    cdef Py_ssize_t start = at
    cdef const unsigned char *found
    while at < n:
        found = find(p + at, 10, n - at)
        if found == NULL:
            return -1
        at = found - p + 1
        if at - start > 1 and p[at - 2] == 13:
            return at
    return -1


def header_end(bytes data not None):
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t at = 0, behind
    while at < n:
        behind = line_behind(p, at, n)
        if behind < 0:
            return -1
        if behind - at == 2:
            return behind
        at = behind
    return n


def header_index(bytes data not None, Py_ssize_t end):
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef const unsigned char *found
    cdef Py_ssize_t start = 0, behind, colon
    cdef list fields = []
    if end < 0 or end > PyBytes_GET_SIZE(data):
        raise ValueError("end is outside of data")
    while start < end:
        if p[start] == 32 or p[start] == 9:
            break
        behind = line_behind(p, start, end)
        if behind < 0:
            behind = end
        found = find(p + start, 58, behind - start)
        if found == NULL or found == p + start:
            break
        colon = found - p
        while behind < end and (p[behind] == 32 or p[behind] == 9):
            behind = line_behind(p, behind, end)
            if behind < 0:
                behind = end
        fields.append((start, colon, behind))
        start = behind
    return fields
