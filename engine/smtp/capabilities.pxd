cdef class Capabilities:
    cdef public object auth
    cdef public bint eight_bit_mime
    cdef public bint enhanced
    cdef public object names
    cdef public bint pipelining
    cdef public object size
    cdef public bint smtputf8
    cdef public bint starttls
