from .files cimport Descriptors, Files
from .segment cimport Segment


cdef class Fault:
    cdef public bint full
    cdef public bint halts
    cdef public str text


cdef class Counters:
    cdef public Py_ssize_t messages
    cdef public Py_ssize_t committed
    cdef public Py_ssize_t batches
    cdef public Py_ssize_t recovered
    cdef public Py_ssize_t quarantined
    cdef public Py_ssize_t torn
    cdef public Py_ssize_t duplicates
    cdef public Py_ssize_t abandoned
    cdef public Py_ssize_t compactions
    cdef public Py_ssize_t failures


cdef class Shelf:
    cdef public str path
    cdef public str directory
    cdef public Files files
    cdef public Py_ssize_t segment_size
    cdef public Py_ssize_t spare_limit
    cdef public Descriptors descriptors
    cdef public object quarantine
    cdef public dict segments
    cdef public list spares
    cdef public object next_number
    cdef public Segment active
    cdef public Fault fault
    cdef public object convalescents
    cdef public bint closed
    cdef public bint abandoned
    cdef public Counters counters
    cdef public list dirty
    cdef public list finished
    cdef public list sparse
    cdef public list litter
    cdef public object _sweeping
    cdef public object wake_sync
    cdef public object wake_upkeep

    cpdef finish(self, handle, recipients)
    cpdef note(self, Segment segment, handle)
    cpdef soil(self, Segment segment)
    cpdef thinned(self, Segment segment)
    cpdef mark_blocking(self, Segment segment, int journal, Py_ssize_t end, bint sealed)
