cdef class Files:
    cpdef Py_ssize_t pwrite(self, int fd, bytes data, offset) except? -1
    cpdef Py_ssize_t pwritev(self, int fd, parts, offset) except? -1
    cpdef fdatasync(self, int fd)


cpdef write_at(Files files, int fd, bytes data, offset)
cpdef write_parts(Files files, int fd, list parts, offset)
cdef _write_chunk(Files files, int fd, list parts, offset)
cpdef sync_file(Files files, int fd)


cdef class OpenFile:
    cdef public int fd
    cdef public Py_ssize_t pins
    cdef public bint gone


cdef class Descriptors:
    cdef public Files _files
    cdef public Py_ssize_t _limit
    cdef public object _open

    cpdef OpenFile get(self, str path)
    cpdef OpenFile pin(self, str path)
    cpdef unpin(self, OpenFile found)
