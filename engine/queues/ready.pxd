from engine.queues.queued cimport Queued


cdef class ReadyQueue:
    cdef public Py_ssize_t _connection_limit
    cdef public Py_ssize_t _max_ready
    cdef public dict _wakers
    cdef public double back_off
    cdef public object entries
    cdef public Py_ssize_t failures
    cdef public Py_ssize_t give_way
    cdef public str hold_cause
    cdef public object hold_text
    cdef public dict hungry
    cdef public object lease
    cdef public tuple leases
    cdef public tuple message_rates
    cdef public bint met
    cdef public str name
    cdef public double noted_for
    cdef public double pace
    cdef public object path
    cdef public object proceed
    cdef public object providers
    cdef public object refill
    cdef public bint retired
    cdef public double retry_at
    cdef public tuple selection_rates
    cdef public Py_ssize_t sessions
    cdef public object site
    cdef public object source
    cdef public Py_ssize_t starting
    cdef public object suspended_text
    cdef public double suspended_until
    cdef public double touched
    cdef public bint warm

    cpdef bint suspended(self, double now)
    cpdef double next_look(self, double now)
    cpdef Py_ssize_t room(self)
    cpdef bint put(self, Queued entry)
    cpdef put_back(self, Queued entry)
    cpdef Queued take(self)
    cpdef call_back(self)
    cpdef add_waker(self, object wake)
    cpdef drop_waker(self, object wake)
    cpdef bint wake_one(self)
    cpdef bint busy_enough(self)
    cpdef finished_one(self, double seconds)
    cpdef bint wants_session(self, double now)
    cpdef hold(self, object cause, object text, double until)
    cpdef connected(self)
    cpdef progressed(self)
    cdef _proceed(self)
    cpdef session_over(self)
    cdef _cool_down(self)


cpdef Py_ssize_t wanted_sessions(Py_ssize_t queued, Py_ssize_t limit)
