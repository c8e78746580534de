/* An order: a list of records through their links, from the cold end to the hot one. Which list a record is in is known
 * to whoever keeps it. */
#ifndef KV_ORDER_H
#define KV_ORDER_H

#include "index.h"

static inline void kv_order_remove(kv_links *links, kv_order *order, uint32_t id) {
    const kv_links *own = &links[id];
    if (own->prev != KV_NONE) links[own->prev].next = own->next;
    else order->cold = own->next;
    if (own->next != KV_NONE) links[own->next].prev = own->prev;
    else order->hot = own->prev;
    order->length--;
}

static inline void kv_order_add_hot(kv_links *links, kv_order *order, uint32_t id) {
    links[id].prev = order->hot;
    links[id].next = KV_NONE;
    if (order->hot != KV_NONE) links[order->hot].next = id;
    else order->cold = id;
    order->hot = id;
    order->length++;
}

static inline void kv_order_add_cold(kv_links *links, kv_order *order, uint32_t id) {
    links[id].next = order->cold;
    links[id].prev = KV_NONE;
    if (order->cold != KV_NONE) links[order->cold].prev = id;
    else order->hot = id;
    order->cold = id;
    order->length++;
}

#endif
