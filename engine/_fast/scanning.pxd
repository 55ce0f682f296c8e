# Searches and loops over octets that run at the speed of SIMD code, and a buffer that grows.
# Everything here is inline C: no Python object, no exception but MemoryError.
#
# A build with -DPOSTHORN_COUNT_WORK counts the octets that are looked at or moved, so that tests
# can see that the work is linear without looking at a clock.

from cpython.mem cimport PyMem_Free, PyMem_Malloc

cdef extern from *:
    """
    #include <string.h>

    #ifdef POSTHORN_COUNT_WORK
    __attribute__((visibility("default"))) unsigned long long posthorn_work_done = 0;
    #define POSTHORN_WORK(n) (posthorn_work_done += (unsigned long long)(n))
    #else
    #define POSTHORN_WORK(n) ((void)(n))
    #endif

    static inline void posthorn_count(Py_ssize_t n)
    {
        POSTHORN_WORK(n);
    }

    static inline const unsigned char *posthorn_find(const unsigned char *p, int octet, Py_ssize_t n)
    {
        const unsigned char *found = n > 0 ? (const unsigned char *)memchr(p, octet, (size_t)n) : NULL;
        POSTHORN_WORK(found ? found - p + 1 : n);
        return found;
    }

    static inline void posthorn_copy(void *to, const void *from, Py_ssize_t n)
    {
        POSTHORN_WORK(n);
        if (n > 0)
            memcpy(to, from, (size_t)n);
    }

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
        POSTHORN_WORK(n);
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
        POSTHORN_WORK(n);
        for (i = 0; i < n; i++)
            bad |= (unsigned char)(((p[i] < 32) & (p[i] != 9)) | (p[i] == 127));
        return bad != 0;
    }
    """
    const unsigned int NUL_FOUND "POSTHORN_NUL"
    const unsigned int EIGHT_BIT_FOUND "POSTHORN_EIGHT_BIT"
    const unsigned int BARE_CR_FOUND "POSTHORN_BARE_CR"
    const unsigned int BARE_LF_FOUND "POSTHORN_BARE_LF"
    # Tell the counting build of octets that a loop of its own looks at.
    void count_work "posthorn_count"(Py_ssize_t n) noexcept nogil
    # memchr; NULL also for n <= 0.
    const unsigned char *find "posthorn_find"(const unsigned char *p, int octet, Py_ssize_t n) noexcept nogil
    # memcpy; nothing for n <= 0.
    void copy "posthorn_copy"(void *to, const void *source, Py_ssize_t n) noexcept nogil
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
    PyMem_Free(self.data)
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
        if count > PY_SSIZE_T_MAX // 4 - live:
            raise MemoryError
        grown = self.data
        if self.begin < live or count > self.capacity - live:
            capacity = live + count
            if live:
                # By half as much again, so that copying stays linear in all.
                capacity += capacity // 2
            grown = <unsigned char *>PyMem_Malloc(capacity)
            if grown == NULL:
                raise MemoryError
            self.capacity = capacity
        # Moving to the front without growing costs no more than was consumed since the last move,
        # and the two places do not overlap.
        copy(grown, self.data + self.begin, live)
        if grown != self.data:
            PyMem_Free(self.data)
            self.data = grown
        self.begin = 0
        self.end = live
    copy(self.data + self.end, data, count)
    self.end += count
    return 0


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX
