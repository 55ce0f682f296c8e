cdef class EnvelopeAddress:
    cdef readonly object _address


cdef class ReceivedMessage:
    cdef public object _below
    cdef public bytes _content
    cdef public str _default_domain
    cdef public bint _fresh_meta
    cdef public object _header_end
    cdef public object _id
    cdef public dict _meta
    cdef public bytes _prefix
    cdef public object _top
    cdef public list recipients
    cdef public object reverse_path
    cdef public bint smtputf8
