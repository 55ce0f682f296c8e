cdef tuple _ends(
    bytes nonce,
    object offset,
    object length,
    object slots,
    Py_ssize_t bodies,
    Py_ssize_t messages,
    Py_ssize_t envelopes,
    object crc,
)
cpdef tuple pack_record(
    bytes nonce, object offset, object slots, list envelopes, list recipients, bodies, object length
)
cpdef Py_ssize_t record_length(
    Py_ssize_t envelopes, Py_ssize_t messages, Py_ssize_t bodies, Py_ssize_t size
) except -1
cpdef Py_ssize_t cell_size(Py_ssize_t recipients) except -1
cpdef Py_ssize_t slot_size(Py_ssize_t recipients) except -1
cpdef tuple pack_cell(
    object seed,
    Py_ssize_t slot,
    Py_ssize_t size,
    Py_ssize_t seq,
    Py_ssize_t attempts,
    double due,
    object left,
)
