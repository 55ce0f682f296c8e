# What each method promises is in the .pyi; the meaning is in _reference_kernel.py.
#
# The thread in `run` wants the interpreter's lock only when it returns. With the lock it would have to be
# woken three times a group, each time against a loop that takes the lock back within microseconds.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.errno cimport EAGAIN, EINTR, EIO, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    Py_ssize_t c_pwritev "pwritev"(int fd, const iovec *vectors, int count, int64_t offset)

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t c_read "read"(int fd, void *buffer, size_t size)
    Py_ssize_t c_write "write"(int fd, const void *buffer, size_t size)
    int c_fdatasync "fdatasync"(int fd)
    int c_close "close"(int fd)

cdef extern from "<sys/eventfd.h>" nogil:
    int c_eventfd "eventfd"(unsigned int start, int flags)
    int EFD_CLOEXEC
    int EFD_NONBLOCK
    int EFD_SEMAPHORE

cdef extern from "<endian.h>" nogil:
    uint16_t htole16(uint16_t value)
    uint32_t htole32(uint32_t value)
    uint64_t htole64(uint64_t value)

DEF VERSION = 1
DEF HEADER = 60
DEF TRAILER = 8
DEF BODY_ROW = 12
DEF MESSAGE_ROW = 8
DEF VECTORS = 1024  # the kernel's own limit (IOV_MAX)
DEF PATIENCE = 100  # interrupted calls in a row before it is called a failure; a guess
DEF KEEP = 1048576  # a working space larger than this is not kept for the next group; a guess

cdef enum:
    NOTHING
    WRITE
    CALL

cdef const char *RECORD_MAGIC = "\xf5PT\n"
cdef const char *END_MARK = "\nTP\xf5"


cdef struct Record:
    Py_ssize_t messages
    Py_ssize_t bodies
    uint64_t length
    uint64_t room
    uint64_t envelopes  # octets of all of them


cdef struct Piece:  # an envelope or a body
    const uint8_t *data
    uint64_t size
    uint32_t recipients


cdef uint32_t TABLES[8][256]


cdef void fill_tables() noexcept:
    cdef uint32_t value
    cdef int octet, _bit, table
    for octet in range(256):
        value = octet
        for _bit in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        TABLES[0][octet] = value
    for octet in range(256):
        for table in range(1, 8):
            value = TABLES[table - 1][octet]
            TABLES[table][octet] = (value >> 8) ^ TABLES[0][value & 0xFF]


fill_tables()


cdef uint32_t crc32(const uint8_t *data, uint64_t size) noexcept nogil:
    """As zlib's: eight octets a step, each by a table of its own."""
    cdef uint32_t crc = 0xFFFFFFFF
    while size >= 8:
        crc ^= data[0] | <uint32_t> data[1] << 8 | <uint32_t> data[2] << 16 | <uint32_t> data[3] << 24
        crc = (
            TABLES[7][crc & 0xFF] ^ TABLES[6][crc >> 8 & 0xFF]
            ^ TABLES[5][crc >> 16 & 0xFF] ^ TABLES[4][crc >> 24]
            ^ TABLES[3][data[4]] ^ TABLES[2][data[5]] ^ TABLES[1][data[6]] ^ TABLES[0][data[7]]
        )
        data += 8
        size -= 8
    while size:
        crc = (crc >> 8) ^ TABLES[0][(crc ^ data[0]) & 0xFF]
        data += 1
        size -= 1
    return ~crc


cdef uint8_t *put16(uint8_t *at, uint16_t value) noexcept nogil:
    value = htole16(value)
    memcpy(at, &value, 2)
    return at + 2


cdef uint8_t *put32(uint8_t *at, uint32_t value) noexcept nogil:
    value = htole32(value)
    memcpy(at, &value, 4)
    return at + 4


cdef uint8_t *put64(uint8_t *at, uint64_t value) noexcept nogil:
    value = htole64(value)
    memcpy(at, &value, 8)
    return at + 8


cdef void *grown(void *old, Py_ssize_t *have, Py_ssize_t want, size_t size) except NULL:
    """Room for at least `want` things of `size` octets; what is there stays."""
    cdef void *new
    if old != NULL and want <= have[0]:
        return old
    want = max(want, 2 * have[0], 64)
    new = PyMem_RawRealloc(old, want * size)
    if new == NULL:
        raise MemoryError
    have[0] = want
    return new


