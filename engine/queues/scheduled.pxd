from engine.queues.queued cimport Queued


cdef class ScheduledQueue:
    cdef public object config
    cdef public Py_ssize_t count
    cdef public double idle_since
    cdef public object name
    cdef public double noted_for
    cdef public double refresh_at
    cdef public bint resolving
    cdef public object routes
    cdef public object stop
    cdef public double stop_until
    cdef public list timed
    cdef public object waiting


cdef class Timer:
    cdef public Py_ssize_t _count
    cdef public list _firsts
    cdef public Py_ssize_t _serial

    cpdef bint add(self, Queued entry)
    cpdef next_due(self)
    cpdef take(self, ScheduledQueue queue)
    cpdef list pop_due(self, double now, Py_ssize_t limit)
