"""A client's end of the attach socket, and its view of the daemon's index: thin wrappers over link.h and shared.h."""

from cpython.buffer cimport PyBuffer_Release
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

import os

import numpy as np

from kvstore._core.records cimport *
from kvstore._core.view cimport IndexView, hint_of, keys_of

from kvstore.errors import AccessDenied, InvalidRequest, LeaseExpired, LimitExceeded, Unavailable

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
        KV_MESSAGE_RETRY
        KV_STATUS_OK
        KV_STATUS_DENIED
        KV_STATUS_LIMIT
        KV_STATUS_UNKNOWN
        KV_STATUS_FOREIGN
        KV_STATUS_WAIT
        KV_REPLY_NBYTES_MAX
    const uint32_t KV_AT_PRESENT, KV_AT_BUSY, KV_AT_REFUSED, KV_WAIT_DEFAULT
    ctypedef struct kv_message:
        uint16_t type, status
        uint32_t detail
    ctypedef struct kv_open:
        kv_message head
        uint32_t version
        uint8_t *ticket
    ctypedef struct kv_opened:
        uint64_t arena_nbytes, reserved_nbytes_max
        uint32_t leases_max, reservations_max, keys_max, lease_ttl_ms, ns, rights, num_fds
    ctypedef struct kv_chain:
        kv_message head
        uint32_t ns, shard, deadline_ms, num_keys
        kv_hint hint
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
    void kv_link_disown(kv_link *link)
    void kv_link_close(kv_link *link)
    void kv_link_watch(kv_link *link)
    int kv_link_call(kv_link *link, kv_call *call)

KEYS_MAX, WAIT_DEFAULT = KV_ATTACH_KEYS_MAX, KV_WAIT_DEFAULT
_LIMITS = {1: "clients", 2: "leases", 3: "reservations", 4: "reserved bytes"}
_WHY = ("memory", "index", "quota")


