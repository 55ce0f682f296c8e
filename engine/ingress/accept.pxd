cdef class Acceptor:
    cdef public object _spool
    cdef public object _enqueue
    cdef public object _log
    cdef public object _capture
    cdef public object _hooks
    cdef public str _hostname
    cdef public bint _by_domain
    cdef public bint _received_header
    cdef public double _limit
    cdef public dict _names
    cdef public object _data_hook
    cdef public object _message_hook
    cdef public bint _data_waits
    cdef public bint _message_waits
    cdef public bint hooks_wait

    cdef list _split(self, list recipients)
    cdef _queue(self, domain, dict meta)
    cdef _view(self, message, list part, sender, list bodies, end)
    cdef _take_over(self, view, message, list part, list bodies)
    cdef _log_receptions(self, connection, list messages, list bodies)
