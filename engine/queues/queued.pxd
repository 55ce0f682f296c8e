cdef class Queued:
    cdef public object id
    cdef public object handle
    cdef public object queue
    cdef public double created
    cdef public double due
    cdef public Py_ssize_t size
    cdef public Py_ssize_t attempts
    cdef public object done
    cdef public Py_ssize_t noted
    cdef public object message
    cdef public object body