cdef class GroupWriter:
    cdef int _posted, _finished
    cdef int _job
    cdef bint _busy
    cdef list _kept
    cdef Record *_records
    cdef Piece *_pieces
    cdef Py_ssize_t _record_count, _record_room, _piece_count, _piece_room
    cdef uint8_t *_space
    cdef iovec *_vectors
    cdef Py_ssize_t _vector_count
    cdef int _fd
    cdef uint8_t _nonce[8]
    cdef uint64_t _offset, _slot
    cdef int _write_error, _sync_error

    def __cinit__(self):
        self._posted = self._finished = -1
        self._kept = []

    def __init__(self):
        if self._posted >= 0:
            raise RuntimeError("it was begun already")
        # One count per job, and one for the end: none is read twice, and none is missed.
        self._posted = c_eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE)
        if self._posted < 0:
            PyErr_SetFromErrno(OSError)
        self._finished = c_eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self._finished < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        # Whoever is in `run` holds a reference: nobody works with any of this now.
        self._close()
        PyMem_RawFree(self._records)
        PyMem_RawFree(self._pieces)
        PyMem_RawFree(self._space)
        PyMem_RawFree(self._vectors)

    def fileno(self):
        return self._finished

    def close(self):
        self._close()

    cdef void _close(self) noexcept:
        if self._posted >= 0:
            c_close(self._posted)
        if self._finished >= 0:
            c_close(self._finished)
        self._posted = self._finished = -1

    # -- for the loop --------------------------------------------------------------------------------

    def add(self, list envelopes not None, list recipients not None, bodies, uint64_t length, uint64_t room):
        if self._busy:
            raise RuntimeError("a group is under way")
        try:
            self._add(envelopes, recipients, bodies, length, room)
        except BaseException:
            self._clear()
            raise

    cdef _add(self, list envelopes, list recipients, bodies, uint64_t length, uint64_t room):
        # Kept, and pointed into: what the caller does to its lists must not free what the thread reads.
        cdef tuple kept = (*envelopes, *bodies)
        cdef Py_ssize_t messages = len(envelopes), count = len(kept) - messages, at
        cdef Record *record
        cdef Piece *piece
        cdef bytes data
        if len(recipients) != messages:
            raise ValueError("recipients has not one number for each envelope")
        self._records = <Record *> grown(
            self._records, &self._record_room, self._record_count + 1, sizeof(Record)
        )
        self._pieces = <Piece *> grown(
            self._pieces, &self._piece_room, self._piece_count + messages + count, sizeof(Piece)
        )
        record = &self._records[self._record_count]
        record.messages, record.bodies, record.length, record.room = messages, count, length, room
        record.envelopes = 0
        piece = &self._pieces[self._piece_count]
        for at in range(messages + count):
            if type(kept[at]) is not bytes:
                raise TypeError("envelopes and bodies must be bytes")
            data = kept[at]
            piece.data, piece.size = <const uint8_t *> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
            if at < messages:
                piece.recipients = recipients[at]
                record.envelopes += piece.size
            piece += 1
        self._kept.append(kept)
        self._piece_count += messages + count
        self._record_count += 1

    def start(self, int fd, bytes nonce not None, uint64_t offset, uint64_t slot):
        cdef Py_ssize_t at, size = 0, vectors = 0
        cdef Record *record
        if self._busy:
            raise RuntimeError("a group is under way")
        if len(nonce) != 8:
            raise ValueError("a nonce has 8 octets")
        for at in range(self._record_count):
            record = &self._records[at]
            size += HEADER + TRAILER + record.envelopes
            size += record.bodies * BODY_ROW + record.messages * MESSAGE_ROW
            vectors += 2 + record.bodies
        self._space = <uint8_t *> PyMem_RawMalloc(max(size, 1))
        self._vectors = <iovec *> PyMem_RawMalloc(max(vectors, 1) * sizeof(iovec))
        if self._space == NULL or self._vectors == NULL:
            self._clear()
            raise MemoryError
        self._fd, self._offset, self._slot = fd, offset, slot
        memcpy(self._nonce, PyBytes_AS_STRING(nonce), 8)
        self._post(WRITE)

    def call(self):
        if self._busy:
            raise RuntimeError("a group is under way")
        self._post(CALL)

    cdef _post(self, int job):
        self._job = job
        self._busy = True
        self._write_error = self._sync_error = 0
        try:
            self._signal(self._posted)
        except BaseException:
            # The thread was not told, and must not find it when it is told something else.
            self._job = NOTHING
            self._busy = False
            self._clear()
            raise

    def end(self):
        self._signal(self._posted)

    def result(self):
        cdef uint64_t count
        while c_read(self._finished, &count, 8) != 8:
            if errno == EAGAIN:
                return False
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
        self._clear()
        self._busy = False
        return True

    cdef void _clear(self) noexcept:
        # First what needs no memory: half of a group must not come before the next one.
        self._record_count = self._piece_count = 0
        self._kept.clear()
        PyMem_RawFree(self._space)
        PyMem_RawFree(self._vectors)
        self._space = NULL
        self._vectors = NULL
        if self._piece_room * sizeof(Piece) > KEEP:
            PyMem_RawFree(self._pieces)
            self._pieces = NULL
            self._piece_room = 0

    cdef _signal(self, int fd):
        cdef uint64_t one = 1
        while c_write(fd, &one, 8) != 8:
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)

    # -- for the thread ------------------------------------------------------------------------------

    def run(self):
        cdef int found
        with nogil:
            found = self._work()
        if found < 0:
            PyErr_SetFromErrno(OSError)
        return (self._write_error, self._sync_error) if found else None

    def report(self):
        self._signal(self._finished)

    cdef int _work(self) noexcept nogil:
        """1: it is called, or a group failed; 0: this is the end; -1: the kernel gives no signals (errno)."""
        cdef uint64_t count, one = 1
        cdef int job
        while True:
            while c_read(self._posted, &count, 8) != 8:
                if errno != EINTR:
                    return -1
            job = self._job
            self._job = NOTHING
            if job == CALL:
                return 1
            if job == NOTHING:
                return 0
            self._pack()
            self._write_error = self._write()
            if not self._write_error:
                self._sync_error = self._sync()
            if self._write_error or self._sync_error:
                return 1
            while c_write(self._finished, &one, 8) != 8:
                if errno != EINTR:
                    return -1

    cdef void _pack(self) noexcept nogil:
        """Headers, tables, envelopes and ends into the working space; the bodies stay where they are."""
        cdef uint8_t *at = self._space
        cdef uint8_t *head
        cdef uint8_t *tables
        cdef Piece *piece = self._pieces
        cdef Piece *body
        cdef Record *record
        cdef iovec *vector = self._vectors
        cdef uint64_t offset = self._offset, slot = self._slot
        cdef uint32_t check
        cdef Py_ssize_t number, each
        for number in range(self._record_count):
            record = &self._records[number]
            head = at
            tables = at = head + HEADER
            body = piece + record.messages
            for each in range(record.bodies):
                at = put32(put64(at, body[each].size), crc32(body[each].data, body[each].size))
            for each in range(record.messages):
                at = put32(put32(at, piece[each].recipients), <uint32_t> piece[each].size)
            for each in range(record.messages):
                memcpy(at, piece[each].data, piece[each].size)
                at += piece[each].size
            check = crc32(tables, at - tables)
            memcpy(head, RECORD_MAGIC, 4)
            put16(put16(head + 4, VERSION), 0)
            memcpy(head + 8, self._nonce, 8)
            put64(put64(put64(head + 16, offset), record.length), slot)
            put32(put32(head + 40, <uint32_t> record.bodies), <uint32_t> record.messages)
            put32(put32(head + 48, <uint32_t> record.envelopes), check)
            check = crc32(head, HEADER - 4)
            put32(head + HEADER - 4, check)
            vector.iov_base, vector.iov_len = head, at - head
            vector += 1
            for each in range(record.bodies):
                vector.iov_base, vector.iov_len = <void *> body[each].data, body[each].size
                vector += 1
            vector.iov_base, vector.iov_len = at, TRAILER
            vector += 1
            memcpy(put32(at, check), END_MARK, 4)
            at += TRAILER
            offset += record.length
            slot += record.room
            piece = body + record.bodies
        self._vector_count = vector - self._vectors

    cdef int _write(self) noexcept nogil:
        """All of it, however many calls that takes; else the kernel's errno."""
        cdef iovec *vector = self._vectors
        cdef Py_ssize_t left = self._vector_count, wrote
        cdef int64_t offset = <int64_t> self._offset
        cdef int interrupted = 0
        while True:
            while left and not vector.iov_len:
                vector += 1
                left -= 1
            if not left:
                return 0
            wrote = c_pwritev(self._fd, vector, <int> min(left, VECTORS), offset)
            if wrote < 0:
                interrupted += 1
                if errno not in (EINTR, EAGAIN) or interrupted > PATIENCE:
                    return errno
                continue
            if not wrote:
                return EIO
            interrupted = 0
            offset += wrote
            while left and wrote >= <Py_ssize_t> vector.iov_len:
                wrote -= vector.iov_len
                vector += 1
                left -= 1
            if left:
                vector.iov_base = <uint8_t *> vector.iov_base + wrote
                vector.iov_len -= wrote

    cdef int _sync(self) noexcept nogil:
        """Begun again only when a signal interrupts it: any other failure is final."""
        cdef int _attempt
        for _attempt in range(PATIENCE):
            if c_fdatasync(self._fd) == 0:
                return 0
            if errno != EINTR:
                return errno
        return EIO
