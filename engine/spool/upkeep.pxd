from .commit cimport Committer
from .shelf cimport Shelf


cdef class Upkeep:
    cdef public Shelf _shelf
    cdef public Committer _committer
    cdef public object _min_space
    cdef public object _min_inodes
    cdef public double _compact_age
    cdef public object _sync_limiter
    cdef public object _limiter
    cdef public object _sync_bed
    cdef public object _poke
    cdef public object _closing
    cdef public double _look_at
    cdef public str _obstacle
    cdef public bint _stuck
    cdef public str short
    cdef public object free_bytes
    cdef public object free_inodes

    cpdef look(self)
