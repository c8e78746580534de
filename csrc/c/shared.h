/* Memory that other processes map: what the owner allows (seals), and what a client makes of a descriptor it was given.
 *
 * The owner maps first and seals then: the index can be mapped for reading only from there on, a lease table and an arena
 * keep their size for ever, so that no client can take pages away under the owner. A client checks all of it against the
 * size of the file before it uses any of it.
 */
#ifndef KV_SHARED_H
#define KV_SHARED_H

#include "lease.h"

/* No process grows or shrinks it any more; with `read_only` none makes a writable mapping. 0 or -errno. */
int kv_shared_seal(int fd, int read_only);
/* Another descriptor of the same memory, for reading only. The descriptor, or -errno. */
int kv_shared_read_only(int fd);

/* A client's handle on an index: lookups only. 0, -errno, or -EPROTO when the file is no index of this version. */
int kv_index_map(kv_index *index, int fd);
void kv_index_unmap(kv_index *index);
/* A client's handle on its own lease table; likewise. */
int kv_table_map(kv_table *table, int fd);
/* In a child after a fork: the shared half is the parent's from here on; this one leases nothing, nor ends a lease. */
int kv_table_disown(kv_table *table);

#endif
