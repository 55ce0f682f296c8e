from engine._fast.scanning cimport Buffer

cdef class ReplyReader:
    cdef Py_ssize_t line_limit, lines_limit, total_limit
    cdef Buffer buffer
    cdef Buffer text
    cdef Py_ssize_t searched, octets, lines
    cdef bint cut
    cdef int code, enhanced
    cdef str broken
    cpdef feed(self, bytes data)
    cpdef tuple next_reply(self, tuple before=*)
    cpdef Py_ssize_t pending(self)
    cdef bint repeats(self, tuple before, Py_ssize_t size) except -1
    cdef int take_line(self, const unsigned char *line, Py_ssize_t size, Py_ssize_t octets) except -1
    cdef object fail(self, str reason)
