cdef class Segment:
    cdef public bint compacting
    cdef public double created
    cdef public bint dirty
    cdef public Py_ssize_t end
    cdef public double excused
    cdef public list handles
    cdef public str journal_path
    cdef public bint leaving
    cdef public object lengths
    cdef public Py_ssize_t live
    cdef public object mark
    cdef public bytes nonce
    cdef public object number
    cdef public object offsets
    cdef public str path
    cdef public Py_ssize_t pins
    cdef public Py_ssize_t reserved
    cdef public bint scanned
    cdef public bint sealed
    cdef public object seed
    cdef public object slots
    cdef public Py_ssize_t slots_end
    cdef public list sources
    cdef public bint suspect
    cdef public set touched
    cdef public list unsaved
    cdef public Py_ssize_t watch
    cdef public dict wide

    cpdef list add(self, Py_ssize_t offset, Py_ssize_t length, Py_ssize_t slot, list recipients)
    cdef _place(self, Py_ssize_t offset, Py_ssize_t length, Py_ssize_t slot, Py_ssize_t count)
    cpdef tuple note(self, handle)
    cpdef drop(self, handle)
