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
#if LANES == 8
    for (; c + 4 * LANES <= columns; c += 4 * LANES) { /* what compilers make of the loop below is slow */
        __m256i four[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            four[v] = _mm256_cvtps_epi32((__m256)(load(x + c + v * LANES) * factor));
            sums += (Ints)four[v];
        }
        __m256i low = _mm256_packs_epi32(four[0], four[1]), high = _mm256_packs_epi32(four[2], four[3]);
        __m256i halves = _mm256_packs_epi16(low, high), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i *)(to + c), _mm256_permutevar8x32_epi32(halves, order));
    }
#endif
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

/* Four bytes are multiplied at once where the CPU can (VNNI); else two and two, as 16-bit numbers: bytes 0 and 2
 * of a word, then bytes 1 and 3. */
#define BYTE_PARTS (VNNI ? 1 : 2)

/* A part of words of four bytes, with or without sign. */
INLINE Words byte_part(Words four, int part, int with_sign) {
    if (BYTE_PARTS == 1) return four;
    Halves high = part ? (Halves)four : (Halves)four << 8;
    TWO_STEPS(high);
    return with_sign ? (Words)((Shorts)high >> 8) : (Words)(high >> 8);
}

/* `words` words of four bytes as left operands: part 0 of all, then part 1 of all, `stride` words behind. */
INLINE void put_byte_parts(const uint32_t *from, long words, int with_sign, uint32_t *to, long stride) {
    for (int part = 0; part < BYTE_PARTS; part++) {
        long i = 0;
        for (; i + LANES <= words; i += LANES)
            *(WordsAt *)(to + part * stride + i) = byte_part(get_words(from + i), part, with_sign);
        for (; i < words; i++)
            to[part * stride + i] = byte_part((Words){0} + from[i], part, with_sign)[0];
    }
}

/* One multiplication of bytes. Of `right` and `left` one is without sign, the one that `right_signed` says. */
INLINE Ints mac_bytes(Ints sum, Words right, uint32_t left, int right_signed) {
#if VNNI
    __m512i r = (__m512i)right, l = _mm512_set1_epi32((int)left);
    return (Ints)(right_signed ? _mm512_dpbusd_epi32((__m512i)sum, l, r) : _mm512_dpbusd_epi32((__m512i)sum, r, l));
#else
    (void)right_signed;
#if LANES == 16
    return sum + (Ints)_mm512_madd_epi16((__m512i)right, _mm512_set1_epi32((int)left));
#elif LANES == 8
    Ints product = (Ints)_mm256_madd_epi16((__m256i)right, _mm256_set1_epi32((int)left));
    __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product)); /* in place, as in `mac` */
    return sum;
#else
    Ints low = (Ints)(right << 16) >> 16, high = (Ints)right >> 16;
    return sum + low * (int32_t)(int16_t)left + high * ((int32_t)left >> 16);
#endif
#endif
}

/* sum[r][v] += the words at[v] times factor[r], as `mac_tile`. */
INLINE void mac_byte_tile(int rows, int vectors, const uint32_t *const *at, int part, int right_signed,
                          const uint32_t *factor, Ints (*sum)[MOST_VECTORS]) {
    Words words[MOST_VECTORS];
    if (LANES == 8 && rows <= 3) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            words[0] = byte_part(get_words(part ? anew(at[v]) : at[v]), part, right_signed);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) sum[r][v] = mac_bytes(sum[r][v], words[0], factor[r], right_signed);
        }
        return;
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++)
        words[v] = byte_part(get_words(part ? anew(at[v]) : at[v]), part, right_signed);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = mac_bytes(sum[r][v], words[v], factor[r], right_signed);
}

/* sums[r][0 .. 63] (+)= the products of `rows` (a constant) rows with one panel, over some steps; what comes
 * behind them in `weights` is fetched meanwhile. */
INLINE void byte_tile(int rows, const Product *p, long row, long step, long steps, const uint32_t *weights,
                      int32_t *sums) {
    const int groups = TILE_GROUPS(rows), vectors = groups * VECTORS;
    const uint32_t *left = (const uint32_t *)(p->bytes.values + row * p->inputs) + step;
    long stride = p->inputs / 4, part_stride = 0;
#if BYTE_PARTS == 2
    uint32_t parts[6 * 2 * BYTE_STEPS] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++)
        put_byte_parts(left + r * stride, steps, 1, parts + r * 2 * BYTE_STEPS, BYTE_STEPS);
    left = parts, stride = 2 * BYTE_STEPS, part_stride = BYTE_STEPS;
#endif
    for (int first = 0; first < PANEL / GROUP; first += groups) {
        Ints sum[6][MOST_VECTORS];
        int32_t *to = sums + first * GROUP;
        const uint32_t *next = weights + (step + steps) * PANEL + first * steps * GROUP; /* line by line */
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sum[r][v] = step ? (Ints) * (const IntsAt *)(to + r * PANEL + v * LANES) : (Ints){0};
        for (long s = 0; s < steps; s++) {
#pragma GCC unroll 4
            for (int g = 0; g < groups; g++) __builtin_prefetch(next + (s * groups + g) * GROUP, 0, 2);
#pragma GCC unroll 2
            for (int part = 0; part < BYTE_PARTS; part++) {
                const uint32_t *at[MOST_VECTORS];
                uint32_t factor[6];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++)
                    at[v] = weights + (step + s) * PANEL + first * GROUP + v * LANES;
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) factor[r] = left[r * stride + part * part_stride + s];
                mac_byte_tile(rows, vectors, at, part, 0, factor, sum);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) *(IntsAt *)(to + r * PANEL + v * LANES) = sum[r][v];
    }
}
