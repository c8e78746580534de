/* One block on its way between memory and file: the pages of it that go directly, those that go through bounce memory,
 * and how far it has come. Shared by the engine's two ways of doing I/O. */
#ifndef KV_TRANSFER_OP_H
#define KV_TRANSFER_OP_H

#include <sys/uio.h>

#include "engine.h"

typedef struct kv_op {
    kv_batch *batch;
    size_t block;         /* its number in the batch */
    char *memory;         /* the block's buffer */
    size_t nbytes;        /* its length */
    size_t direct_nbytes; /* leading bytes that go directly; whole pages */
    char *bounce;         /* the rest, padded to whole pages; NULL when there is none */
    size_t padded_nbytes; /* of the block in the file */
    size_t done_nbytes;   /* moved so far */
    struct iovec vectors[2];
    unsigned num_vectors;
    int error;            /* errno, or KV_FILE_ENDED */
    int parts_left;       /* of the transfer and the checksum; guarded by the engine's lock */
    uint64_t checksum;
} kv_op;

#define KV_FILE_ENDED (-1) /* no errno is negative */

/* Prepare the transfer of block `block` of `batch`. 0, or an errno with nothing to finish. */
int kv_op_begin(kv_op *op, kv_batch *batch, size_t block);
/* Set `vectors` to what is still to be moved. */
void kv_op_aim(kv_op *op);
/* Account for a system call's result (bytes moved, or -errno): 1 when the transfer is over, 0 when more is to be moved.
 * Goes on after a short transfer from the last whole page, because direct I/O takes no other position. */
int kv_op_advance(kv_op *op, int64_t result);
/* Transfer all of it in the calling thread. */
void kv_op_run(kv_op *op);
/* The checksum of the block's bytes (after a read: once the transfer is over). */
void kv_op_checksum(kv_op *op);
/* Write outcome, errno and checksum into the batch and free the bounce memory. */
void kv_op_end(kv_op *op);

#endif
