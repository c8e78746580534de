"""The daemon's end of the attach socket: a thin wrapper over attach.h."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdlib cimport free

import os

from kvstore._core.put cimport PutPath, kv_put
from kvstore._core.records cimport *

from kvstore.errors import InvalidRequest, LimitExceeded, Unavailable

cdef extern from "attach.h" nogil:
    enum: KV_TICKET_NBYTES
    ctypedef struct kv_attach_limits:
        uint32_t clients_max, clients_per_process_max, leases_max, reservations_max
        uint64_t reserved_nbytes_max
        uint32_t lease_ttl_ms, reservation_ttl_ms, put_wait_ms, wait_ms_max
    ctypedef struct kv_attach_counts:
        uint64_t num_clients, num_silent, num_accepted, num_refused, num_malformed, num_reclaimed
        uint64_t num_reservations, reserved_nbytes, num_revoked, num_expired
        uint64_t num_reserved, num_committed, num_waits, num_unrecorded
    ctypedef struct kv_help:
        int kind
        uint16_t ns
        uint32_t client, turn
        uint32_t num_blocks, deadline_ms
        kv_hint hint
        uint8_t *keys
    ctypedef struct kv_attach
    kv_attach *kv_attach_create(int listening, kv_put *put, int arena_fd, uint64_t arena_nbytes,
                                const kv_attach_limits *limits)
    void kv_attach_serve(kv_attach *attach)
    void kv_attach_drain(kv_attach *attach)
    void kv_attach_stop(kv_attach *attach)
    void kv_attach_destroy(kv_attach *attach)
    int kv_attach_issue(kv_attach *attach, const uint8_t *ticket, uint32_t uid, uint16_t ns, uint32_t rights,
                        uint32_t ttl_ms)
    int kv_attach_wait(kv_attach *attach)
    int kv_attach_take(kv_attach *attach, kv_help *help)
    void kv_attach_heard(kv_attach *attach, uint32_t client, uint32_t turn)
    void kv_attach_helped(kv_attach *attach, uint32_t client, uint32_t turn, uint32_t flags, uint32_t num_fresh)
    void kv_attach_record(kv_attach *attach)
    void kv_attach_set_wait(kv_attach *attach, uint32_t put_wait_ms)
    void kv_attach_read_counts(kv_attach *attach, kv_attach_counts *counts)

PROMOTE, ROOM, QUOTA, ENTRIES, COLLECT, RECORD = 1, 2, 3, 4, 5, 6
READ, WRITE = 1, 2
CLIENTS_MAX = KV_TABLES_MAX - 8    # the store's own lease tables, and this server's


cdef class AttachSocket:
    """Serves `put`'s store on `listening`, a bound and listening SOCK_SEQPACKET descriptor that it owns from then on.

    `limits`: the fields of kv_attach_limits. Errors: InvalidRequest when the arena is not shared memory or a limit is
    out of range, Unavailable when the system refuses something (seals, descriptors).
    """

    cdef kv_attach *_attach
    cdef PutPath _put

    def __cinit__(self, PutPath put not None, int listening, dict limits not None):
        cdef kv_attach_limits wanted = limits
        if put._arena._memory.fd < 0:
            raise InvalidRequest("the arena is private memory: clients can attach only to shared memory")
        if not 1 <= wanted.clients_max <= CLIENTS_MAX:
            raise InvalidRequest(f"clients_max={wanted.clients_max} is not between 1 and {CLIENTS_MAX}")
        if not 1 <= wanted.reservations_max <= 65536 or not KV_GROUP <= wanted.leases_max <= 1 << 24:
            raise InvalidRequest(
                f"reservations_max={wanted.reservations_max} or leases_max={wanted.leases_max} is out of range"
            )
        self._put = put
        self._attach = kv_attach_create(listening, &put._put, put._arena._memory.fd, put._arena._memory.nbytes, &wanted)
        if self._attach == NULL:
            raise Unavailable(f"clients cannot attach: {os.strerror(errno)}")

    def __dealloc__(self):
        if self._attach != NULL:
            kv_attach_destroy(self._attach)

    def record(self):
        """From now on `take` tells of every chain that is to be reserved; before `serve`."""
        kv_attach_record(self._attach)

    def serve(self):
        """The serving thread's body, without the GIL, until `stop`."""
        with nogil:
            kv_attach_serve(self._attach)

    def drain(self):
        """From now on nothing is reserved or opened; what is reserved may be committed."""
        kv_attach_drain(self._attach)

    def stop(self):
        """End `serve` and `wait`: connections close, reservations are undone. Leases of clients count as long as this
        object lives. Idempotent; from any thread."""
        kv_attach_stop(self._attach)

    def issue(self, uint32_t uid, uint16_t ns, uint32_t rights, uint32_t ttl_ms):
        """A ticket (16 bytes) for one use: a process of user `uid` opens namespace `ns` with these rights within
        `ttl_ms`. Errors: LimitExceeded when 1024 are out."""
        ticket = os.urandom(KV_TICKET_NBYTES)
        cdef const uint8_t *secret = ticket
        if kv_attach_issue(self._attach, secret, uid, ns, rights, ttl_ms) < 0:
            raise LimitExceeded("1024 tickets to attach are out already and unused")
        return ticket

    def wait(self):
        """Wait, without the GIL, until the store is asked for something; False at the end."""
        cdef int going_on
        with nogil:
            going_on = kv_attach_wait(self._attach)
        return bool(going_on)

    def take(self):
        """One thing that the store is asked for: (kind, namespace, client, turn, number of blocks, keys as bytes, the
        numbers of a RECORD's hint if it has one), or None."""
        cdef kv_help help
        if not kv_attach_take(self._attach, &help):
            return None
        keys = b""
        if help.keys != NULL:
            try:
                keys = PyBytes_FromStringAndSize(<char *>help.keys, <Py_ssize_t>help.num_blocks * KV_KEY_NBYTES)
            finally:
                free(help.keys)
        hint = None
        if help.kind == RECORD and kv_hint_is_given(&help.hint):
            is_told = help.hint.output_tokens != KV_TOKENS_UNKNOWN
            hint = help.hint.ending, help.hint.priority, help.hint.output_tokens if is_told else -1
        return help.kind, help.ns, help.client, help.turn, help.num_blocks, keys, hint

    def heard(self, uint32_t client, uint32_t turn):
        """A reservation that waits for the store has been looked at."""
        kv_attach_heard(self._attach, client, turn)

    def helped(self, uint32_t client, uint32_t turn, uint32_t flags, uint32_t num_fresh):
        """A reservation that waited for the store can go on, with these flags of the put path in addition; LATE counts
        only if nothing has become visible since PutPath.num_fresh was `num_fresh`."""
        kv_attach_helped(self._attach, client, turn, flags, num_fresh)

    def set_wait(self, uint32_t put_wait_ms):
        """How long a reservation waits for room when its client does not say, from the next one on."""
        kv_attach_set_wait(self._attach, put_wait_ms)

    def counts(self):
        """Counters and gauges as a dict."""
        cdef kv_attach_counts counts
        kv_attach_read_counts(self._attach, &counts)
        return counts
