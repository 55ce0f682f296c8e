cimport cython

from engine.egress.alarms cimport Alarm as AlarmOf
from engine.egress.connection cimport Connection as ConnectionOf
from engine.egress.transactions cimport Transactions as TransactionsOf
from engine.egress.work cimport Services as ServicesOf
from engine.queues.queued cimport Queued as QueuedMessage
from engine.queues.ready cimport ReadyQueue as Ready


cdef class Session:
    cdef public AlarmOf _alarm
    cdef public ConnectionOf _connection
    cdef public bint _ended
    cdef public bint _giving_way
    cdef public QueuedMessage _hand
    cdef public object _parked
    cdef public bint _prepaid
    cdef public Ready _ready
    cdef public object _scope
    cdef public ServicesOf _services
    cdef public double _stale
    cdef public TransactionsOf _transactions
    cdef public double _turn_ends
    cdef public bint _woken
    cdef public str id

    cpdef abort(self)
    @cython.locals(connection=ConnectionOf, transactions=TransactionsOf, ready=Ready, services=ServicesOf)
    cpdef bint _must_end(self, double now) except -1
    @cython.locals(ready=Ready, transactions=TransactionsOf)
    cdef bint _gives_way(self, double now) except -1
    cdef bint _credential_current(self, ConnectionOf connection) except -1
    cdef bint _next_is_foreign(self, ConnectionOf connection, TransactionsOf transactions) except -1
    cdef _unpark(self)
    cdef bint _peer_spoke(self, ConnectionOf connection) except -1
