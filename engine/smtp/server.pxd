from engine._fast.commands cimport CommandReader
from engine._fast.data cimport DataReader


cdef class ServerSession:
    cdef public object _abandoned
    cdef public object _awaiting
    cdef public object _config
    cdef public DataReader _content
    cdef public Py_ssize_t _errors
    cdef public object _exchange
    cdef public bytes _line
    cdef public Py_ssize_t _noops
    cdef public list _out
    cdef public CommandReader _reader
    cdef public object _ready
    cdef public list _refusals
    cdef public str _state
    cdef public Py_ssize_t _surplus
    cdef public object binding
    cdef public bint closing
    cdef public str ehlo_domain
    cdef public bint esmtp
    cdef public list forward_paths
    cdef public str identity
    cdef public object reverse_path
    cdef public bint smtputf8
    cdef public bint tls

    cdef _forget(self)
    cdef _end_transaction(self)
    cpdef receive_data(self, bytes data)
    cpdef bytes data_to_send(self)
    cpdef next_event(self)
    cdef _bad_line(self, int which)
    cdef _command(self, bytes line)
    cdef _mail(self, bytes rest)
    cdef _rcpt(self, bytes rest)
    cdef _seldom(self, bytes verb, bytes rest)
    cdef _end_of_data(self, DataReader content)
    cpdef accept(self, reply=*, extensions=*)
    cdef _accept_hello(self, event, extensions)
    cpdef list take_refusals(self)
    cdef _count_error(self)
    cdef _error(self, reply)
    cdef _idle(self)
