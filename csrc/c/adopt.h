/* Recovered blocks into the index, whatever order they come in. */
#ifndef KV_ADOPT_H
#define KV_ADOPT_H

#include "index.h"

/* One field of a table of rows: `stride` bytes from a row to the next. */
typedef struct {
    const char *first;
    ptrdiff_t stride;
} kv_column;

typedef struct {
    uint32_t num_rows;
    kv_column keys, parents; /* KV_KEY_NBYTES each; a parent of zeros: the first block of a prompt */
    kv_column namespaces;    /* uint32_t, at most KV_NAMESPACES_MAX */
    kv_column places;        /* uint32_t */
    kv_column checksums;     /* uint64_t */
} kv_found;

/* Take the rows in, each as soon as its parent is there: in linear time, also when children come before their parents.
 * `ids[i]` is KV_NONE where the parent is neither in the index nor among the rows, the key is there already, or the
 * index is full. 0, or -ENOMEM with only some of the rows taken in. */
int kv_index_adopt_all(kv_index *index, const kv_found *found, uint32_t *ids);
/* The rows of a tier that comes to an index in use, parents before their children: a block that is near gets its far
 * copy back, one that is not there is taken in as far only. `ids[i]` is KV_NONE where the parent has no far copy, the
 * index is full, or another far copy is known. Whoever is writing such a block, or on top of it, has come too late: his
 * reservation is undone, because the row may be what others were promised. */
void kv_index_rejoin(kv_index *index, const kv_found *found, uint32_t *ids);

#endif
