from .poller cimport Watch as Watching


cdef class Stream:
    cdef public bint _closed
    cdef public int _fd
    cdef public bint _obstructed
    cdef public object _sock
    cdef public Py_ssize_t _turns
    cdef public Watching _watch
    cdef public object local
    cdef public object peer
    cdef public object tls

    cpdef receive_nowait(self, Py_ssize_t limit=*)
    cdef _send(self, data)
