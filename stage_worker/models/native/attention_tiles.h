/* Attention by matrix tiles (matrix_tiles.h), whatever the number of query rows: up to 16 of one key head against a
 * tile of slots at a time, as keys and values lie in the pool. A row's sums have one order, that of its slots'
 * positions, 16 by 16: a token's result is the same whether its prompt comes in one piece or in many, or it is
 * decoded. */
#if AMX

_Static_assert(GROUP == TILE && MOST_ROWS % TILE == 0, "16 slots are a tile's columns, and an item's rows fill tiles");

/* Tiles 0 to 3 are sums; 4 and 6 left and right operands of 16 steps, 5 and 7 of 8 steps, which 16 values have. */
INLINE void shape_for(Item *item, long rows) {
    if (rows == item->shaped) return;
    TileShapes shapes __attribute__((aligned(64))) = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) shapes.row_bytes[tile] = 64, shapes.rows[tile] = tile < 6 ? rows : TILE;
    shapes.row_bytes[5] = GROUP / PAIR * 4, shapes.rows[7] = GROUP / PAIR;
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&shapes);
    item->shaped = rows;
}

/* Fetch a few lines: between products, for many at once would hold up what the next product needs. */
INLINE void fetch_lines(const uint32_t *from, long lines) {
    for (long line = 0; line < lines; line++) __builtin_prefetch(from + line * 16, 0, 2);
}

#define ADD_KEYS(group, left, right, lines)                                                                   \
    do {                                                                                                     \
        _tile_loadd(right, now->keys[group] + step * GROUP, GROUP * 4);                                      \
        _tile_dpbf16ps(group, left, right);                                                                  \
        if (next) fetch_lines(next->keys[group] + step * GROUP, lines);                                      \
    } while (0)

/* scores[r][0 .. 63] of at most 16 query rows; `next`, if given, is fetched meanwhile. */
INLINE void score_tiles(long dim, const uint32_t *query, const Blocks *now, const Blocks *next, float *scores) {
    long steps = dim / PAIR, step = 0;
    zero_sums();
    for (; step + TILE <= steps; step += TILE) {
        _tile_loadd(4, query + step, steps * 4);
        ADD_KEYS(0, 4, 6, TILE);
        ADD_KEYS(1, 4, 6, TILE);
        ADD_KEYS(2, 4, 6, TILE);
        ADD_KEYS(3, 4, 6, TILE);
    }
    if (step < steps) {
        _tile_loadd(5, query + step, steps * 4);
        ADD_KEYS(0, 5, 7, TILE / 2);
        ADD_KEYS(1, 5, 7, TILE / 2);
        ADD_KEYS(2, 5, 7, TILE / 2);
        ADD_KEYS(3, 5, 7, TILE / 2);
    }
    put_sums((uint32_t *)scores, 2 * TILE);
}

/* Hide the slots that a query row does not see. */
INLINE void hide_scores(const Item *item, long row, long start, float *scores) {
    long last = item->position[row] - start; /* slots of the tile up to this one are seen */
    long first = item->window ? last - item->window + 1 : 0;
    if (last >= PANEL - 1 && first <= 0) return;
    last = last > PANEL ? PANEL : last;
    first = first > 0 ? first : 0;
    for (int c = 0; c < PANEL; c += LANES) {
        Ints slot;
        for (int lane = 0; lane < LANES; lane++) slot[lane] = c + lane;
        Ints seen = (slot <= (int)last) & (slot >= (int)first);
        put_floats(scores + c, blend(seen, get_floats(scores + c), splat(LOWEST)));
    }
}

#define LARGER_OF(shuffle, a, b, low, high)                                                                   \
    (__m512)larger((Floats)shuffle(a, b, low), (Floats)shuffle(a, b, high))
#define LOW_HIGH(type, a, b)                                                                                  \
    (__m512)larger((Floats)_mm512_unpacklo_##type(a, b), (Floats)_mm512_unpackhi_##type(a, b))

/* The largest of the 64 scores of each of 16 rows. */
INLINE Floats largest_scores(const float *scores) {
    __m512 row[TILE];
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) {
        const float *from = scores + r * PANEL;
        Floats left = larger(get_floats(from), get_floats(from + LANES));
        row[r] = (__m512)larger(left, larger(get_floats(from + 2 * LANES), get_floats(from + 3 * LANES)));
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) row[r] = LOW_HIGH(ps, row[2 * r], row[2 * r + 1]);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
        row[r] = (__m512)LOW_HIGH(pd, (__m512d)row[2 * r], (__m512d)row[2 * r + 1]);
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) row[r] = LARGER_OF(_mm512_shuffle_f32x4, row[2 * r], row[2 * r + 1], 0x88, 0xdd);
    return (Floats)LARGER_OF(_mm512_shuffle_f32x4, row[0], row[1], 0x88, 0xdd);
}

/* Scores of one query row to probabilities; adds them, as rounded, to `total` per lane. Hidden slots get zero. */
INLINE void weigh_scores(const float *scores, float scale, float peak, float decay, float *total, Left *out) {
    __m512 sum = (__m512)settled(get_floats(total) * decay), by = _mm512_set1_ps(scale), from = _mm512_set1_ps(peak);
#pragma GCC unroll 2
    for (int c = 0; c < PANEL; c += 2 * LANES) {
        Floats low = get_floats(scores + c), high = get_floats(scores + c + LANES);
        Floats p = power_of_two((Floats)_mm512_fmsub_ps((__m512)low, by, from));
        Floats q = power_of_two((Floats)_mm512_fmsub_ps((__m512)high, by, from));
        p = (Floats)((Ints)p & (low > LOWEST)), q = (Floats)((Ints)q & (high > LOWEST));
        __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)q, (__m512)p);
        *(WordsAt *)(out + c / PAIR) = (Words)rounded;
        sum = _mm512_dpbf16_ps(sum, rounded, (__m512bh)_mm512_set1_epi32(0x3f803f80));
    }
    put_floats(total, (Floats)sum);
}

