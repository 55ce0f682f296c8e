from engine._fast.scanning cimport Buffer

cdef class CommandReader:
    cdef public Py_ssize_t limit
    cdef Buffer buffer
    cdef Py_ssize_t searched
    cdef bint skipping

    cpdef feed(self, bytes data)
    cpdef next_line(self)
    cpdef Py_ssize_t pending(self) noexcept
    cpdef bytes take(self)
