cimport cython

from engine.egress.alarms cimport Alarm as AlarmOf
from engine.egress.connection cimport Connection as ConnectionOf
from engine.egress.work cimport Services as ServicesOf, Work as WorkOf
from engine.egress.work cimport make_work, message_rate, octets, patience
from engine.queues.queued cimport Queued as QueuedMessage
from engine.queues.ready cimport ReadyQueue as Ready
from engine.smtp.client cimport ClientSession as Client
from engine.smtp.transaction cimport Transaction as TransactionOf


cdef class Transactions:
    cdef public bint _across
    cdef public AlarmOf _alarm
    cdef public ConnectionOf _connection
    cdef public WorkOf _following
    cdef public bint _hand_counted
    cdef public object _must_end
    cdef public double _now
    cdef public bint _open
    cdef public bint _prepaid
    cdef public Ready _ready
    cdef public object _resting
    cdef public ServicesOf _services
    cdef public object _session
    cdef public QueuedMessage _suspect
    cdef public double _until
    cdef public WorkOf _work
    cdef public Py_ssize_t delivered
    cdef public QueuedMessage hand
    cdef public bint stopped
    cdef public bint useful

    @cython.locals(deadline=double, stage=str)
    cdef _arm(self)
    cdef QueuedMessage _look_ahead(self, WorkOf work)
    @cython.locals(work=WorkOf, indices=list, more=list, rset=bint)
    cdef WorkOf _make(self, QueuedMessage entry, WorkOf before, bint ahead)
    cdef double _throttle(self) except? -1.0
    cdef bint _refused_early(self, early) except -1
    @cython.locals(tx=TransactionOf, ready=Ready, client=Client, indices=list, results=list)
    cdef _finish(self, WorkOf work)
    cdef bint _stumbled_over(self, WorkOf work) except -1
    cdef _judge(self, mail)
    cdef _give_back(self)
    @cython.locals(tx=TransactionOf, ready=Ready)
    cdef _settle_broken(self, WorkOf work, error, bint ended, bint sent_ahead)
