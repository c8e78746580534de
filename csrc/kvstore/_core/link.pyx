"""A client's end of the attach socket, and its view of the daemon's index: thin wrappers over link.h and shared.h."""

from cpython.buffer cimport PyBuffer_Release
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import os

import numpy as np

from kvstore._core.index cimport IndexView, keys_of
from kvstore._core.records cimport *

from kvstore.errors import InvalidRequest, LimitExceeded, Unavailable

cdef extern from "link.h" nogil:
    enum:
        KV_ATTACH_VERSION
        KV_ATTACH_KEYS_MAX
        KV_TICKET_NBYTES
        KV_MESSAGE_OPEN
        KV_MESSAGE_RESERVE
        KV_MESSAGE_COMMIT
        KV_MESSAGE_ABANDON
        KV_MESSAGE_PROMOTE
        KV_MESSAGE_BYE
        KV_STATUS_OK
        KV_STATUS_DENIED
        KV_STATUS_LIMIT
        KV_STATUS_UNKNOWN
        KV_STATUS_FOREIGN
        KV_REPLY_NBYTES_MAX
    const uint32_t KV_AT_PRESENT, KV_AT_BUSY, KV_AT_REFUSED
    ctypedef struct kv_message:
        uint16_t type, status
        uint32_t detail
    ctypedef struct kv_open:
        kv_message head
        uint32_t version
        uint8_t *ticket
    ctypedef struct kv_opened:
        uint8_t *boot
        uint64_t arena_nbytes, reserved_nbytes_max
        uint32_t leases_max, reservations_max, keys_max, lease_ttl_ms, ns, rights, num_fds
    ctypedef struct kv_chain:
        kv_message head
        uint32_t ns, shard, deadline_ms, num_keys
    ctypedef struct kv_reserved:
        uint32_t reservation, num_keys, num_granted, why
    ctypedef struct kv_end:
        kv_message head
        uint32_t reservation
    ctypedef struct kv_ended:
        uint32_t num_lost
    ctypedef struct kv_link:
        int fd
        int is_over
    ctypedef struct kv_call:
        kv_message *request
        size_t request_nbytes
        const void *keys
        size_t keys_nbytes
        kv_message *reply
        size_t reply_max, reply_nbytes
        int *fds
        uint32_t num_fds
    int kv_link_open(kv_link *link, const char *path, int timeout_ms)
    void kv_link_end(kv_link *link)
    void kv_link_close(kv_link *link)
    void kv_link_watch(kv_link *link)
    int kv_link_call(kv_link *link, kv_call *call)

KEYS_MAX = KV_ATTACH_KEYS_MAX
_LIMITS = {1: "clients", 2: "leases", 3: "reservations", 4: "reserved bytes"}
WHY = ("memory", "index", "quota")


cdef class SharedIndex(IndexView):
    """The index of another process, by a descriptor of it. Errors: Unavailable when it is none of this version."""

    def __cinit__(self, int fd):
        cdef int code = kv_index_map(&self._index, fd)
        if code < 0:
            raise Unavailable(f"no index to attach to: {os.strerror(-code)}")

    def __dealloc__(self):
        kv_index_unmap(&self._index)

    @property
    def is_closed(self):
        """Whether its owner ended in good order."""
        return self._index.header.closed != 0

    @property
    def boot(self):
        """16 bytes that no other run of a daemon has."""
        return bytes([self._index.header.boot[i] for i in range(16)])


