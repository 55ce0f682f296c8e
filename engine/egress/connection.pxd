from engine.smtp.client cimport ClientSession as Client


cdef class Connection:
    cdef public str address
    cdef public str auth_mechanism
    cdef public object auth_user
    cdef public object certificate
    cdef public Client client
    cdef public object dane
    cdef public object identity
    cdef public str mx_name
    cdef public object resumable
    cdef public object source_address
    cdef public object stream
    cdef public object tls_why
