# What each function promises is in the .pyi; the meaning is in _reference.py.

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from libc.string cimport memcmp

from engine._fast.scanning cimport buffer_append, buffer_consume, buffer_free, count_work, find


cdef inline bint is_digit(unsigned char octet) noexcept:
    return 48 <= octet <= 57


cdef Py_ssize_t parse_enhanced(const unsigned char *text, Py_ssize_t size, int *packed) noexcept:
    # Octets used by "2.1.0 " (or "2.1.0" at the end of the line), 0 if there is none.
    cdef int parts[2]
    cdef Py_ssize_t at = 1, start, part
    if size < 5 or not (text[0] == 50 or text[0] == 52 or text[0] == 53):
        return 0
    for part in range(2):
        if at >= size or text[at] != 46:
            return 0
        at += 1
        start = at
        parts[part] = 0
        while at < size and at - start < 3 and is_digit(text[at]):
            parts[part] = parts[part] * 10 + (text[at] - 48)
            at += 1
        if at == start:
            return 0
    if at < size:
        if text[at] != 32:
            return 0
        at += 1
    packed[0] = (text[0] - 48) * 1000000 + parts[0] * 1000 + parts[1]
    return at


@cython.final
cdef class ReplyReader:

    def __init__(self, Py_ssize_t line_limit=2048, Py_ssize_t lines_limit=128, Py_ssize_t total_limit=65536):
        if line_limit < 3 or lines_limit < 1 or total_limit < 1:
            raise ValueError("a reply has at least one line of three octets")
        self.line_limit = line_limit
        self.lines_limit = lines_limit
        self.total_limit = total_limit

    def __dealloc__(self):
        buffer_free(&self.buffer)
        buffer_free(&self.text)

    cpdef feed(self, bytes data):
        if data is None:
            raise TypeError("octets are needed")
        buffer_append(&self.buffer, <const unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cpdef tuple next_reply(self, tuple before=None):
        # The live octets begin with the current line; its kept part only, when it was `cut`.
        cdef unsigned char *line
        cdef const unsigned char *found
        cdef Py_ssize_t live, end, size, text_size
        cdef bint last
        cdef tuple reply
        if self.broken is not None:
            raise ValueError(self.broken)
        while True:
            line = self.buffer.data + self.buffer.begin
            live = self.buffer.end - self.buffer.begin
            if live == 0:
                return None
            found = find(line + self.searched, 10, live - self.searched)
            if found == NULL:
                # One octet more may be the CR of the line end.
                if self.cut or live - 1 > self.line_limit:
                    self.cut = True
                    self.octets += live - self.line_limit
                    live = self.line_limit
                    self.buffer.end = self.buffer.begin + live
                self.searched = live
                if self.octets + live > self.total_limit:
                    self.fail(f"reply longer than {self.total_limit} octets")
                return None
            end = size = found - line
            if not self.cut and size and line[size - 1] == 13:
                size -= 1
            if size > self.line_limit:
                size = self.line_limit
            self.cut = False
            self.searched = 0
            last = self.take_line(line, size, self.octets + end + 1)
            # The text is in self.text now: nothing points into self.buffer any more.
            self.octets += end + 1
            buffer_consume(&self.buffer, end + 1)
            if last:
                break
        text_size = self.text.end - self.text.begin
        if before is not None and self.repeats(before, text_size):
            reply = before
        else:
            text = b""
            if text_size:
                text = PyBytes_FromStringAndSize(<char *>self.text.data + self.text.begin, text_size)
            reply = (self.code, self.enhanced, text)
        buffer_consume(&self.text, text_size)
        self.octets = self.lines = 0
        self.code = self.enhanced = 0
        return reply

    cdef bint repeats(self, tuple before, Py_ssize_t size) except -1:
        # Whether the reply that is complete now, with a text of `size` octets, is this one again.
        cdef int code = before[0], enhanced = before[1]
        cdef bytes text = before[2]
        if code != self.code or enhanced != self.enhanced or PyBytes_GET_SIZE(text) != size:
            return False
        count_work(size)
        return size == 0 or memcmp(PyBytes_AS_STRING(text), self.text.data + self.text.begin, size) == 0

    cpdef Py_ssize_t pending(self):
        return self.octets + self.buffer.end - self.buffer.begin

    cdef int take_line(self, const unsigned char *line, Py_ssize_t size, Py_ssize_t octets) except -1:
        # Add one line to the reply, which has `octets` with it; whether it was the last.
        cdef int code, enhanced = 0
        cdef Py_ssize_t used
        if octets > self.total_limit:
            self.fail(f"reply longer than {self.total_limit} octets")
        if self.lines >= self.lines_limit:
            self.fail(f"reply of more than {self.lines_limit} lines")
        if (
            size < 3 or line[0] < 50 or line[0] > 53 or not is_digit(line[1]) or not is_digit(line[2])
            or (size > 3 and line[3] != 32 and line[3] != 45)
        ):
            self.fail("reply line does not begin with a code from 200 to 599 and a space or hyphen")
        code = (line[0] - 48) * 100 + (line[1] - 48) * 10 + (line[2] - 48)
        if self.lines and code != self.code:
            self.fail(f"reply code changed within one reply: {self.code}, then {code}")
        self.code = code
        if self.lines:
            buffer_append(&self.text, b"\n", 1)
        self.lines += 1
        if size > 4:
            used = parse_enhanced(line + 4, size - 4, &enhanced)
            if used:
                # A class that contradicts the code makes it mere text (reliability C4).
                if self.enhanced == 0 and enhanced // 1000000 == code // 100:
                    self.enhanced = enhanced
                if self.enhanced != enhanced:
                    used = 0
            buffer_append(&self.text, line + 4 + used, size - 4 - used)
        return size <= 3 or line[3] != 45

    cdef object fail(self, str reason):
        self.broken = reason
        raise ValueError(reason)
