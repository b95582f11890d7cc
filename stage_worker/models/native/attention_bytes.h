/* Attention over an int8 pool: products of bytes, summed exactly in int32. Each key, value and query has a scale;
 * the probabilities of one query row and tile become bytes with a scale of their own. */

/* The scales behind each 16 keys or values. */
INLINE const float *scales_of(const uint32_t *slots, long dim) {
    return (const float *)((const int8_t *)slots + GROUP * dim);
}

INLINE void fetch_scales(long dim, const Blocks *next) {
    for (int g = 0; g < PANEL / GROUP; g++) {
        __builtin_prefetch(scales_of(next->keys[g], dim), 0, 2);
        __builtin_prefetch(scales_of(next->values[g], dim), 0, 2);
    }
}

/* Fetch some of the lines of 64 bytes of the next values; a tile has `dim` of them. This is done while scores
 * become weights: among the loads of values it would wait for memory. */
INLINE void fetch_values(long dim, const Blocks *next, long begin, long end) {
    long lines = dim * GROUP / PANEL;
    for (long line = begin; line < end; line++)
        __builtin_prefetch(next->values[line / lines] + line % lines * GROUP, 0, 2);
}

/* Scores [rows][PANEL] of `rows` (a constant) query rows, without the factor of all scores. */
INLINE void score_bytes(long dim, const Item *item, int rows, long row, const Blocks *now, const Blocks *next,
                        float *scores) {
    const int groups = TILE_GROUPS(rows), vectors = groups * VECTORS;
    long steps = dim / 4;
    const uint32_t *left = item->bytes + row * LEFT_BYTES(dim);
    for (int first = 0; first < PANEL / GROUP; first += groups) {
        Ints sum[6][MOST_VECTORS];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sum[r][v] = (Ints){0} - item->query_shift[row + r];
        for (long step = 0; step < steps; step++) {
#pragma GCC unroll 4
            for (int g = 0; next && g < groups; g++)
                __builtin_prefetch(next->keys[first + g] + step * GROUP, 0, 2);
#pragma GCC unroll 2
            for (int part = 0; part < BYTE_PARTS; part++) {
                const uint32_t *at[MOST_VECTORS];
                uint32_t factor[6];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++)
                    at[v] = now->keys[first + v / VECTORS] + step * GROUP + v % VECTORS * LANES;
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) factor[r] = left[r * LEFT_BYTES(dim) + part * steps + step];
                mac_byte_tile(rows, vectors, at, part, 0, factor, sum);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const float *scale = scales_of(now->keys[first + v / VECTORS], dim) + v % VECTORS * LANES;
                put_floats(scores + r * PANEL + first * GROUP + v * LANES,
                           __builtin_convertvector(sum[r][v], Floats) * item->query_scale[row + r]
                               * get_floats(scale));
            }
    }
}

/* Scores of one query row to weights of its int8 values, each value's own scale included; returns the scale of
 * the weights. Their largest one is the row's own affair: it must not depend on what is computed beside it.
 * Adds the probabilities to `total` per lane. Hidden slots get zero, whatever their scale. */
INLINE float weigh_bytes(const float *scores, const float *scales, float peak, float *total, uint32_t *out) {
    Floats weight[PANEL / LANES], best = splat(0), sum = get_floats(total);
#pragma GCC unroll 8
    for (int v = 0; v < PANEL / LANES; v++) {
        Floats score = get_floats(scores + v * LANES);
        Ints seen = score > LOWEST;
        Floats p = (Floats)((Ints)power_of_two(score - peak) & seen);
        weight[v] = (Floats)((Ints)(p * get_floats(scales + v * LANES)) & seen);
        best = larger(weight[v], best);
        sum += p + (weight[v] - weight[v]); /* NaN goes on into the result */
    }
    put_floats(total, sum);
    float largest = largest_lane(best), factor = largest > 0 ? 255.0f / largest : 0.0f;
#if LANES == 8 && BYTE_PARTS == 2
    __m256i pick = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
#pragma GCC unroll 4
    for (int v = 0; v < PANEL / LANES; v += 2) { /* as below: slots 0 and 2 of each four, then 1 and 3 */
        __m256i low = _mm256_cvtps_epi32((__m256)(weight[v] * factor));
        __m256i high = _mm256_cvtps_epi32((__m256)(weight[v + 1] * factor));
        __m256i parts = _mm256_shuffle_epi8(_mm256_packus_epi32(low, high), pick);
        parts = _mm256_permutevar8x32_epi32(parts, order);
        _mm_storeu_si128((__m128i *)(out + v * LANES / 4), _mm256_castsi256_si128(parts));
        _mm_storeu_si128((__m128i *)(out + PANEL / 4 + v * LANES / 4), _mm256_extracti128_si256(parts, 1));
    }
#else
    uint8_t bytes[PANEL] __attribute__((aligned(64)));
#pragma GCC unroll 8
    for (int v = 0; v < PANEL / LANES; v++) {
        Ints whole = (Ints)(weight[v] * factor + 12582912.0f) - 0x4b400000;
        *(BytesAt *)(bytes + v * LANES) = __builtin_convertvector(whole, BytesAt);
    }
    put_byte_parts((const uint32_t *)bytes, PANEL / 4, 0, out, PANEL / 4);
#endif
    return largest / 255.0f;
}

