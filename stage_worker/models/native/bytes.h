/* Products of int8 rows and int8 weights, summed exactly in int32: in whatever order, the result is one. */

#define BYTE_STEPS 320 /* steps of four inputs whose packed weights stay in the second-level cache */

/* Largest absolute value of a row; NaN if any value is not finite. */
INLINE float row_peak(const Elem *x, long columns) {
    Floats best = splat(0), bad = splat(0);
    long c = 0;
    for (; c + LANES <= columns; c += LANES) {
        Floats value = load(x + c);
        best = larger(larger(value, -value), best);
        bad += value * 0.0f;
    }
    float peak = largest_lane(best), probe = sum_lanes(bad);
    for (; c < columns; c++) {
        float value = widen(x[c]);
        peak = larger_one(value < 0 ? -value : value, peak);
        probe += value * 0.0f;
    }
    return peak + probe;
}

/* One row to int8; returns the scale, which its largest value fits. sum: of the rounded values. */
INLINE float round_row(const Elem *x, long columns, int8_t *to, int32_t *sum) {
    float peak = row_peak(x, columns), factor = peak > 0 ? 127.0f / peak : 0.0f;
    Ints sums = {0};
    long c = 0;
    for (; c + LANES <= columns; c += LANES) {
        /* 1.5 * 2^23: adding it rounds to a whole number, which the low bits then hold. */
        Ints whole = (Ints)(load(x + c) * factor + 12582912.0f) - 0x4b400000;
        *(BytesAt *)(to + c) = __builtin_convertvector(whole, BytesAt);
        sums += whole;
    }
    *sum = 0;
    for (int lane = 0; lane < LANES; lane++) *sum += sums[lane];
    for (; c < columns; c++) {
        to[c] = (int8_t)__builtin_rintf(widen(x[c]) * factor);
        *sum += to[c];
    }
    return peak / 127.0f; /* NaN goes on into the products */
}

/* Rows begin .. end - 1 of x to int8, each with a scale of its own. */
KERNEL tidepipe_quantize(const Rows *p, int64_t begin, int64_t end) {
    for (long row = begin; row < end; row++) {
        int32_t sum;
        const Elem *x = (const Elem *)p->x + row * p->columns;
        p->bytes.scales[row] = round_row(x, p->columns, p->bytes.values + row * p->columns, &sum);
        p->bytes.shifts[row] = 128 * sum;
    }
}

/* Four inputs: weights are bytes 128 + w, left has four int8. */
INLINE Ints mac_bytes(Ints sum, Words weights, uint32_t left) {
#if VNNI
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32((int)left));
#else
    for (int part = 0; part < 32; part += 8)
        sum += (Ints)((weights >> part) & 255u) * (int32_t)(int8_t)(left >> part);
    return sum;
#endif
}

/* sums[r][0 .. 63] (+)= the products of `rows` (a constant) rows with one panel, over some steps. */
INLINE void byte_tile(int rows, const Product *p, long row, long step, long steps, const uint32_t *weights,
                      int32_t *sums) {
    for (int first = 0; first < PANEL / GROUP; first += TILE_GROUPS) {
        Ints sum[6][TILE_GROUPS * VECTORS];
        int32_t *to = sums + first * GROUP;
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_GROUPS * VECTORS; v++)
                sum[r][v] = step ? (Ints) * (const IntsAt *)(to + r * PANEL + v * LANES) : (Ints){0};
        const uint32_t *left = (const uint32_t *)(p->bytes.values + row * p->inputs) + step;
        long stride = p->inputs / 4;
        for (long s = 0; s < steps; s++) {
            Words words[TILE_GROUPS * VECTORS];
#pragma GCC unroll 4
            for (int v = 0; v < TILE_GROUPS * VECTORS; v++)
                words[v] = get_words(weights + (step + s) * PANEL + first * GROUP + v * LANES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                uint32_t factor = left[r * stride + s];
#pragma GCC unroll 4
                for (int v = 0; v < TILE_GROUPS * VECTORS; v++)
                    sum[r][v] = mac_bytes(sum[r][v], words[v], factor);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < TILE_GROUPS * VECTORS; v++)
                *(IntsAt *)(to + r * PANEL + v * LANES) = sum[r][v];
    }
}
