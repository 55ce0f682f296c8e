cimport cython

from engine.egress.connection cimport Connection as ConnectionOf
from engine.queues.queued cimport Queued as QueuedMessage
from engine.queues.ready cimport ReadyQueue as Ready


cdef class Settler:
    cdef public object _capture
    cdef public object _dice
    cdef public object _forget
    cdef public object _later
    cdef public object _log
    cdef public object _spool
    cdef public object _told
    cdef public object counters
    cdef public object failed
    cdef public Py_ssize_t resident

    cpdef keep(self, QueuedMessage entry, message, body)
    cpdef drop(self, QueuedMessage entry)
    @cython.locals(groups=list, members=list, before=bint, attempts=Py_ssize_t)
    cpdef bint settle(
        self, QueuedMessage entry, indices, results, Ready ready, session,
        double took=*, bint last=*, bint counted=*
    ) except -1
    cdef _tell(self, QueuedMessage entry, result, Ready ready)
    cpdef put_off(self, QueuedMessage entry, Ready ready)
    cdef _count(self, result, Py_ssize_t number)
    cdef _finish(self, QueuedMessage entry, mask)
    cdef _next_due(self, QueuedMessage entry, bint counted, Ready ready)
    cdef double _left(self, QueuedMessage entry, config) except? -1.0
    cdef _postpone(self, QueuedMessage entry, double due)
    cdef _gone(self, QueuedMessage entry)
    cdef _expire(self, QueuedMessage entry, message, pending, Ready ready)
    @cython.locals(connection=ConnectionOf, recipients=list, now=double)
    cdef _record(
        self, str kind, QueuedMessage entry, message, list members, reply, str command, Ready ready, session,
        double took, due, Py_ssize_t attempts
    )
