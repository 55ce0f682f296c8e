cimport cython

from engine._fast.replies cimport ReplyReader
from engine.smtp.capabilities cimport Capabilities
from engine.smtp.compose cimport commands, mail_line, obstacle, rcpt_line
from engine.smtp.transaction cimport Finished, GoAhead, Transaction

cdef Py_ssize_t _GREETING, _EHLO, _HELO, _STARTTLS, _AUTH, _RSET, _MAIL, _RCPT, _DATA, _DOT, _LONE_DOT, _QUIT
cdef Py_ssize_t _CLOSING, _SHORT

cdef str _enhanced_text(Py_ssize_t packed)


cdef class ClientSession:
    cdef public Py_ssize_t _due
    cdef public bytes _ehlo
    cdef public list _expected
    cdef public list _found
    cdef public list _heard
    cdef public bytes _initial
    cdef public list _left
    cdef public object _mechanism
    cdef public list _out
    cdef public ReplyReader _reader
    cdef public Py_ssize_t _rounds
    cdef public list _waiting
    cdef public Py_ssize_t answered
    cdef public Capabilities capabilities
    cdef public bint closing
    cdef public object mask
    cdef public bint pipelining
    cdef public bint tls

    cpdef receive_data(self, bytes data)
    cpdef list data_to_send(self)
    cpdef obstacle(self, Transaction tx, bint check_8bit=*)
    cpdef mail(self, Transaction tx)
    cpdef body(self, Transaction tx, parts, Transaction then=*)
    cdef _expect_group(self, Transaction tx)
    @cython.locals(kind=Py_ssize_t, tx=Transaction, index=Py_ssize_t)
    cdef _next_step(self)
    cdef _session_answer(self, Py_ssize_t kind, reply)
    cdef _hello_answer(self, Py_ssize_t kind, reply)
    cdef _say(self, Py_ssize_t kind, bytes line)
    @cython.locals(
        kind=Py_ssize_t, tx=Transaction, index=Py_ssize_t, code=Py_ssize_t, before=tuple, found=tuple,
        expected=list, waiting=list,
    )
    cpdef next_event(self)
    @cython.locals(text=bytes)
    cdef _reply(self, tuple found)
    cdef _answer(self, Py_ssize_t kind, Transaction tx, Py_ssize_t index, reply, Py_ssize_t code)
    @cython.locals(mail_code=Py_ssize_t, wanted=bint)
    cdef _data_answer(self, Transaction tx, reply, Py_ssize_t code)
