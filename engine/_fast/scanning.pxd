# Loops over octets that the C compiler turns into SIMD code, and a buffer that grows.
# Everything here is inline C: no Python object, no exception but MemoryError.

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

cdef extern from *:
    """
    #define POSTHORN_NUL 1u
    #define POSTHORN_EIGHT_BIT 2u
    #define POSTHORN_BARE_CR 4u
    #define POSTHORN_BARE_LF 8u

    /* What is in p[0..n), in one pass. Whether p[n-1] is a bare CR, and whether p[0] is a bare LF,
       depends on the neighbours and is left to the caller. */
    static inline unsigned int posthorn_findings(const unsigned char *p, Py_ssize_t n)
    {
        unsigned char any = 0, nul = 0, cr = 0, lf = 0;
        Py_ssize_t i;
        if (n <= 0)
            return 0;
        for (i = 0; i + 1 < n; i++) {
            unsigned char here = p[i], next = p[i + 1];
            unsigned char is_cr = (unsigned char)(here == 13), is_lf = (unsigned char)(next == 10);
            any |= here;
            nul |= (unsigned char)(here == 0);
            cr |= (unsigned char)(is_cr & (is_lf ^ 1));
            lf |= (unsigned char)(is_lf & (is_cr ^ 1));
        }
        any |= p[n - 1];
        nul |= (unsigned char)(p[n - 1] == 0);
        return (nul ? POSTHORN_NUL : 0u) | ((any & 0x80) ? POSTHORN_EIGHT_BIT : 0u)
            | (cr ? POSTHORN_BARE_CR : 0u) | (lf ? POSTHORN_BARE_LF : 0u);
    }

    /* Whether p[0..n) holds a control character other than TAB (CR, LF, NUL, DEL included). */
    static inline int posthorn_has_control(const unsigned char *p, Py_ssize_t n)
    {
        unsigned char bad = 0;
        Py_ssize_t i;
        for (i = 0; i < n; i++)
            bad |= (unsigned char)(((p[i] < 32) & (p[i] != 9)) | (p[i] == 127));
        return bad != 0;
    }
    """
    const unsigned int NUL_FOUND "POSTHORN_NUL"
    const unsigned int EIGHT_BIT_FOUND "POSTHORN_EIGHT_BIT"
    const unsigned int BARE_CR_FOUND "POSTHORN_BARE_CR"
    const unsigned int BARE_LF_FOUND "POSTHORN_BARE_LF"
    unsigned int findings "posthorn_findings"(const unsigned char *p, Py_ssize_t n) noexcept nogil
    bint has_control "posthorn_has_control"(const unsigned char *p, Py_ssize_t n) noexcept nogil


cdef struct Buffer:
    # The live octets are data[begin:end]; data may be NULL when there are none.
    unsigned char *data
    Py_ssize_t begin
    Py_ssize_t end
    Py_ssize_t capacity


# An empty buffer larger than this is given back: thousands of sessions are idle most of the time.
cdef enum:
    KEEP = 256


cdef inline void buffer_free(Buffer *self) noexcept:
    free(self.data)
    self.data = NULL
    self.begin = self.end = self.capacity = 0


cdef inline void buffer_consume(Buffer *self, Py_ssize_t count) noexcept:
    # Forget `count` octets at the front; at most as many as there are.
    self.begin += count
    if self.begin >= self.end:
        self.begin = self.end = 0
        if self.capacity > KEEP:
            buffer_free(self)


cdef inline int buffer_append(Buffer *self, const unsigned char *data, Py_ssize_t count) except -1:
    cdef Py_ssize_t live = self.end - self.begin
    cdef Py_ssize_t capacity
    cdef unsigned char *grown
    if count <= 0:
        return 0
    if count > self.capacity - self.end:
        if self.begin >= live and count <= self.capacity - live:
            # Moving costs no more than what was consumed since the last move: linear in all.
            memmove(self.data, self.data + self.begin, live)
        else:
            if count > PY_SSIZE_T_MAX // 4 - live:
                raise MemoryError
            capacity = live + count
            if live:
                capacity += capacity // 2
            grown = <unsigned char *>malloc(capacity)
            if grown == NULL:
                raise MemoryError
            if live:
                memcpy(grown, self.data + self.begin, live)
            free(self.data)
            self.data = grown
            self.capacity = capacity
        self.begin = 0
        self.end = live
    memcpy(self.data + self.end, data, count)
    self.end += count
    return 0


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
