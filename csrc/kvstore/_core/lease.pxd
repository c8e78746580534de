from kvstore._core.index cimport Index
from kvstore._core.records cimport *
from kvstore._core.view cimport IndexView, keys_of


cdef class LeaseTable:
    # One client's leases; scanned by the index it is attached to.
    cdef kv_table _table
    cdef IndexView _index
    cdef bint _open


cdef class Grip:
    # One acquire's leases. Owned by whoever holds it: released at the latest when it is collected.
    cdef LeaseTable _table
    cdef kv_held _held
    cdef readonly uint32_t num_blocks
    cdef readonly uint32_t num_near
    cdef readonly uint32_t stop
    cdef readonly bint is_near
