/* Rotary embedding, and the way of keys and values into the pool. */

#define MOST_HEAD_DIM 256

/* Where, in keys or values, the 16 slots number `group` of a block begin for a head; bytes. */
INLINE long slot_group(const Attention *p, long block, long group, long head) {
    return block * p->block_stride + (head * p->block_size + group * GROUP) * p->slot_bytes;
}

/* Norm (if weight) and rotation of one head of one token, in place. */
INLINE void rotate(const Attention *p, Elem *head, const Elem *weight, long position) {
    long half = p->head_dim / 2, d = 0;
    if (weight) norm_row(head, weight, p->norm_eps, p->head_dim, head);
    if (!p->rope) return;
    const float *cos = p->cos + position * half, *sin = p->sin + position * half;
    for (; d + LANES <= half; d += LANES) {
        Floats first = load(head + d), second = load(head + d + half);
        Floats c = get_floats(cos + d), s = get_floats(sin + d);
        store(head + d, first * c - second * s);
        store(head + d + half, second * c + first * s);
    }
    for (; d < half; d++) {
        float first = widen(head[d]), second = widen(head[d + half]);
        head[d] = narrow(first * cos[d] - second * sin[d]);
        head[d + half] = narrow(second * cos[d] + first * sin[d]);
    }
}

/* One key into its slot: `lane` of the 16 slots at `keys`. */
INLINE void put_key(const Elem *key, long dim, long lane, Elem *keys) {
    uint32_t *to = (uint32_t *)keys + lane;
    for (long d = 0; d < dim / PAIR; d++) __builtin_memcpy(to + d * GROUP, key + d * PAIR, 4);
}

/* One value into its slot; the other half of each pair belongs to the slot beside it. */
INLINE void put_value(const Elem *value, long dim, long lane, Elem *values) {
    Elem *to = values + lane / PAIR * dim * PAIR;
    for (long d = 0; d < dim; d += LANES) {
#if BF16
        uint32_t *at = (uint32_t *)to + d;
        Words wide = widen_halves(*(const HalvesAt *)(value + d));
        Words old = get_words(at);
        *(WordsAt *)at = lane % 2 ? (old & 0xffffu) | wide << 16 : (old & 0xffff0000u) | wide;
#else
        put_floats(to + d, load(value + d));
#endif
    }
}

/* One key and value into their slots of an int8 pool, each with its scale. */
INLINE void put_bytes(const Elem *key, const Elem *value, long dim, long lane, int8_t *keys, int8_t *values) {
    int8_t rounded[MOST_HEAD_DIM];
    int32_t sum;
    ((float *)(keys + GROUP * dim))[lane] = round_row(key, dim, rounded, &sum);
    for (long d = 0; d < dim; d += 4) {
        uint32_t four;
        __builtin_memcpy(&four, rounded + d, 4);
        *(uint32_t *)(keys + d * GROUP + lane * 4) = four ^ 0x80808080u;
    }
    ((float *)(values + GROUP * dim))[lane] = round_row(value, dim, rounded, &sum);
    for (long d = 0; d < dim; d++) values[(lane / 4 * dim + d) * 4 + lane % 4] = rounded[d];
}

/* Two slots share the words of their values, which one thread must write: the second goes with the first. */
INLINE int64_t with_its_pair(const Attention *p, int64_t token) {
    return token && p->slots[token] % 2 && p->slots[token] == p->slots[token - 1] + 1 ? token + 1 : token;
}

/* Rotate queries and keys of tokens begin .. end - 1, and store keys and values in the pool.
 * A range may begin or end one token later, see above; `slots` has one more, -1, behind the last token. */
KERNEL tidepipe_store_kv(const Attention *p, int64_t begin, int64_t end) {
    long dim = p->head_dim;
    if (begin == end) return;
    begin = with_its_pair(p, begin), end = with_its_pair(p, end);
    for (long token = begin; token < end; token++) {
        Elem *row = (Elem *)p->qkv + token * (p->heads + 2 * p->kv_heads) * dim;
        long position = p->positions[token], slot = p->slots[token];
        long block = slot / p->block_size, group = slot % p->block_size / GROUP, lane = slot % GROUP;
        for (long h = 0; h < p->heads; h++) rotate(p, row + h * dim, (const Elem *)p->q_norm, position);
        for (long h = 0; h < p->kv_heads; h++) {
            Elem *key = row + (p->heads + h) * dim;
            rotate(p, key, (const Elem *)p->k_norm, position);
            char *keys = (char *)p->keys + slot_group(p, block, group, h);
            char *values = (char *)p->values + slot_group(p, block, group, h);
            const Elem *value = key + p->kv_heads * dim;
            if (p->kv_int8) {
                put_bytes(key, value, dim, lane, (int8_t *)keys, (int8_t *)values);
            } else {
                put_key(key, dim, lane, (Elem *)keys);
                put_value(value, dim, lane, (Elem *)values);
            }
        }
    }
}
