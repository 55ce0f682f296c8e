# What each function promises is in the .pyi; the meaning is in _reference.py.
#
# A feed is read line by line with memchr. What lies between two removed dots is content in one
# piece: looked at once for odd octets, copied once. The five states carry over from feed to feed.

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF

from engine._fast.scanning cimport (
    BARE_CR_FOUND,
    EIGHT_BIT_FOUND,
    NUL_FOUND,
    PY_SSIZE_T_MAX,
    copy,
    count_work,
    find,
    findings,
)

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL
    int resize_bytes "_PyBytes_Resize"(PyObject **bytes, Py_ssize_t size) except -1
    char *bytes_data "PyBytes_AS_STRING"(PyObject *bytes) noexcept


@cython.final
@cython.freelist(16)
cdef class DataReader:

    def __cinit__(self):
        self.store = NULL
        self.header_end = -1
        self.state = LINE_START

    def __init__(self, Py_ssize_t limit, Py_ssize_t line_limit=0):
        self.limit = limit
        self.line_limit = line_limit

    def __dealloc__(self):
        Py_XDECREF(self.store)

    @property
    def long_line(self):
        return self.is_long()

    cpdef feed(self, bytes data, Py_ssize_t start=0):
        if data is None:
            raise TypeError("data must be bytes")
        cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t i = start
        cdef Py_ssize_t run = start  # content from here to i is not in the store yet
        cdef Py_ssize_t lf
        cdef const unsigned char *found
        if start < 0 or start > n:
            raise ValueError("start is outside of data")
        if self.done or start == n:
            return 0
        if self.state == AFTER_CR and p[i] != 10:
            self.bare_cr = True
        while i < n:
            if self.state == LINE_START:
                if p[i] == 46:
                    self.add(p + run, i - run)
                    i += 1
                    run = i
                    self.state = DOT
                    if i == n:
                        break
                else:
                    self.folded = p[i] == 32 or p[i] == 9
                    self.state = MIDDLE
            if self.state == DOT:
                if p[i] == 13:
                    i += 1
                    run = i
                    self.state = DOT_CR
                    if i == n:
                        break
                else:
                    self.folded = p[i] == 32 or p[i] == 9
                    self.state = MIDDLE
            if self.state == DOT_CR:
                if p[i] == 10:
                    i += 1
                    run = i
                    self.done = True
                    break
                # The dot was a stuffed one after all, and the CR is bare.
                self.add(b"\r", 1)
                self.bare_cr = True
                self.folded = False
                self.line = 1
                self.state = AFTER_CR
            found = find(p + i, 10, n - i)
            if found == NULL:
                self.line += n - i
                self.state = AFTER_CR if p[n - 1] == 13 else MIDDLE
                i = n
                break
            lf = found - p
            if (lf > i and p[lf - 1] == 13) or (lf == i and self.state == AFTER_CR):
                # The CR is counted in the line already, or is between i and lf.
                self.end_line(self.line + lf - i - 1, self.size + lf + 1 - run)
                self.state = LINE_START
            else:
                self.bare_lf = True
                self.line += lf + 1 - i
                self.state = MIDDLE
            i = lf + 1
        self.add(p + run, i - run)
        # The line that has not ended counts too, but a CR at its end may belong to the line end.
        lf = self.line - (self.state == AFTER_CR)
        if lf > self.longest_line:
            self.longest_line = lf
        if self.is_long():
            self.drop()
        return i - start

    cpdef take(self):
        cdef PyObject *store
        if not self.done:
            raise ValueError("the end of data has not arrived")
        if self.store == NULL:
            return b""
        store = self.store
        self.store = NULL
        self.capacity = 0
        # On failure this frees the object and sets `store` to NULL.
        resize_bytes(&store, self.size)
        content = <object>store
        Py_XDECREF(store)
        return content

    def abandon(self):
        self.over = True
        self.drop()

    cdef bint is_long(self) noexcept:
        return 0 < self.line_limit < self.longest_line

    cdef int drop(self) except -1:
        Py_XDECREF(self.store)
        self.store = NULL
        self.capacity = 0
        return 0

    cdef int add(self, const unsigned char *data, Py_ssize_t count) except -1:
        # Take more content: look at it, and keep it unless the message is refused anyway.
        cdef unsigned int found
        if count <= 0:
            return 0
        found = findings(data, count)
        if found:
            self.nul |= (found & NUL_FOUND) != 0
            self.eight_bit |= (found & EIGHT_BIT_FOUND) != 0
            self.bare_cr |= (found & BARE_CR_FOUND) != 0
        if count > PY_SSIZE_T_MAX - self.size:
            raise MemoryError
        if self.size + count > self.limit:
            self.over = True
            self.drop()
        elif not (self.over or self.is_long()):
            if self.size + count > self.capacity:
                self.grow(self.size + count)
            copy(bytes_data(self.store) + self.size, data, count)
        self.size += count
        return 0

    cdef int grow(self, Py_ssize_t size) except -1:
        # By half at a time, so that copying stays linear; never past the limit.
        cdef Py_ssize_t capacity = size
        # Without memory what was kept is gone: then nobody must take the rest for the whole.
        self.over = True
        if self.store == NULL:
            self.store = new_bytes(NULL, capacity)
        else:
            if capacity < self.capacity + self.capacity // 2:
                capacity = self.capacity + self.capacity // 2
            if capacity > self.limit:
                capacity = self.limit
            # On failure this frees the object and sets the pointer to NULL.
            self.capacity = 0
            count_work(self.size)
            resize_bytes(&self.store, capacity)
        self.capacity = capacity
        self.over = False
        return 0

    cdef void end_line(self, Py_ssize_t length, Py_ssize_t offset) noexcept:
        # A line of `length` octets ended just before `offset` of the content.
        if length > self.longest_line:
            self.longest_line = length
        if self.header_end < 0:
            if length == 0:
                self.header_end = offset
            elif not self.folded:
                self.header_fields += 1
        self.line = 0