cdef class Link:
    """A connection to the attach socket at `path`; safe to use from several threads, which wait for each other.

    `timeout_ms` bounds the wait for an answer. Errors: Unavailable when nobody answers, also of every method.
    """

    cdef kv_link _link

    def __cinit__(self, path, int timeout_ms):
        encoded = os.fsencode(path)
        cdef const char *text = encoded
        cdef int code
        self._link.fd = -1
        with nogil:
            code = kv_link_open(&self._link, text, timeout_ms)
        if code < 0:
            raise Unavailable(f"no daemon to attach to at {os.fsdecode(encoded)}: {os.strerror(-code)}")

    def __dealloc__(self):
        kv_link_close(&self._link)

    def end(self):
        """Hang up. Idempotent; from any thread."""
        kv_link_end(&self._link)

    def watch(self):
        """Wait, without the GIL, until the daemon hangs up or `end` was called."""
        with nogil:
            kv_link_watch(&self._link)

    @property
    def is_over(self):
        """Whether it is of no use any more."""
        return self._link.is_over != 0

    cdef int _call(self, kv_call *call) except -1:
        cdef int code
        with nogil:
            code = kv_link_call(&self._link, call)
        if code < 0:
            raise Unavailable(f"the daemon does not answer: {os.strerror(-code)}")
        status, detail = call.reply.status, call.reply.detail
        if status == KV_STATUS_OK:
            return 0
        for i in range(call.num_fds):
            os.close(call.fds[i])
        if status == KV_STATUS_DENIED:
            raise InvalidRequest("the daemon does not allow this: no right to it, or a ticket that is used up or too old")
        if status == KV_STATUS_LIMIT:
            raise LimitExceeded(f"over the daemon's limit of {_LIMITS.get(detail, detail)} of one client")
        if status == KV_STATUS_FOREIGN:
            raise InvalidRequest(f"keys[{detail}] is a key of another namespace")
        raise Unavailable(f"the daemon refused a request: status {status}")

    def open(self, bytes ticket not None):
        """Open what a ticket is for: (namespace, rights, arena bytes, leases_max, reserved_nbytes_max, lease_ttl_ms,
        descriptors). The descriptors are the caller's; of the first call index, lease table and arena, later none, or
        the arena to write to."""
        cdef kv_open request
        cdef kv_opened reply
        cdef kv_call call
        if len(ticket) != KV_TICKET_NBYTES:
            raise InvalidRequest(f"a ticket has {KV_TICKET_NBYTES} bytes, not {len(ticket)}")
        memset(&request, 0, sizeof(request))
        memset(&call, 0, sizeof(call))
        memset(&reply, 0, sizeof(reply))
        request.head.type = KV_MESSAGE_OPEN
        request.version = KV_ATTACH_VERSION
        memcpy(request.ticket, <const char *>ticket, KV_TICKET_NBYTES)
        call.request, call.request_nbytes = &request.head, sizeof(request)
        call.reply, call.reply_max = <kv_message *>&reply, sizeof(reply)
        self._call(&call)
        fds = [call.fds[i] for i in range(call.num_fds)]
        return (reply.ns, reply.rights, reply.arena_nbytes, reply.leases_max, reply.reserved_nbytes_max,
                reply.lease_ttl_ms, fds)

    def reserve(self, keys, uint32_t ns, uint32_t shard, uint32_t deadline_ms):
        """Reserve what is not stored of a chain of at most KEYS_MAX keys: (reservation, positions, places, number
        present, [(position, is busy)] of the others, why those got nothing). The reservation is 0 for no positions."""
        cdef Py_buffer view
        cdef kv_chain request
        cdef kv_call call
        cdef kv_reserved *reply
        keys_of(keys, &view)
        if not 1 <= view.len // KV_KEY_NBYTES <= KV_ATTACH_KEYS_MAX:
            PyBuffer_Release(&view)
            raise InvalidRequest(f"a reservation of {view.len // KV_KEY_NBYTES} keys; allowed: 1 to {KEYS_MAX}")
        memset(&request, 0, sizeof(request))
        memset(&call, 0, sizeof(call))
        request.head.type = KV_MESSAGE_RESERVE
        request.ns, request.shard, request.deadline_ms = ns, shard, deadline_ms
        request.num_keys = <uint32_t>(view.len // KV_KEY_NBYTES)
        call.request, call.request_nbytes = &request.head, sizeof(request)
        call.keys, call.keys_nbytes = view.buf, <size_t>view.len
        call.reply_max = sizeof(kv_reserved) + request.num_keys * 4
        call.reply = <kv_message *>malloc(call.reply_max)
        try:
            if call.reply == NULL:
                raise MemoryError
            self._call(&call)
            reply = <kv_reserved *>call.reply
            if call.reply_nbytes != call.reply_max or reply.num_keys != request.num_keys:
                raise Unavailable("the daemon's answer makes no sense")
            return self._reserved(reply)
        finally:
            PyBuffer_Release(&view)
            free(call.reply)

    cdef object _reserved(self, const kv_reserved *reply):
        cdef const uint32_t *at = <const uint32_t *>(reply + 1)
        cdef uint32_t i, num = 0, present = 0
        positions_out = np.empty(reply.num_granted, dtype=np.intp)
        places_out = np.empty(reply.num_granted, dtype=np.uint32)
        cdef Py_ssize_t[::1] positions = positions_out
        cdef uint32_t[::1] places = places_out
        refused = []
        for i in range(reply.num_keys):
            if at[i] == KV_AT_PRESENT:
                present += 1
            elif at[i] == KV_AT_BUSY or at[i] == KV_AT_REFUSED:
                refused.append((i, at[i] == KV_AT_BUSY))
            elif num < reply.num_granted:
                positions[num], places[num] = i, at[i]
                num += 1
        return reply.reservation, positions_out[:num], places_out[:num], present, refused, WHY[min(reply.why, 2)]

    def commit(self, uint32_t reservation):
        """Commit a reservation; how many of its blocks had been undone before. Errors: as `finish`."""
        return self._finish(reservation, KV_MESSAGE_COMMIT)

    def abandon(self, uint32_t reservation):
        """Undo a reservation, which nobody writes to any more."""
        self._finish(reservation, KV_MESSAGE_ABANDON)

    cdef object _finish(self, uint32_t reservation, int type):
        cdef kv_end request
        cdef kv_ended reply
        cdef kv_call call
        memset(&request, 0, sizeof(request))
        memset(&reply, 0, sizeof(reply))
        memset(&call, 0, sizeof(call))
        request.head.type = <uint16_t>type
        request.reservation = reservation
        call.request, call.request_nbytes = &request.head, sizeof(request)
        call.reply, call.reply_max = <kv_message *>&reply, sizeof(reply)
        self._call(&call)
        return reply.num_lost

    def promote(self, keys, uint32_t ns, uint32_t deadline_ms):
        """Ask for the stored prefix of at most KEYS_MAX keys to come near; does not wait for it."""
        cdef Py_buffer view
        cdef kv_chain request
        cdef kv_message reply
        cdef kv_call call
        keys_of(keys, &view)
        memset(&request, 0, sizeof(request))
        memset(&call, 0, sizeof(call))
        request.head.type = KV_MESSAGE_PROMOTE
        request.ns, request.deadline_ms = ns, deadline_ms
        request.num_keys = <uint32_t>(view.len // KV_KEY_NBYTES)
        call.request, call.request_nbytes = &request.head, sizeof(request)
        call.keys, call.keys_nbytes = view.buf, <size_t>view.len
        call.reply, call.reply_max = &reply, sizeof(reply)
        try:
            self._call(&call)
        finally:
            PyBuffer_Release(&view)

    def bye(self):
        """Nothing is read or written any more: the daemon takes back what this client holds at once."""
        cdef kv_message request, reply
        cdef kv_call call
        memset(&request, 0, sizeof(request))
        memset(&call, 0, sizeof(call))
        request.type = KV_MESSAGE_BYE
        call.request, call.request_nbytes = &request, sizeof(request)
        call.reply, call.reply_max = &reply, sizeof(reply)
        self._call(&call)
