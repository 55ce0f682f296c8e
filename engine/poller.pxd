cdef class Watch:
    cdef public int fd
    cdef public bint readable
    cdef public bint writable
    cdef public Poller _poller
    cdef public object _reader
    cdef public object _writer

    cpdef look(self)
    cpdef close(self)
    cpdef fail(self, why)
    cpdef note(self, int mask)
    cdef _enter(self)


cdef class Poller:
    cdef public bint closed
    cdef public object _epoll
    cdef public dict _watches

    cpdef add(self, Watch watch)
    cpdef remove(self, int fd)
    cpdef Py_ssize_t drain(self) except -1
