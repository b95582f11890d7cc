/* Rotation, KV pool and attention. The pool's layout is that of packed weights: tiles read it in place. */

#define MOST_HEAD_DIM 256
#define LOWEST -3.0e38f
#define MOST_ROWS 48 /* query rows (queries x heads that share a key head) of one item */

/* First element, in keys or values, of the 16 slots number `group` of a block, for a head. */
INLINE long slot_group(const Attention *p, long block, long group, long head) {
    return ((block * p->kv_heads + head) * (p->block_size / GROUP) + group) * GROUP * p->head_dim;
}

/* Norm (if weight) and rotation of one head of one token, in place. */
INLINE void rotate(const Attention *p, Elem *head, const Elem *weight, long position) {
    long half = p->head_dim / 2;
    if (weight) norm_row(head, weight, p->norm_eps, p->head_dim, head);
    if (!p->rope) return;
    const float *cos = p->cos + position * half, *sin = p->sin + position * half;
    for (long d = 0; d < half; d++) {
        float first = widen(head[d]), second = widen(head[d + half]);
        head[d] = narrow(first * cos[d] - second * sin[d]);
        head[d + half] = narrow(second * cos[d] + first * sin[d]);
    }
}

/* Rotate queries and keys of tokens begin .. end - 1, and store keys and values in the pool. */
void tidepipe_store_kv(const Attention *p, int64_t begin, int64_t end) {
    long dim = p->head_dim;
    for (long token = begin; token < end; token++) {
        Elem *row = (Elem *)p->qkv + token * (p->heads + 2 * p->kv_heads) * dim;
        long position = p->positions[token], slot = p->slots[token];
        long block = slot / p->block_size, group = slot % p->block_size / GROUP, lane = slot % GROUP;
        for (long h = 0; h < p->heads; h++) rotate(p, row + h * dim, (const Elem *)p->q_norm, position);
        for (long h = 0; h < p->kv_heads; h++) {
            Elem *key = row + (p->heads + h) * dim;
            const Elem *value = row + (p->heads + p->kv_heads + h) * dim;
            rotate(p, key, (const Elem *)p->k_norm, position);
            Elem *keys = (Elem *)p->keys + slot_group(p, block, group, h);
            Elem *values = (Elem *)p->values + slot_group(p, block, group, h);
            for (long d = 0; d < dim; d++) keys[d / PAIR * GROUP * PAIR + lane * PAIR + d % PAIR] = key[d];
            Elem *to = values + lane / PAIR * dim * PAIR + lane % PAIR;
            for (long d = 0; d < dim; d++) to[d * PAIR] = value[d];
        }
    }
}

/* What one item works on: some queries of one row, with all the query heads that share a key head. */
typedef struct {
    long limit; /* slots that the last query sees */
    long window;
    float scale;
    long position[MOST_ROWS];         /* of each query row */
    const Left *query[MOST_ROWS];     /* [head_dim / pair] */
    float peak[MOST_ROWS];            /* largest score so far */
    float total[MOST_ROWS * LANES];   /* sum of probabilities, per lane */
    float sums[MOST_ROWS * MOST_HEAD_DIM] __attribute__((aligned(64))); /* [rows][head_dim] */
#if !DOT
    Left wide[MOST_ROWS * MOST_HEAD_DIM / PAIR];
#endif
} Item;

/* Scale the scores of one query row and hide the slots that it does not see; returns the largest. */
INLINE float mask_scores(const Item *item, long row, long start, float *scores) {
    long last = item->position[row] - start; /* slots of the tile up to this one are seen */
    long first = item->window ? last - item->window + 1 : 0;
    Floats best = splat(LOWEST);
    if (last >= PANEL - 1 && first <= 0) {
        for (int c = 0; c < PANEL; c += LANES) {
            Floats score = *(Floats *)(scores + c) * item->scale;
            *(Floats *)(scores + c) = score;
            best = larger(best, score);
        }
        return largest_lane(best);
    }
    last = last > PANEL ? PANEL : last;
    first = first > 0 ? first : 0;
    for (int c = 0; c < PANEL; c += LANES) {
        Ints slot;
        for (int lane = 0; lane < LANES; lane++) slot[lane] = c + lane;
        Floats score = *(Floats *)(scores + c) * item->scale;
        score = blend((slot <= (int)last) & (slot >= (int)first), score, splat(LOWEST));
        *(Floats *)(scores + c) = score;
        best = larger(best, score);
    }
    return largest_lane(best);
}

