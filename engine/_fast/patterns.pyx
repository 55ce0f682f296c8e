# What each function promises is in the .pyi; the meaning is in _reference.py.
#
# A filter over four octets in a row, looked at with a stride, says where a pattern may begin: few
# octets of an ordinary text are looked at twice. Where the filter says yes, the patterns are looked
# up by their first four octets and by bisection. The longest pattern that begins at a place is the
# nearest one that sorts before the text there, or one that this one begins with (`shorter`).

cimport cython
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_GET_SIZE,
)
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from engine._fast.scanning cimport count_work

cdef enum:
    LEAST = 6
    MOST = 1024
    GRAM = 4


cdef struct Bucket:
    # The patterns from `low` up to, without, `high` begin with the octets `gram`; none when both are 0.
    uint32_t gram
    uint32_t low
    uint32_t high


cdef inline uint32_t gram_at(const unsigned char *p) noexcept nogil:
    cdef uint32_t gram
    memcpy(&gram, p, GRAM)
    return gram


cdef inline uint32_t mixed(uint32_t gram) noexcept nogil:
    return <uint32_t>(gram * <uint32_t>0x9E3779B1)


cdef inline bint in_word(unsigned char octet) noexcept:
    return (
        48 <= octet <= 57 or 65 <= octet <= 90 or 97 <= octet <= 122 or octet == 45 or octet == 95
    )


cdef bint stands_alone(const unsigned char *p, Py_ssize_t n, Py_ssize_t start, Py_ssize_t end) noexcept:
    if end < n and in_word(p[end]):
        return False
    if start == 0 or not in_word(p[start - 1]):
        return True
    # What stands before may be the end of an escape: \n %3D \x1b \u2028
    return (
        (start >= 2 and p[start - 2] == 92)
        or (start >= 3 and p[start - 3] == 37)
        or (start >= 4 and p[start - 4] == 92 and p[start - 3] == 120)
        or (start >= 6 and p[start - 6] == 92 and p[start - 5] == 117)
    )