/* Sums so far, and those of one tile. */
INLINE Floats decayed(const float *before, float decay, Ints sum, float scale) {
    return settled(get_floats(before) * decay) + settled(__builtin_convertvector(sum, Floats) * scale);
}

/* sums[r][0 .. groups * 16 - 1] = sums * decay[r] + weights times values, for `slots` slots. */
INLINE void sum_bytes(long dim, int rows, int groups, const uint32_t *weights, long slots, long d,
                      const Blocks *now, const float *decay, const float *scale, float *sums) {
    Ints sum[6][MOST_VECTORS];
    int vectors = groups * VECTORS;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = (Ints){0};
    for (long slot = 0; slot < slots; slot += 4) {
        long start = slot % GROUP / 4 * dim + d;
#pragma GCC unroll 2
        for (int part = 0; part < BYTE_PARTS; part++) {
            const uint32_t *at[MOST_VECTORS];
            uint32_t factor[6];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) at[v] = now->values[slot / GROUP] + start + v * LANES;
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++)
                factor[r] = weights[r * LEFT_BYTES(PANEL) + part * (PANEL / 4) + slot / 4];
            mac_byte_tile(rows, vectors, at, part, 1, factor, sum);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            float *to = sums + r * dim + d + v * LANES;
            put_floats(to, decayed(to, decay[r], sum[r][v], scale[r]));
        }
}

/* `rows` (a constant) query rows from number `row` against one tile; `next`, if given, is fetched meanwhile. */
INLINE void attend_bytes(long dim, Item *item, int rows, long row, long start, const Blocks *now,
                         const Blocks *next) {
    float scores[6 * PANEL] __attribute__((aligned(64))), scales[PANEL] __attribute__((aligned(64)));
    uint32_t weights[6 * LEFT_BYTES(PANEL)] __attribute__((aligned(64)));
    float decay[6], scale[6];
    long slots = item->limit - start < PANEL ? item->limit - start : PANEL;
    if (next) fetch_scales(dim, next);
    score_bytes(dim, item, rows, row, now, next, scores);
    for (int c = 0; c < PANEL; c += LANES)
        put_floats(scales + c, get_floats(scales_of(now->values[c / GROUP], dim) + c % GROUP));
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        float *total = item->total + (row + r) * LANES;
        if (next) fetch_values(dim, next, dim * r / rows, dim * (r + 1) / rows);
        decay[r] = raise_peak(item, row + r, mask_scores(item, row + r, start, scores + r * PANEL));
        put_floats(total, settled(get_floats(total) * decay[r]));
        scale[r] = weigh_bytes(scores + r * PANEL, scales, item->peak[row + r], total,
                               weights + r * LEFT_BYTES(PANEL));
    }
    float *sums = item->sums + row * dim;
    for (long d = 0; d < dim;) {
        if (dim - d >= TILE_GROUPS(rows) * GROUP) {
            sum_bytes(dim, rows, TILE_GROUPS(rows), weights, slots, d, now, decay, scale, sums);
            d += TILE_GROUPS(rows) * GROUP;
        } else {
            sum_bytes(dim, rows, 1, weights, slots, d, now, decay, scale, sums);
            d += GROUP;
        }
    }
}
