#include "transfer_op.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "xxh3.h"

static size_t round_down(size_t nbytes) { return nbytes & ~(size_t)(KV_PAGE_NBYTES - 1); }
static size_t round_up(size_t nbytes) { return round_down(nbytes + KV_PAGE_NBYTES - 1); }

int kv_op_begin(kv_op *op, kv_batch *batch, size_t block) {
    memset(op, 0, sizeof *op);
    op->batch = batch;
    op->block = block;
    op->memory = batch->buffers[block];
    op->nbytes = batch->nbytes[block];
    op->padded_nbytes = round_up(op->nbytes);
    op->direct_nbytes = (uintptr_t)op->memory % KV_PAGE_NBYTES == 0 ? round_down(op->nbytes) : 0;
    const size_t bounce_nbytes = op->padded_nbytes - op->direct_nbytes;
    if (bounce_nbytes == 0) return 0;
    void *bounce = NULL;
    if (posix_memalign(&bounce, KV_PAGE_NBYTES, bounce_nbytes) != 0) return ENOMEM;
    op->bounce = bounce;
    if (batch->writing) {
        const size_t rest_nbytes = op->nbytes - op->direct_nbytes;
        memcpy(op->bounce, op->memory + op->direct_nbytes, rest_nbytes);
        memset(op->bounce + rest_nbytes, 0, bounce_nbytes - rest_nbytes);
    }
    return 0;
}

void kv_op_aim(kv_op *op) {
    op->num_vectors = 0;
    if (op->done_nbytes < op->direct_nbytes)
        op->vectors[op->num_vectors++] =
            (struct iovec){op->memory + op->done_nbytes, op->direct_nbytes - op->done_nbytes};
    if (op->bounce != NULL) {
        const size_t begun = op->done_nbytes > op->direct_nbytes ? op->done_nbytes - op->direct_nbytes : 0;
        op->vectors[op->num_vectors++] =
            (struct iovec){op->bounce + begun, op->padded_nbytes - op->direct_nbytes - begun};
    }
}

int kv_op_advance(kv_op *op, int64_t result) {
    if (result == -EINTR || result == -EAGAIN) return 0;
    if (result < 0) {
        op->error = (int)-result;
        return 1;
    }
    op->done_nbytes += round_down((size_t)result);
    if (op->done_nbytes >= op->padded_nbytes) return 1;
    if (round_down((size_t)result) > 0) return 0;
    op->error = op->batch->writing ? EIO : KV_FILE_ENDED;
    return 1;
}

void kv_op_run(kv_op *op) {
    int64_t moved;
    do {
        kv_op_aim(op);
        const int fd = op->batch->fds[op->block];
        const off_t position = (off_t)(op->batch->offsets[op->block] + (int64_t)op->done_nbytes);
        moved = op->batch->writing ? pwritev(fd, op->vectors, (int)op->num_vectors, position)
                                   : preadv(fd, op->vectors, (int)op->num_vectors, position);
        if (moved < 0) moved = -errno;
    } while (!kv_op_advance(op, moved));
}

void kv_op_checksum(kv_op *op) {
    if (!op->batch->writing) { /* else the transfer may still be under way, and its fields are another thread's */
        if (op->error != 0) return;
        if (op->bounce != NULL) memcpy(op->memory + op->direct_nbytes, op->bounce, op->nbytes - op->direct_nbytes);
    }
    if (op->batch->checksums != NULL) op->checksum = kv_xxh3_64(op->memory, op->nbytes);
}

void kv_op_end(kv_op *op) {
    kv_batch *batch = op->batch;
    uint8_t outcome = KV_BLOCK_OK;
    if (op->error > 0) outcome = KV_BLOCK_IO_ERROR;
    else if (op->error == KV_FILE_ENDED) outcome = KV_BLOCK_CORRUPT;
    else if (!batch->writing && batch->checksums != NULL && op->checksum != batch->checksums[op->block])
        outcome = KV_BLOCK_CORRUPT;
    if (batch->writing) batch->checksums[op->block] = outcome == KV_BLOCK_OK ? op->checksum : 0;
    batch->errnos[op->block] = op->error > 0 ? op->error : 0;
    batch->outcomes[op->block] = outcome;
    free(op->bounce);
    op->bounce = NULL;
}