/* Scores of rows `row` onwards to probabilities; what was summed before decays. */
INLINE void softmax_rows(long dim, Item *item, long rows, long row, long start, float *scores, Left *out) {
    float decay[TILE] __attribute__((aligned(64)));
    __mmask16 own = (__mmask16)((1u << rows) - 1); /* what lies behind is other rows' */
    for (long r = 0; r < rows; r++) hide_scores(item, row + r, start, scores + r * PANEL);
    Floats before = (Floats)_mm512_maskz_loadu_ps(own, item->peak + row);
    Floats peak = larger(settled(largest_scores(scores) * item->scale), before);
    _mm512_mask_storeu_ps(item->peak + row, own, (__m512)peak);
    put_floats(decay, power_of_two(before - peak));
    for (long r = 0; r < rows; r++) {
        weigh_scores(scores + r * PANEL, item->scale, item->peak[row + r], decay[r], item->total + (row + r) * LANES,
                     out + r * LEFTS(PANEL));
        if (decay[r] == 1) continue; /* mostly: the largest score is seen early */
        float *sums = item->sums + (row + r) * dim;
        for (long d = 0; d < dim; d += LANES) put_floats(sums + d, get_floats(sums + d) * decay[r]);
    }
}

/* Room for 16 values, and for as many zeros. */
typedef uint32_t EndOfValues[2][GROUP / PAIR * MOST_HEAD_DIM];

/* From slot number `slots` of a tile on, where anything may lie, values become zeros. */
INLINE void end_values(long dim, long slots, Blocks *now, EndOfValues room) {
    long last = slots / GROUP;
    for (long pair = 0; pair < GROUP / PAIR; pair++) {
        long slot = last * GROUP + pair * PAIR;
        uint32_t seen = slot + 1 < slots ? 0xffffffffu : slot < slots ? 0xffffu : 0;
        for (long d = pair * dim; d < (pair + 1) * dim; d += LANES) {
            *(WordsAt *)(room[0] + d) = get_words(now->values[last] + d) & seen;
            *(WordsAt *)(room[1] + d) = (Words){0};
        }
    }
    for (long group = last; group < PANEL / GROUP; group++) now->values[group] = room[group > last];
}

/* Up to four tiles of 16 numbers of a head. */
#define EACH_SUM(count, of)                                                                                   \
    do {                                                                                                     \
        of(0);                                                                                               \
        if ((count) > 1) of(1);                                                                              \
        if ((count) > 2) of(2);                                                                              \
        if ((count) > 3) of(3);                                                                              \
    } while (0)
#define GET_SUM(n) _tile_loadd(n, sums + d + (n) * TILE, dim * 4)
#define PUT_SUM(n) _tile_stored(n, sums + d + (n) * TILE, dim * 4)
#define ADD_VALUES(n)                                                                                         \
    do {                                                                                                     \
        _tile_loadd(7, now->values[group] + d + (n) * TILE, dim * 4);                                        \
        _tile_dpbf16ps(n, 5, 7);                                                                             \
        if (next) fetch_lines(next->values[group] + (d + (n) * TILE) * GROUP / PAIR, GROUP / PAIR);          \
    } while (0)

/* sums[r][0 .. dim - 1] += probabilities times values; `next`, if given, is fetched meanwhile. */
INLINE void sum_tiles(long dim, const Left *probabilities, const Blocks *now, const Blocks *next, float *sums) {
    for (long d = 0; d < dim; d += 4 * TILE) {
        long count = (dim - d) / TILE < 4 ? (dim - d) / TILE : 4;
        EACH_SUM(count, GET_SUM);
        for (int group = 0; group < PANEL / GROUP; group++) {
            _tile_loadd(5, probabilities + group * GROUP / PAIR, LEFTS(PANEL) * 4);
            EACH_SUM(count, ADD_VALUES);
        }
        EACH_SUM(count, PUT_SUM);
    }
}

/* Item rows first .. first + rows - 1, those of one key head, against one tile of slots. spare: behind them the item has
 * room for as many as fill tiles, all of which then have one shape; what is summed there nobody reads. */
static __attribute__((noinline)) void attend_by_tiles(const Attention *p, Item *item, long first, long rows, int spare,
                                                      long start, Blocks now, const Blocks *next) {
    float scores[TILE * PANEL] __attribute__((aligned(64)));
    Left probabilities[TILE * LEFTS(PANEL)] __attribute__((aligned(64)));
    EndOfValues end __attribute__((aligned(64)));
    long dim = p->head_dim, slots = item->limit - start;
    if (slots < PANEL) end_values(dim, slots, &now, end);
    for (long row = first; row < first + rows; row += TILE) {
        long count = first + rows - row < TILE ? first + rows - row : TILE;
        const Blocks *ahead = row == first ? next : 0;
        if (start > item->position[row + count - 1]) continue;
        if (p->window && start + PANEL <= item->position[row] - p->window + 1) continue;
        shape_for(item, spare && rows > TILE ? TILE : count);
        __asm__ volatile("" ::: "memory");
        score_tiles(dim, item->pairs + row * dim / PAIR, &now, ahead, scores);
        __asm__ volatile("" ::: "memory");
        softmax_rows(dim, item, count, row, start, scores, probabilities);
        __asm__ volatile("" ::: "memory");
        sum_tiles(dim, probabilities, &now, ahead, item->sums + row * dim);
        __asm__ volatile("" ::: "memory");
    }
}

#endif