@cython.final
cdef class PatternSet:
    cdef bytes blob, words
    cdef Py_ssize_t count
    cdef uint32_t *begins
    cdef uint32_t *shorter
    cdef uint64_t *filter
    cdef Bucket *buckets
    cdef int filter_shift, bucket_shift
    cdef Py_ssize_t stride

    def __cinit__(self, list patterns not None, bytes words not None):
        cdef Py_ssize_t i = 0, size, shortest = 8, total = 0, entries, capacity
        cdef bytes pattern, before = None
        self.count = len(patterns)
        if PyBytes_GET_SIZE(words) != self.count:
            raise ValueError("words has not one octet for each pattern")
        self.begins = <uint32_t *>PyMem_Calloc(self.count + 1, sizeof(uint32_t))
        self.shorter = <uint32_t *>PyMem_Calloc(self.count + 1, sizeof(uint32_t))
        if self.begins == NULL or self.shorter == NULL:
            raise MemoryError
        for pattern in patterns:
            size = PyBytes_GET_SIZE(pattern)
            if not LEAST <= size <= MOST:
                raise ValueError(f"a pattern has {LEAST} to {MOST} octets, not {size}")
            if before is not None and not before < pattern:
                raise ValueError("the patterns are not in ascending order")
            before = pattern
            shortest = min(shortest, size)
            total += size
            if total > 1 << 31:
                raise ValueError("too many patterns")
            i += 1
            self.begins[i] = <uint32_t>total
        self.blob = b"".join(patterns)
        self.words = words
        self.stride = shortest - GRAM + 1
        # One bit in 16 at most is set, up to a table that no longer fits the nearer caches.
        entries = self.count * self.stride * 16
        capacity = 1 << 12
        self.filter_shift = 20
        while capacity < entries and self.filter_shift > 8:
            capacity *= 2
            self.filter_shift -= 1
        self.filter = <uint64_t *>PyMem_Calloc(capacity // 64, sizeof(uint64_t))
        capacity = 4
        self.bucket_shift = 30
        while capacity < self.count * 2:
            capacity *= 2
            self.bucket_shift -= 1
        self.buckets = <Bucket *>PyMem_Calloc(capacity, sizeof(Bucket))
        if self.filter == NULL or self.buckets == NULL:
            raise MemoryError
        self.fill(<const unsigned char *>PyBytes_AS_STRING(self.blob), capacity)

    cdef void fill(self, const unsigned char *p, Py_ssize_t capacity) noexcept:
        # Without the interpreter, which has an event loop to serve: of ten thousand secrets this takes long.
        cdef Py_ssize_t i, j
        cdef uint32_t at, hashed
        with nogil:
            for i in range(self.count):
                at = self.begins[i]
                for j in range(self.stride):
                    hashed = mixed(gram_at(p + at + j)) >> self.filter_shift
                    self.filter[hashed >> 6] |= (<uint64_t>1) << (hashed & 63)
                self.shorter[i] = self.prefix_of(i, p)
                self.enter(gram_at(p + at), <uint32_t>i, capacity)

    def __dealloc__(self):
        PyMem_Free(self.begins)
        PyMem_Free(self.shorter)
        PyMem_Free(self.filter)
        PyMem_Free(self.buckets)

    cdef uint32_t prefix_of(self, Py_ssize_t i, const unsigned char *p) noexcept nogil:
        # The longest earlier pattern that pattern i begins with; `count` when there is none. It is
        # the one before, or one that this one begins with, and so on.
        cdef uint32_t other
        cdef Py_ssize_t size
        if i == 0:
            return <uint32_t>self.count
        other = <uint32_t>(i - 1)
        while other != self.count:
            size = self.begins[other + 1] - self.begins[other]
            if (
                size < self.begins[i + 1] - self.begins[i]
                and memcmp(p + self.begins[other], p + self.begins[i], size) == 0
            ):
                break
            other = self.shorter[other]
        return other

    cdef void enter(self, uint32_t gram, uint32_t i, Py_ssize_t capacity) noexcept nogil:
        cdef Py_ssize_t slot = mixed(gram) >> self.bucket_shift
        while self.buckets[slot].high and self.buckets[slot].gram != gram:
            slot = (slot + 1) & (capacity - 1)
        if not self.buckets[slot].high:
            self.buckets[slot].gram = gram
            self.buckets[slot].low = i
        self.buckets[slot].high = i + 1

    cdef uint32_t longest_at(self, const unsigned char *p, Py_ssize_t start, Py_ssize_t n) noexcept:
        # The longest pattern that may be seen at `start`; `count` when there is none.
        cdef uint32_t gram, low, high, middle
        cdef uint32_t capacity = <uint32_t>1 << (32 - self.bucket_shift)
        cdef uint32_t slot
        cdef const unsigned char *patterns = <const unsigned char *>PyBytes_AS_STRING(self.blob)
        cdef const unsigned char *words = <const unsigned char *>PyBytes_AS_STRING(self.words)
        cdef Py_ssize_t size, left = n - start
        cdef int order
        if left < LEAST:
            return <uint32_t>self.count
        gram = gram_at(p + start)
        slot = mixed(gram) >> self.bucket_shift
        while self.buckets[slot].high and self.buckets[slot].gram != gram:
            slot = (slot + 1) & (capacity - 1)
        low, high = self.buckets[slot].low, self.buckets[slot].high
        if high == 0:
            return <uint32_t>self.count
        # Bisection: `low` becomes the number of the first pattern that sorts behind the text.
        gram = low
        while low < high:
            middle = low + (high - low) // 2
            size = self.begins[middle + 1] - self.begins[middle]
            count_work(min(size, left))
            order = memcmp(patterns + self.begins[middle], p + start, min(size, left))
            if order > 0 or (order == 0 and size > left):
                high = middle
            else:
                low = middle + 1
        if low == gram:
            return <uint32_t>self.count
        middle = low - 1
        while middle != self.count:
            size = self.begins[middle + 1] - self.begins[middle]
            count_work(min(size, left))
            if (
                size <= left
                and memcmp(patterns + self.begins[middle], p + start, size) == 0
                and (not words[middle] or stands_alone(p, n, start, start + size))
            ):
                break
            middle = self.shorter[middle]
        return middle

    def search(self, bytes data not None):
        cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t at = 0, start, last = n - GRAM, stride = self.stride
        cdef Py_ssize_t begin = 0, end = -1, stop
        cdef int shift = self.filter_shift
        cdef uint64_t *filter = self.filter
        cdef uint32_t hashed, found, first = 0
        cdef list spans = None
        if self.count == 0:
            return None
        while True:
            while at <= last:
                hashed = mixed(gram_at(p + at)) >> shift
                if (filter[hashed >> 6] >> (hashed & 63)) & 1:
                    break
                at += stride
            if at > last:
                break
            for start in range(max(0, at - stride + 1), at + 1):
                found = self.longest_at(p, start, n)
                if found == self.count:
                    continue
                stop = start + self.begins[found + 1] - self.begins[found]
                if start < end:
                    end = max(end, stop)
                    continue
                if end >= 0:
                    if spans is None:
                        spans = []
                    spans.append((begin, end, first))
                begin, end, first = start, stop, found
            at += stride
        count_work(n)
        if end < 0:
            return None
        if spans is None:
            spans = []
        spans.append((begin, end, first))
        return spans
