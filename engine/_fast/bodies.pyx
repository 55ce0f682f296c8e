# What each function promises is in the .pyi; the meaning is in _reference.py.

from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)

from engine._fast.scanning cimport (
    BARE_CR_FOUND,
    BARE_LF_FOUND,
    EIGHT_BIT_FOUND,
    NUL_FOUND,
    PY_SSIZE_T_MAX,
    copy,
    count_work,
    find,
    findings,
)

BARE_CR = 1
BARE_LF = 2
NUL = 4
EIGHT_BIT = 8
NEEDS_STUFFING = 16
ENDS_WITH_CRLF = 32

cdef enum:
    C_BARE_CR = 1
    C_BARE_LF = 2
    C_NUL = 4
    C_EIGHT_BIT = 8
    C_NEEDS_STUFFING = 16
    C_ENDS_WITH_CRLF = 32


cdef Py_ssize_t next_line(const unsigned char *p, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    # The offset behind the next CR LF that ends at `at` or later; -1 when there is none.
    cdef const unsigned char *found
    while at < n:
        found = find(p + at, 10, n - at)
        if found == NULL:
            return -1
        at = found - p + 1
        if at > 1 and p[at - 2] == 13:
            return at
    return -1


cdef int odd_octets(const unsigned char *p, Py_ssize_t n) noexcept nogil:
    # The flags of p[0..n) that need no lines.
    cdef unsigned int found = findings(p, n)
    cdef int flags = 0
    if found & NUL_FOUND:
        flags |= C_NUL
    if found & EIGHT_BIT_FOUND:
        flags |= C_EIGHT_BIT
    if found & BARE_CR_FOUND or (n and p[n - 1] == 13):
        flags |= C_BARE_CR
    if found & BARE_LF_FOUND or (n and p[0] == 10):
        flags |= C_BARE_LF
    return flags


def stuff(bytes data not None):
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t dots = 0, at = 0, copied = 0, first = -1
    cdef unsigned char *out
    while 0 <= at < n:
        if p[at] == 46:
            if dots == 0:
                first = at
            dots += 1
        at = next_line(p, at, n)
    if dots == 0:
        return data
    if n > PY_SSIZE_T_MAX - dots:
        raise MemoryError
    result = PyBytes_FromStringAndSize(NULL, n + dots)
    out = <unsigned char *>PyBytes_AS_STRING(result)
    at = first
    while 0 <= at < n and dots > 0:
        if p[at] == 46:
            # Up to the dot, then the dot twice: the second with what follows it.
            copy(out, p + copied, at - copied)
            out += at - copied
            out[0] = 46
            out += 1
            copied = at
            dots -= 1
        at = next_line(p, at, n)
    copy(out, p + copied, n - copied)
    return result


def clean_lines(bytes data not None):
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t i, size = 0
    cdef unsigned char *out
    cdef unsigned char octet
    cdef bint after_cr = False
    if not odd_octets(p, n) & (C_BARE_CR | C_BARE_LF | C_NUL):
        return data
    # Each octet becomes nothing, itself, or two: count first, then fill. A CR is written as a
    # whole line end at once, and the LF behind it (NULs do not count) adds nothing.
    count_work(2 * n)
    for i in range(n):
        octet = p[i]
        if octet == 13:
            size += 2
        elif octet == 10:
            size += 0 if after_cr else 2
        elif octet:
            size += 1
        if size > PY_SSIZE_T_MAX - 4:
            raise MemoryError
        if octet:
            after_cr = octet == 13
    result = PyBytes_FromStringAndSize(NULL, size)
    out = <unsigned char *>PyBytes_AS_STRING(result)
    after_cr = False
    for i in range(n):
        octet = p[i]
        if octet == 13 or (octet == 10 and not after_cr):
            out[0] = 13
            out[1] = 10
            out += 2
        elif octet and octet != 10:
            out[0] = octet
            out += 1
        if octet:
            after_cr = octet == 13
    return result


def scan(bytes data not None):
    cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    cdef Py_ssize_t at = 0, behind, longest = 0, header_end = -1
    cdef int flags = odd_octets(p, n)
    while at < n:
        if p[at] == 46:
            flags |= C_NEEDS_STUFFING
        behind = next_line(p, at, n)
        if behind < 0:
            longest = max(longest, n - at)
            break
        longest = max(longest, behind - at - 2)
        if header_end < 0 and behind - at == 2:
            header_end = behind
        at = behind
    if n >= 2 and p[n - 2] == 13 and p[n - 1] == 10:
        flags |= C_ENDS_WITH_CRLF
    return flags, longest, header_end, n == 0
