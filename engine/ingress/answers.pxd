from engine.smtp.server cimport ServerSession as Session


cdef class Answers:
    cdef public object _connection
    cdef public Py_ssize_t _failed_logins
    cdef public Py_ssize_t _messages
    cdef public object _relay
    cdef public object _service
    cdef public Session _session
    cdef public object _stop_clock

    cpdef hello(self, event)
    cpdef mail(self, event)
    cpdef rcpt(self, event)
    cpdef bint report(self) except -1
