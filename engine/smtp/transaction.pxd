cdef class Transaction:
    cdef public Py_ssize_t accepted
    cdef public bint body_8bit
    cdef public object data_reply
    cdef public object dot_reply
    cdef public object mail_reply
    cdef public list rcpt_replies
    cdef public list recipients
    cdef public bint rset
    cdef public str sender
    cdef public Py_ssize_t size
    cdef public bint smtputf8
    cdef public tuple surplus


cdef class GoAhead:
    cdef public Transaction tx


cdef class Finished:
    cdef public Transaction tx
