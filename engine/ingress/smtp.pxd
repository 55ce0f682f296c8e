from engine.ingress.answers cimport Answers as AnswersOf
from engine.smtp.server cimport ServerSession as Session


cdef class InboundSession:
    cdef public AnswersOf _answers
    cdef public object _connection
    cdef public double _data_begun
    cdef public double _data_octets
    cdef public bint _draining
    cdef public double _heard
    cdef public bint _holding
    cdef public object _owed
    cdef public double _patience
    cdef public bint _said
    cdef public object _scope
    cdef public object _service
    cdef public Session _session
    cdef public object _stage
    cdef public bint _stopped
    cdef public object _stream
    cdef public bytes _unread
    cdef public double _until

    cpdef bytes _output(self)
    cpdef _arm(self, double now, bint progress=*)
    cpdef _stop_clock(self)
