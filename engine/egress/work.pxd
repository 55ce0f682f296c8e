cimport cython

from engine.egress.alarms cimport Alarms as AlarmsOf
from engine.egress.settle cimport Settler as SettlerOf
from engine.queues.queued cimport Queued as QueuedMessage
from engine.queues.ready cimport ReadyQueue as Ready
from engine.smtp.transaction cimport Transaction as TransactionOf


cdef class Stumblers:
    cdef public dict _suspected
    cdef public object _until

    cpdef bint has(self, address)


cdef class Services:
    cdef public AlarmsOf alarms
    cdef public object dane
    cdef public object dialer
    cdef public bint draining
    cdef public object hostname
    cdef public object keys
    cdef public object limits
    cdef public object plan
    cdef public SettlerOf settler
    cdef public object spool
    cdef public Stumblers stumblers


cdef class Work:
    cdef public bint again
    cdef public bint ahead
    cdef public double begun
    cdef public bint counted
    cdef public bint dot_sent
    cdef public QueuedMessage entry
    cdef public list indices
    cdef public list more
    cdef public list parts
    cdef public TransactionOf tx


cpdef Work make_work(
    QueuedMessage entry, message, bytes body, list indices, list more, bint rset, double now
)
cpdef patience(path, str stage)
cpdef message_rate(limits, Ready ready, double now)
@cython.locals(total=Py_ssize_t, part=bytes)
cpdef Py_ssize_t octets(list parts) except -1
