/* Attention of many query rows by tiles of wide_tile.h: keys and values are widened once for all of them. The order
 * of sums is that of attention.h and attention_bytes.h. */

#if !DOT || !VNNI
/* Can an item's rows be computed so? */
INLINE int attends_wide(const Attention *p, long rows) {
    return !(p->kv_int8 ? VNNI : DOT) && rows >= MANY_ROWS && p->head_dim % WIDE == 0;
}

/* WIDE keys from number `column` of a tile become right operands. */
INLINE void put_keys(int bytes, long dim, const Blocks *now, int column, Right *right) {
    long steps = dim / (bytes ? 4 : PAIR);
    for (long step = 0; step < steps; step++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE_VECTORS; v++) {
            int slot = column + v * LANES;
            const uint32_t *from = now->keys[slot / GROUP] + step * GROUP + slot % GROUP;
            put_right(bytes, 0, get_words(from), step, steps, v, right);
        }
}

/* WIDE numbers from number d of the first `slots` values of a tile, likewise. */
INLINE void put_values(int bytes, long dim, const Blocks *now, long d, long slots, Right *right) {
    long pack = bytes ? 4 : PAIR, steps = PANEL / pack, per_group = GROUP / pack;
    for (long step = 0; step * pack < slots; step++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE_VECTORS; v++) {
            const uint32_t *from = now->values[step / per_group] + step % per_group * dim + d + v * LANES;
            put_right(bytes, 1, get_words(from), step, steps, v, right);
        }
}

/* Sums of bytes of one row become scores, as in score_bytes. */
INLINE void scale_scores(const Item *item, long row, long dim, const Blocks *now, float *scores) {
    for (int c = 0; c < PANEL; c += LANES) {
        Ints sum = *(const IntsAt *)(scores + c) - item->query_shift[row];
        Floats scale = get_floats(scales_of(now->keys[c / GROUP], dim) + c % GROUP);
        put_floats(scores + c, __builtin_convertvector(sum, Floats) * item->query_scale[row] * scale);
    }
}

/* Rows `row` onwards of an item against one tile, bytes or not (a constant). */
INLINE void attend_wide(int bytes, long dim, Item *item, long row, long rows, long start, const Blocks *now) {
    Right right[MOST_HEAD_DIM > PANEL ? MOST_HEAD_DIM : PANEL] __attribute__((aligned(64)));
    float scores[MOST_ROWS * PANEL] __attribute__((aligned(64)));
    float weighted[MOST_ROWS * MOST_HEAD_DIM] __attribute__((aligned(64))); /* of bytes: before they are scaled */
    float scales[PANEL] __attribute__((aligned(64))), decay[MOST_ROWS + LANES] = {0}, scale[MOST_ROWS];
    long slots = item->limit - start < PANEL ? item->limit - start : PANEL;
    long query = bytes ? LEFT_BYTES(dim) : dim; /* words of a query row, and of its probabilities, */
    long weight = bytes ? LEFT_BYTES(PANEL) : PANEL;
    uint32_t bytes_of[MOST_ROWS * LEFT_BYTES(PANEL)] __attribute__((aligned(64)));
    uint32_t *weights = bytes ? bytes_of : (uint32_t *)scores;
    const uint32_t *queries = bytes ? item->bytes + row * query : (const uint32_t *)item->wide + row * query;
    __builtin_memset(scores, 0, rows * PANEL * sizeof *scores);
    for (int column = 0; column < PANEL; column += WIDE) {
        put_keys(bytes, dim, now, column, right);
        wide_tiles(bytes, rows, queries, query, query, right, (uint32_t *)scores + column, PANEL);
    }
    for (int c = 0; bytes && c < PANEL; c += LANES)
        put_floats(scales + c, get_floats(scales_of(now->values[c / GROUP], dim) + c % GROUP));
    for (long r = 0; r < rows; r++) {
        float *score = scores + r * PANEL;
        if (bytes) scale_scores(item, row + r, dim, now, score);
        decay[r] = rise_of_peak(item, row + r, mask_scores(item, row + r, start, score));
    }
    for (long r = 0; r < rows; r += LANES) put_floats(decay + r, power_of_two(get_floats(decay + r)));
    for (long r = 0; r < rows; r++) {
        float *total = item->total + (row + r) * LANES, *score = scores + r * PANEL;
        Floats before = settled(get_floats(total) * decay[r]);
        put_floats(total, before);
        if (bytes)
            scale[r] = weigh_bytes(score, scales, item->peak[row + r], total, weights + r * weight);
        else
            put_floats(total, exponentiate(score, item->peak[row + r], before, (Left *)weights + r * weight));
    }
    float *sums = item->sums + row * dim, *to = bytes ? weighted : sums;
    if (bytes) __builtin_memset(to, 0, rows * dim * sizeof *to);
    for (long r = 0; !bytes && r < rows; r++) {
        if (decay[r] == 1) continue; /* mostly: the largest score is seen early */
        for (long d = r * dim; d < (r + 1) * dim; d += LANES) put_floats(sums + d, get_floats(sums + d) * decay[r]);
    }
    for (long d = 0; d < dim; d += WIDE) {
        put_values(bytes, dim, now, d, bytes ? PANEL : slots, right);
        long units = bytes ? weight : even_units(slots, right);
        wide_tiles(bytes, rows, weights, weight, units, right, (uint32_t *)to + d, dim);
    }
    for (long r = 0; bytes && r < rows; r++)
        for (long d = r * dim; d < (r + 1) * dim; d += LANES)
            put_floats(sums + d, decayed(sums + d, decay[r], *(const IntsAt *)(weighted + d), scale[r]));
}

#if !DOT
static __attribute__((noinline)) void attend_wide_floats(long dim, Item *item, long row, long rows, long start,
                                                         const Blocks *now) {
    attend_wide(0, dim, item, row, rows, start, now);
}
#endif

static __attribute__((noinline)) void attend_wide_bytes(long dim, Item *item, long row, long rows, long start,
                                                        const Blocks *now) {
    attend_wide(1, dim, item, row, rows, start, now);
}

/* Rows first .. first + rows - 1 of an item, those of one key head. Rows that see nothing of the tile come first:
 * they are left out, as long as enough remain. */
INLINE void attend_head(const Attention *p, Item *item, long first, long rows, long start, const Blocks *now) {
    long row = first;
    while (row < first + rows - MANY_ROWS && item->position[row] < start) row++;
    rows -= row - first;
#if !DOT
    if (!p->kv_int8) {
        attend_wide_floats(p->head_dim, item, row, rows, start, now);
        return;
    }
#endif
    attend_wide_bytes(p->head_dim, item, row, rows, start, now);
}
#endif