/* Scores of one query row to probabilities; adds them to `total` per lane. Hidden slots get zero. */
INLINE Floats exponentiate(const float *scores, float peak, Floats total, Left *out) {
#if DOT
    for (int c = 0; c < PANEL; c += 2 * LANES) {
        Floats low = *(Floats *)(scores + c), high = *(Floats *)(scores + c + LANES);
        Floats p = (Floats)((Ints)power_of_two(low - peak) & (low > LOWEST));
        Floats q = (Floats)((Ints)power_of_two(high - peak) & (high > LOWEST));
        /* What is summed here is what the values are weighted with: after rounding. */
        __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)q, (__m512)p);
        *(WordsAt *)(out + c / PAIR) = (Words)rounded;
        total = (Floats)_mm512_dpbf16_ps((__m512)total, rounded, (__m512bh)_mm512_set1_epi32(0x3f803f80));
    }
#else
    for (int c = 0; c < PANEL; c += LANES) {
        Floats score = *(Floats *)(scores + c);
        Floats p = (Floats)((Ints)power_of_two(score - peak) & (score > LOWEST));
        *(FloatsAt *)((float *)out + c) = p;
        total += p;
    }
#endif
    return total;
}

/* Scores [rows][PANEL] of slots from `start` to probabilities, and the decay of what was summed before. */
INLINE void softmax_tile(Item *item, int rows, long row, long start, float *scores, Left *out, float *decay) {
    _Pragma("GCC unroll 6") for (int r = 0; r < rows; r++) {
        FloatsAt *total = (FloatsAt *)(item->total + (row + r) * LANES);
        float peak = larger_one(mask_scores(item, row + r, start, scores + r * PANEL), item->peak[row + r]);
        decay[r] = power_of_two(splat(item->peak[row + r] - peak))[0];
        item->peak[row + r] = peak;
        *total = exponentiate(scores + r * PANEL, peak, *total * decay[r], out + r * (PANEL / PAIR));
    }
}

/* `rows` query rows from number `row` against the slots of one tile. */
INLINE void attend_tile(long dim, Item *item, int rows, long row, long start, const uint32_t *const *keys,
                        const uint32_t *const *values) {
    float scores[6 * PANEL] __attribute__((aligned(64)));
    Left probabilities[6 * PANEL / PAIR] __attribute__((aligned(64)));
    const Left *left[6];
    float decay[6];
    tile_columns(rows, item->query + row, dim / PAIR, keys, GROUP, 0, scores, PANEL);
    softmax_tile(item, rows, row, start, scores, probabilities, decay);
    for (int r = 0; r < rows; r++) left[r] = probabilities + r * (PANEL / PAIR);
    long slots = item->limit - start < PANEL ? item->limit - start : PANEL;
    float *sums = item->sums + row * dim;
    for (long d = 0; d < dim;) {
        const uint32_t *part[PANEL / GROUP];
        for (int g = 0; g < PANEL / GROUP; g++) part[g] = values[g] + d;
        if (dim - d >= TILE_GROUPS * GROUP) {
            tile_slots(rows, left, slots, part, dim, TILE_GROUPS, decay, sums + d, dim);
            d += TILE_GROUPS * GROUP;
        } else {
            tile_slots(rows, left, slots, part, dim, 1, decay, sums + d, dim);
            d += GROUP;
        }
    }
}

/* The item's query rows, from the rotated ones in qkv; nothing summed yet. */
INLINE void begin_item(const Attention *p, Item *item, long first_token, long first_position, long head,
                       long rows) {
    long dim = p->head_dim, group = p->heads / p->kv_heads, query = 0, member = 0;
    for (long r = 0; r < rows; r++) {
        const Elem *from = (const Elem *)p->qkv
            + ((first_token + query) * (p->heads + 2 * p->kv_heads) + head * group + member) * dim;
#if DOT
        item->query[r] = (const Left *)from;
#else
        for (long d = 0; d < dim; d += LANES) *(FloatsAt *)((float *)item->wide + r * dim + d) = load(from + d);
        item->query[r] = item->wide + r * (dim / PAIR);
#endif
        item->position[r] = first_position + query;
        item->peak[r] = LOWEST;
        if (++member == group) member = 0, query++;
    }
    for (long i = 0; i < rows * LANES; i += LANES) *(FloatsAt *)(item->total + i) = (Floats){0};
    for (long i = 0; i < rows * dim; i += LANES) *(FloatsAt *)(item->sums + i) = (Floats){0};
}

