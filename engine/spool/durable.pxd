from .commit cimport Committer
from .shelf cimport Shelf
from .upkeep cimport Upkeep


cdef class DurableSpool:
    cdef public Shelf _shelf
    cdef public Committer _committer
    cdef public Upkeep _upkeep
    cdef public list _unread
    cdef public double _behind
    cdef public object _reader

    cpdef finish(self, handle, recipients)
    cpdef postpone(self, handle, Py_ssize_t attempts, double due)
    cdef str _trouble(self)
    cpdef bint room_for(self, size) except? -1
