cimport cython

from engine.smtp.capabilities cimport Capabilities
from engine.smtp.transaction cimport Transaction

cdef _check(str text)
cdef bint _controls(str text) except -1
@cython.locals(start=str, recipient=str, recipients=str)
cpdef bytes commands(Transaction tx, Capabilities offered, bint dot=*)
cpdef bytes mail_line(Transaction tx, Capabilities offered)
cpdef bytes rcpt_line(str recipient)
@cython.locals(sender=str, size=str, body=str, utf8=str)
cdef str _mail(Transaction tx, Capabilities offered)
@cython.locals(recipient=str)
cpdef obstacle(Transaction tx, Capabilities offered, bint check_8bit=*)
@cython.locals(recipient=str)
cdef bint _needs_utf8(Transaction tx) except -1
