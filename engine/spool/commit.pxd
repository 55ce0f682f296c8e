from .segment cimport Segment
from .shelf cimport Shelf


cdef class _Waiting:
    cdef public bint abandoned
    cdef public object bodies
    cdef public Committer committer
    cdef public object deadline
    cdef public list envelopes
    cdef public list ids
    cdef public Py_ssize_t length
    cdef public Py_ssize_t offset
    cdef public list recipients
    cdef public Py_ssize_t room
    cdef public Py_ssize_t slot
    cdef public bint taken
    cdef public object task


cdef class _Group:
    cdef public bint condemn
    cdef public object crash
    cdef public Py_ssize_t end
    cdef public object error
    cdef public int fd
    cdef public list files
    cdef public int journal
    cdef public list members
    cdef public bint new
    cdef public Segment segment
    cdef public Shelf shelf
    cdef public Py_ssize_t slots_end
    cdef public object spare

    cdef bint hand_over(self, writer) except -1
    cdef _write(self)
    cdef _give_up_writing(self, error)
    cdef _give_up_syncing(self, error)
    cdef bint _cut_back(self) except -1


cdef class Committer:
    cdef public Shelf _shelf
    cdef public object _line
    cdef public double _since
    cdef public _Group _group
    cdef public object _writer
    cdef public bint _direct
    cdef public object _limiter
    cdef public object _create_limiter
    cdef public object _settled
    cdef public object _alarm
    cdef public bint _closing
    cdef public set _recent
    cdef public set _before

    cdef _Waiting _prepare(self, bodies, messages, deadline)
    cpdef leave(self, _Waiting waiting)
    cdef _unlearn(self, _Waiting waiting)
    cdef _launch(self)
    cdef double _patience(self) except? -1.0
    cdef _finished(self)
    cdef _land(self, _Group group)
    cdef _let_go(self, _Group group)
    cdef _landed(self, _Group group, Segment segment)
    cdef _wake(self, _Waiting waiting, answer)