cdef class SharedIndex(IndexView):
    """The index of another process, by a descriptor of it. Errors: Unavailable when it is none of this version."""

    def __cinit__(self, int fd):
        cdef int code = kv_index_map(&self._index, fd)
        if code < 0:
            raise Unavailable(f"no index to attach to: {os.strerror(-code)}")

    def __dealloc__(self):
        kv_index_unmap(&self._index)

    @property
    def far(self):
        """(whether the daemon's far tier answers, bytes on their way near, bytes a second that come; 0: not known)."""
        return (bool(self._index.header.far_is_well), self._index.header.arriving_nbytes,
                self._index.header.read_nbytes_per_s)


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

    def disown(self):
        """In a child after a fork: the connection stays the parent's."""
        kv_link_disown(&self._link)

    @property
    def is_over(self):
        """Whether it is of no use any more."""
        return self._link.is_over != 0

    cdef int _call(self, kv_call *call) except -1:
        """The status: KV_STATUS_OK, _WAIT or _UNKNOWN; others are errors."""
        cdef int code
        with nogil:
            code = kv_link_call(&self._link, call)
        if code < 0:
            raise Unavailable(f"the daemon does not answer: {os.strerror(-code)}")
        status, detail = call.reply.status, call.reply.detail
        if status in (KV_STATUS_OK, KV_STATUS_WAIT, KV_STATUS_UNKNOWN):
            return status
        for i in range(call.num_fds):
            os.close(call.fds[i])
        if status == KV_STATUS_DENIED:
            raise AccessDenied("the daemon does not allow this: no right to it, or a ticket that is used up or too old")
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

    def reserve(self, keys, uint32_t ns, uint32_t shard, uint32_t deadline_ms, hint=None):
        """Reserve what is not stored of a chain of at most KEYS_MAX keys, of which the numbers of a Hint may be known,
        waiting for room until the deadline or as long as the daemon is configured to (WAIT_DEFAULT): (reservation,
        positions, ids, places, number present, [(position, is busy)] of the others, why those got nothing); the
        reservation is 0 for none. Or a number: room is being made, `retry` with it soon, or reserve again if it is
        0."""
        cdef Py_buffer view
        cdef kv_chain request
        cdef uint32_t num_keys
        keys_of(keys, &view)
        try:
            if not 1 <= view.len // KV_KEY_NBYTES <= KV_ATTACH_KEYS_MAX:
                raise InvalidRequest(f"a reservation of {view.len // KV_KEY_NBYTES} keys; allowed: 1 to {KEYS_MAX}")
            num_keys = <uint32_t>(view.len // KV_KEY_NBYTES)
            memset(&request, 0, sizeof(request))
            request.head.type = KV_MESSAGE_RESERVE
            request.ns, request.shard = ns, shard
            request.deadline_ms, request.num_keys = deadline_ms, num_keys
            request.hint = hint_of(hint)
            return self._ask_for_places(&request.head, sizeof(request), view.buf, <size_t>view.len, num_keys)
        finally:
            PyBuffer_Release(&view)

    def retry(self, uint32_t number, uint32_t num_keys):
        """Look again at a reservation of `num_keys` keys that waits; as `reserve`."""
        cdef kv_end request
        memset(&request, 0, sizeof(request))
        request.head.type = KV_MESSAGE_RETRY
        request.reservation = number
        return self._ask_for_places(&request.head, sizeof(request), NULL, 0, num_keys)

    cdef object _ask_for_places(self, kv_message *request, size_t request_nbytes, const void *keys, size_t keys_nbytes,
                                uint32_t num_keys):
        cdef kv_call call
        cdef kv_reserved *reply
        memset(&call, 0, sizeof(call))
        call.request, call.request_nbytes = request, request_nbytes
        call.keys, call.keys_nbytes = keys, keys_nbytes
        call.reply_max = sizeof(kv_reserved) + num_keys * 8
        call.reply = <kv_message *>malloc(call.reply_max)
        try:
            if call.reply == NULL:
                raise MemoryError
            status = self._call(&call)
            if status == KV_STATUS_WAIT:
                return call.reply.detail
            if status == KV_STATUS_UNKNOWN:  # it was given up meanwhile
                return 0
            reply = <kv_reserved *>call.reply
            if (call.reply_nbytes < sizeof(kv_reserved) or reply.num_keys != num_keys or reply.num_granted > num_keys or
                    call.reply_nbytes != sizeof(kv_reserved) + (num_keys + reply.num_granted) * 4):
                raise Unavailable("the daemon's answer makes no sense")
            return self._reserved(reply)
        finally:
            free(call.reply)

    cdef object _reserved(self, const kv_reserved *reply):
        cdef const uint32_t *at = <const uint32_t *>(reply + 1)
        cdef uint32_t i, num = 0, present = 0
        positions_out = np.empty(reply.num_granted, dtype=np.intp)
        places_out = np.empty(reply.num_granted, dtype=np.uint32)
        ids_out = np.empty(reply.num_granted, dtype=np.uint32)
        cdef Py_ssize_t[::1] positions = positions_out
        cdef uint32_t[::1] places = places_out, ids = ids_out
        refused = []
        for i in range(reply.num_keys):
            if at[i] == KV_AT_PRESENT:
                present += 1
            elif at[i] == KV_AT_BUSY or at[i] == KV_AT_REFUSED:
                refused.append((i, at[i] == KV_AT_BUSY))
            elif num < reply.num_granted:
                positions[num], places[num], ids[num] = i, at[i], at[reply.num_keys + num]
                num += 1
        if num < reply.num_granted:
            raise Unavailable("the daemon's answer makes no sense")
        return reply.reservation, positions_out, ids_out, places_out, present, refused, _WHY[min(reply.why, 2)]

    def commit(self, uint32_t reservation):
        """Commit a reservation; how many of its blocks had been undone before. Errors: LeaseExpired."""
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
        if self._call(&call) == KV_STATUS_UNKNOWN:
            raise LeaseExpired("the daemon does not know this reservation any more")
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
        request.hint = hint_of(None)
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
