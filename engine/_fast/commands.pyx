# What each function promises is in the .pyi; the meaning is in _reference.py.

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.unicode cimport PyUnicode_DecodeASCII

from engine._fast.scanning cimport (
    buffer_append,
    buffer_consume,
    buffer_free,
    count_work,
    find,
    has_control,
)

LINE_TOO_LONG = -1
LINE_BARE = -2
LINE_CONTROL = -3


@cython.final
@cython.freelist(16)
cdef class CommandReader:

    def __init__(self, Py_ssize_t limit=2048):
        self.limit = limit

    def __dealloc__(self):
        buffer_free(&self.buffer)

    cpdef feed(self, bytes data):
        if data is None:
            raise TypeError("data must be bytes")
        buffer_append(&self.buffer, <const unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cpdef next_line(self):
        # `searched` counts from the first live octet: there is no CR LF that begins before it.
        cdef unsigned char *line = self.buffer.data + self.buffer.begin
        cdef Py_ssize_t live = self.buffer.end - self.buffer.begin
        cdef Py_ssize_t length = 0, at = self.searched
        cdef const unsigned char *found
        cdef bint skipped, bare = False, cr
        if live == 0:
            return None
        while True:
            found = find(line + at, 10, live - at)
            if found == NULL:
                cr = line[live - 1] == 13
                # The shortest this line can become: its end comes next.
                if self.skipping or live + 2 - cr > self.limit:
                    self.skipping = True
                    buffer_consume(&self.buffer, live - cr)
                    live = cr
                self.searched = live - cr
                return None
            length = found - line
            at = length + 1
            if length and line[length - 1] == 13:
                break
            # An LF alone ends nothing; the check below finds it in the line.
        length -= 1
        skipped = self.skipping
        self.skipping = False
        self.searched = 0
        if skipped or length + 2 > self.limit:
            result = LINE_TOO_LONG
        elif has_control(line, length):
            bare = find(line, 10, length) != NULL or find(line, 13, length) != NULL
            result = LINE_BARE if bare else LINE_CONTROL
        else:
            result = PyBytes_FromStringAndSize(<char *>line, length)
        buffer_consume(&self.buffer, length + 2)
        return result

    cpdef Py_ssize_t pending(self) noexcept:
        return self.buffer.end - self.buffer.begin

    cpdef bytes take(self):
        cdef Py_ssize_t live = self.buffer.end - self.buffer.begin
        cdef bytes data = b""
        if live:
            data = PyBytes_FromStringAndSize(<char *>self.buffer.data + self.buffer.begin, live)
            buffer_consume(&self.buffer, live)
        self.searched = 0
        self.skipping = False
        return data


def parse_command(bytes line not None):
    cdef const unsigned char *text = <const unsigned char *>PyBytes_AS_STRING(line)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(line)
    cdef Py_ssize_t verb = 0, rest, i
    cdef unsigned char *upper
    while end > 0 and (text[end - 1] == 32 or text[end - 1] == 9):
        end -= 1
    while verb < end and text[verb] != 32:
        verb += 1
    rest = verb
    while rest < end and text[rest] == 32:
        rest += 1
    count_work(end)
    name = PyBytes_FromStringAndSize(NULL, verb)
    # Nobody else has seen these bytes yet, so they may be written.
    upper = <unsigned char *>PyBytes_AS_STRING(name)
    for i in range(verb):
        upper[i] = text[i] - 32 if 97 <= text[i] <= 122 else text[i]
    return name, PyBytes_FromStringAndSize(<char *>text + rest, end - rest)


# What an octet may be in a path: 1 in an atom, 2 in a label.
cdef unsigned char KIND[256]
cdef Py_ssize_t _code
for _code in range(256):
    KIND[_code] = 0
for _code in range(48, 58):
    KIND[_code] = 3
for _code in range(65, 91):
    KIND[_code] = 3
    KIND[_code + 32] = 3
for _code in b"!#$%&'*+/=?^_`{|}~":
    KIND[_code] = 1
KIND[45] = 3


def parse_path(bytes arg not None):
    cdef const unsigned char *text = <const unsigned char *>PyBytes_AS_STRING(arg)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(arg)
    # A bytes object has a NUL behind its last octet, so text[size] may be read, and no octet of
    # a path is NUL: each loop below ends there at the latest.
    cdef Py_ssize_t at = 1, start, label
    if size < 2 or text[0] != 60:  # <
        return None
    if text[1] != 62:  # >
        while True:
            start = at
            while KIND[text[at]] & 1:
                at += 1
            if at == start:
                return None
            if text[at] != 46:  # .
                break
            at += 1
        if text[at] != 64 or at - 1 > 64:  # @
            return None
        at += 1
        start = at
        while True:
            label = at
            while KIND[text[at]] & 2:
                at += 1
            if at == label or at - label > 63 or text[label] == 45 or text[at - 1] == 45:
                return None
            if text[at] != 46:
                break
            at += 1
        if text[at] != 62 or at - start > 255 or at + 1 > 256:
            return None
    path = PyUnicode_DecodeASCII(<char *>text + 1, at - 1, NULL)
    at += 1
    if at < size and text[at] != 32:
        return None
    while at < size and text[at] == 32:
        at += 1
    count_work(at)
    return path, PyBytes_FromStringAndSize(<char *>text + at, size - at)