INLINE void end_item(const Attention *p, const Item *item, long first_token, long head, long rows) {
    long dim = p->head_dim, group = p->heads / p->kv_heads, query = 0, member = 0;
    for (long r = 0; r < rows; r++) {
        float factor = 1.0f / sum_lanes(*(const FloatsAt *)(item->total + r * LANES));
        Elem *out = (Elem *)p->out + ((first_token + query) * p->heads + head * group + member) * dim;
        for (long d = 0; d < dim; d += LANES)
            store(out + d, *(const FloatsAt *)(item->sums + r * dim + d) * factor);
        if (++member == group) member = 0, query++;
    }
}

/* Ask for the keys and values of a tile's slots early: blocks lie anywhere, so the CPU cannot guess. */
INLINE void prefetch_tile(const Attention *p, long number, long start, long head) {
    long row = p->item_row[number];
    long limit = p->first_positions[row] + p->item_end[number];
    const int32_t *table = p->tables + row * p->table_width;
    long groups_per_block = p->block_size / GROUP;
    long block = start / p->block_size, group = start % p->block_size / GROUP;
    for (int g = 0; g < PANEL / GROUP && start + g * GROUP < limit; g++) {
        long at = slot_group(p, table[block], group, head);
        for (long i = 0; i < GROUP * p->head_dim; i += 64 / sizeof(Elem)) {
            __builtin_prefetch((const Elem *)p->keys + at + i, 0, 2);
            __builtin_prefetch((const Elem *)p->values + at + i, 0, 2);
        }
        if (++group == groups_per_block) group = 0, block++;
    }
}

/* One item of one key head. */
INLINE void attend_item(const Attention *p, long number, long head, long next, long last) {
    Item item;
    long row = p->item_row[number], begin = p->item_begin[number], count = p->item_end[number] - begin;
    long dim = p->head_dim, rows = count * (p->heads / p->kv_heads);
    long first_position = p->first_positions[row] + begin, first_token = p->offsets[row] + begin;
    const int32_t *table = p->tables + row * p->table_width;
    item.limit = first_position + count;
    item.window = p->window;
    item.scale = p->scale;
    begin_item(p, &item, first_token, first_position, head, rows);

    long first_seen = p->window && first_position >= p->window ? first_position - p->window + 1 : 0;
    long start = first_seen / PANEL * PANEL;
    long groups_per_block = p->block_size / GROUP;
    long block = start / p->block_size, group = start % p->block_size / GROUP;
    long chunks = (rows + 5) / 6;
    for (; start < item.limit; start += PANEL) {
        const uint32_t *keys[PANEL / GROUP], *values[PANEL / GROUP];
        for (int g = 0; g < PANEL / GROUP; g++) {
            if (start + g * GROUP >= item.limit) { /* masked: any memory will do */
                keys[g] = keys[0], values[g] = values[0];
                continue;
            }
            long at = slot_group(p, table[block], group, head);
            keys[g] = (const uint32_t *)((const Elem *)p->keys + at);
            values[g] = (const uint32_t *)((const Elem *)p->values + at);
            if (++group == groups_per_block) group = 0, block++;
        }
        if (chunks == 1) {
            if (start + PANEL < item.limit) prefetch_tile(p, number, start + PANEL, head);
            else if (next < last) prefetch_tile(p, next / p->kv_heads, 0, next % p->kv_heads);
        }
        for (long chunk = 0; chunk < chunks; chunk++) {
            long r = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
            if (start > item.position[end - 1]) continue;
            if (p->window && start + PANEL <= item.position[r] - p->window + 1) continue;
            switch (end - r) {
            case 1: attend_tile(dim, &item, 1, r, start, keys, values); break;
            case 2: attend_tile(dim, &item, 2, r, start, keys, values); break;
            case 3: attend_tile(dim, &item, 3, r, start, keys, values); break;
            case 4: attend_tile(dim, &item, 4, r, start, keys, values); break;
            case 5: attend_tile(dim, &item, 5, r, start, keys, values); break;
            default: attend_tile(dim, &item, 6, r, start, keys, values); break;
            }
        }
    }
    end_item(p, &item, first_token, head, rows);
}

/* Work begin .. end - 1, where work w is item w / kv_heads of key head w % kv_heads. */
void tidepipe_attend(const Attention *p, int64_t begin, int64_t end) {
    for (long work = begin; work < end; work++) attend_item(p, work / p->kv_heads, work % p->kv_heads, work + 1, end);
}
