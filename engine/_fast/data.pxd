from cpython.object cimport PyObject


cdef enum State:
    MIDDLE      # within a line
    AFTER_CR    # the octet before this one was a CR, and is content
    LINE_START  # behind CR LF
    DOT         # behind CR LF and a dot, which is not content
    DOT_CR      # behind CR LF, dot, CR; the CR is not content yet


cdef class DataReader:
    cdef Py_ssize_t limit, line_limit
    # A bytes object nobody else has seen, `capacity` octets long, `size` of them used; or NULL.
    cdef PyObject *store
    cdef Py_ssize_t capacity
    cdef Py_ssize_t line
    cdef State state
    cdef bint folded
    cdef readonly Py_ssize_t size, longest_line, header_end, header_fields
    cdef readonly bint done, over, bare_cr, bare_lf, nul, eight_bit

    cpdef feed(self, bytes data, Py_ssize_t start=*)
    cpdef take(self)
    cdef bint is_long(self) noexcept
    cdef int drop(self) except -1
    cdef int add(self, const unsigned char *data, Py_ssize_t count) except -1
    cdef int grow(self, Py_ssize_t size) except -1
    cdef void end_line(self, Py_ssize_t length, Py_ssize_t offset) noexcept
