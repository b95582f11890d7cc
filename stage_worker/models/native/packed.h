/* Weights of few bits: a block of them becomes words of packed weights, which the tiles of product.h multiply. What
 * is multiplied is what the same weights, unpacked at load, would be: results are the same to the last bit. */

#define STRAIGHT (LANES == 16 && (DOT || !BF16)) /* 1 where few rows are multiplied without unpacking first */
#define INPUTS_TOGETHER 32 /* inputs of packed weights are a multiple of it, and so are blocks of them */

/* Numbers with few bits of mantissa: magnitude and sign (the topmost bit) of a word, as floats. No NaN, no infinity. */
INLINE Floats widen_small(Words magnitude, Words sign, int mantissa, int bias) {
    Words normal = (magnitude << (23 - mantissa)) + ((uint32_t)(127 - bias) << 23);
    Floats unit = (Floats)((Words){0} + ((uint32_t)(128 - bias - mantissa) << 23));
    Floats small = __builtin_convertvector((Ints)magnitude, Floats) * unit; /* without subnormal operands */
    Floats value = blend((Ints)magnitude < (1 << mantissa), small, (Floats)normal);
    return (Floats)((Words)value | sign);
}

INLINE Floats half_floats(const uint16_t *from) {
#if LANES == 16
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#endif
    Words bits = widen_halves(*(const HalvesAt *)from);
    return widen_small(bits & 0x7fff, (bits & 0x8000) << 16, 10, 15);
}

/* LANES numbers of a kind that scales have. */
INLINE Floats scale_numbers(const void *from, long at, long kind) {
    if (kind == SCALE_HALF) return half_floats((const uint16_t *)from + at);
    if (kind == SCALE_BFLOAT) return (Floats)(widen_halves(*(const HalvesAt *)((const uint16_t *)from + at)) << 16);
    if (kind == SCALE_BYTE) return __builtin_convertvector(*(const BytesAt *)((const int8_t *)from + at), Floats);
    return get_floats((const float *)from + at);
}

/* How a loop over codes makes numbers of them. */
#define ADDED 0     /* code * scale + what is added: exact before it is rounded, so in one or two instructions */
#define SUBTRACTED 1 /* (code - zero) * scale: of scales so long that ADDED would round twice */
#define TIMES 2     /* times the scale: floats, and entries of a table, in which the zero is already */
#define ANY_GROUP 4 /* as SUBTRACTED or TIMES, and inputs of a group stand anywhere */

/* What makes numbers of codes, for LANES outputs. by: the scale of codes that stand so many fields too high. */
typedef struct {
    Floats scale, zero, added, by[4];
} Scaling;

INLINE Scaling scaling_of(const Packed *w, int code, int how, long panel, long group, long lane) {
    long at = (panel * w->groups + group) * PANEL + lane;
    Scaling s = {scale_numbers(w->scales, at, w->scale_kind), splat(w->zero), splat(0), {splat(0)}};
    Floats least = s.added;
    if (w->zeros) s.zero = scale_numbers(w->zeros, at, w->scale_kind);
    if (w->least) least = scale_numbers(w->least, at, w->scale_kind);
    if (w->units) { /* scales are multiples of a unit that several groups share */
        long of = (panel * w->unit_count + group / w->groups_per_unit) * PANEL + lane;
        s.scale *= half_floats(w->units + of);
        if (w->least) least *= half_floats(w->least_units + of);
    }
    if (how == ADDED) {
        s.added = w->least ? least : -settled(s.zero * s.scale);
        s.by[0] = s.scale;
        for (int field = 1; field < 4; field++) s.by[field] = s.by[field - 1] * (code == CODE_8 ? 1 / 256.0f : 1 / 16.0f);
    }
    return s;
}

/* The entry that the low four bits of each lane number. */
INLINE Floats table_entry(const float *table, Words numbers) {
#if LANES == 16
    return (Floats)_mm512_permutexvar_ps((__m512i)numbers, _mm512_loadu_ps(table));
#elif LANES == 8
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)numbers);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)numbers);
    return (Floats)_mm256_blendv_ps(low, high, (__m256)(numbers << 28));
#else
    Floats entries;
    for (int lane = 0; lane < LANES; lane++) entries[lane] = table[numbers[lane] & 15];
    return entries;
#endif
}

/* Two inputs that stand side by side, for LANES outputs, as packed weights have them. */
#if DOT
INLINE Words joined(Floats even, Floats odd) {
    static const uint16_t order[32] = {0,  16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8,  24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    return (Words)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
}
#elif BF16
INLINE Words joined(Floats even, Floats odd) {
    return (upper_halves(even) >> 16) | (upper_halves(odd) & 0xffff0000u);
}
#endif

/* Number k of the codes whose low (or all) bits are in `low`; their other bits, if any, are in `high`. */
INLINE Floats code_number(const Packed *w, int code, Words low, Words high, int k) {
    if (code == CODE_FLOAT8) {
        Words bits = low >> (8 * k);
        return widen_small(bits & 0x7f, (bits & 0x80) << 24, 3, 7);
    }
    if (code == CODE_TABLE) return table_entry(w->table, low >> (4 * k));
    if (code == CODE_8) return __builtin_convertvector((Ints)(low >> (8 * k) & 0xff), Floats);
    if (code == CODE_4) return __builtin_convertvector((Ints)(low >> (4 * k) & 15), Floats);
    int more = code - CODE_4;
    Words bits = (low >> (4 * k) & 15) | (high >> (more * k) & ((1u << more) - 1)) << 4;
    return __builtin_convertvector((Ints)bits, Floats);
}

/* A code as a number. Bits of a code stay where they are, and its scale makes up for it, where that saves a shift. */
INLINE Floats number_of(const Packed *w, int code, int how, Words low, Words high, int k, const Scaling *s) {
    if (how != ADDED) {
        Floats number = code_number(w, code, low, high, k);
        if (code != CODE_TABLE && code != CODE_FLOAT8) number -= s->zero;
        return number * s->scale;
    }
    Words bits;
    int field = code == CODE_8 ? k % 3 : k % 4; /* the top byte is shifted down: a word shall not be negative */
    if (code == CODE_8) {
        bits = k == 3 ? low >> 24 : low & (0xffu << 8 * k);
    } else {
        int more = code - CODE_4, by = 4 * field + 4 - more * k;
        bits = (k < 4 ? low : low >> 16) & (15u << 4 * field);
        if (more) bits |= (by < 0 ? high >> -by : high << by) & (((1u << more) - 1) << (4 * field + 4));
    }
    return __builtin_convertvector((Ints)bits, Floats) * s->by[field] + s->added;
}

/* Codes of LANES outputs that one word holds, or holds the low bits of. */
INLINE int codes_of_word(int code) { return code == CODE_8 || code == CODE_FLOAT8 ? 4 : 8; }

INLINE int other_bits(int code) { return code == CODE_5 || code == CODE_6 ? code - CODE_4 : 0; }

/* The words of codes from an input on; what comes behind them is fetched. */
INLINE void get_codes(const Packed *w, int code, long inputs, long panel, long input, long lane, Words *low, Words *high) {
    const int each = codes_of_word(code), more = other_bits(code);
    const uint32_t *at = w->codes + (panel * (inputs / each) + input / each) * PANEL + lane;
    *low = get_words(at), *high = (Words){0};
    __builtin_prefetch(at + 16 * PANEL, 0, 2);
    if (more)
        *high = get_words(w->more + (panel * (inputs * more / 32) + input * more / 32) * PANEL + lane) >> (input * more % 32);
}

#define MOST_PIECE 64 /* inputs */

/* Where the piece of inputs from `from` on ends: of one group, but not so long that memory is not read in order. */
INLINE long piece_end(const Packed *w, int code, int how, long from, long end) {
    long stop = how & ANY_GROUP ? from + codes_of_word(code) : (from / w->group + 1) * w->group;
    if (stop > from + MOST_PIECE) stop = from + MOST_PIECE;
    return stop < end ? stop : end;
}

/* Inputs begin .. end - 1 of a panel as words [steps][PANEL]. */
INLINE void unpack_codes(const Packed *w, int code, int how, long inputs, long panel, long begin, long end, uint32_t *to) {
    const int each = codes_of_word(code);
    long stop;
    for (long from = begin; from < end; from = stop) {
        stop = piece_end(w, code, how, from, end);
        for (long lane = 0; lane < PANEL; lane += LANES) {
            Scaling s;
            if (!(how & ANY_GROUP)) s = scaling_of(w, code, how, panel, from / w->group, lane);
            for (long input = from; input < stop; input += each) {
                Words low, high;
                get_codes(w, code, inputs, panel, input, lane, &low, &high);
#pragma GCC unroll 8
                for (int k = 0; k < each; k += 2) {
                    Floats value[2];
                    uint32_t *at = to + (input - begin + k) / PAIR * PANEL + lane;
#pragma GCC unroll 2
                    for (int n = 0; n < 2; n++) {
                        if (how & ANY_GROUP) s = scaling_of(w, code, how, panel, w->group_of[input + k + n], lane);
                        value[n] = number_of(w, code, how, low, high, k + n, &s);
                    }
#if BF16
                    *(WordsAt *)at = joined(value[0], value[1]);
#else
                    put_floats((float *)at, value[0]);
                    put_floats((float *)at + PANEL, value[1]);
#endif
                }
            }
        }
    }
}

INLINE int how_of(const Packed *w) {
    int exact = w->scale_kind != SCALE_FLOAT || (!w->zeros && !w->zero);
    if (w->group_of) return ANY_GROUP;
    return w->code == CODE_TABLE || w->code == CODE_FLOAT8 ? TIMES : exact ? ADDED : SUBTRACTED;
}

/* A call of a loop over the codes of weights, compiled for what most of them are: of(code, how). */
#define FOR_CODES(w, of)                                                                                     \
    switch ((w)->code * 8 + how_of(w)) {                                                                     \
    case CODE_4 * 8 + ADDED: of(CODE_4, ADDED); break;                                                       \
    case CODE_5 * 8 + ADDED: of(CODE_5, ADDED); break;                                                       \
    case CODE_6 * 8 + ADDED: of(CODE_6, ADDED); break;                                                       \
    case CODE_8 * 8 + ADDED: of(CODE_8, ADDED); break;                                                       \
    case CODE_TABLE * 8 + TIMES: of(CODE_TABLE, TIMES); break;                                               \
    case CODE_FLOAT8 * 8 + TIMES: of(CODE_FLOAT8, TIMES); break;                                             \
    }

static __attribute__((noinline)) void unpack(const Packed *w, long inputs, long panel, long begin, long end, uint32_t *to) {
#define UNPACK(code, how) unpack_codes(w, code, how, inputs, panel, begin, end, to)
    FOR_CODES(w, UNPACK)
    switch (w->code * 8 + how_of(w)) { /* and the others */
    case CODE_4 * 8 + SUBTRACTED: UNPACK(CODE_4, SUBTRACTED); break;
    case CODE_8 * 8 + SUBTRACTED: UNPACK(CODE_8, SUBTRACTED); break;
    case CODE_4 * 8 + ANY_GROUP: UNPACK(CODE_4, ANY_GROUP); break;
    case CODE_8 * 8 + ANY_GROUP: UNPACK(CODE_8, ANY_GROUP); break;
    }
}

#if STRAIGHT
#define STRAIGHT_ROWS 4 /* up to which numbers go from codes into products without being put down between */
/* Vectors of outputs side by side: a sum waits for the one before it; but more rows, or two sums for each, need the
 * registers. */
#define BESIDE(rows) (!AMX && (rows) <= 2 ? 4 : 2)

#if AMX
#define SUMMED 32 /* inputs that a product of matrix tiles sums before it adds them */

/* Both rounded to bfloat16. */
INLINE void round_both(Floats *even, Floats *odd) {
    static const uint16_t order[2][32] = {
        {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,  0, 8,  0, 9,  0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15},
        {0, 16, 0, 17, 0, 18, 0, 19, 0, 20, 0, 21, 0, 22, 0, 23, 0, 24, 0, 25, 0, 26, 0, 27, 0, 28, 0, 29, 0, 30, 0, 31}};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)*odd, (__m512)*even);
    *even = (Floats)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, _mm512_loadu_si512(order[0]), both);
    *odd = (Floats)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, _mm512_loadu_si512(order[1]), both);
}

INLINE Floats fused(Floats a, float b, Floats sum) {
    return (Floats)_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(b), (__m512)sum);
}

/* sums[r][0 .. 63] = the products of `rows` rows with a panel, to the last bit what matrix tiles make of more: of every
 * 32 inputs the even ones and the odd ones are summed apart, a product and its sum rounded once, then added. (Tiles
 * take what is below 2^-126 for zero.) */
INLINE void multiply_codes(const Packed *w, int code, int how, int rows, const Left *const *left, long inputs, long panel,
                           float *sums) {
    const int each = codes_of_word(code), beside = BESIDE(rows);
    float parts[STRAIGHT_ROWS][2][PANEL], x[STRAIGHT_ROWS][MOST_PIECE];
    long stop;
    for (long from = 0; from < inputs; from = stop) {
        stop = piece_end(w, code, how, from, inputs);
        for (int r = 0; r < rows; r++) widen_row((const Elem *)left[r] + from, stop - from, x[r]);
        for (long lane = 0; lane < PANEL; lane += beside * LANES) {
            Scaling s[BESIDE(1)];
            Floats even[STRAIGHT_ROWS][BESIDE(1)], odd[STRAIGHT_ROWS][BESIDE(1)];
#pragma GCC unroll 4
            for (int v = 0; v < beside; v++) {
                long at = lane + v * LANES;
                s[v] = scaling_of(w, code, how, panel, from / w->group, at);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    even[r][v] = from % SUMMED ? get_floats(parts[r][0] + at) : splat(0);
                    odd[r][v] = from % SUMMED ? get_floats(parts[r][1] + at) : splat(0);
                }
            }
            for (long input = from; input < stop; input += each) {
                Words low[BESIDE(1)], high[BESIDE(1)];
#pragma GCC unroll 4
                for (int v = 0; v < beside; v++)
                    get_codes(w, code, inputs, panel, input, lane + v * LANES, low + v, high + v);
#pragma GCC unroll 8
                for (int k = 0; k < each; k += 2)
#pragma GCC unroll 4
                    for (int v = 0; v < beside; v++) {
                        Floats one = number_of(w, code, how, low[v], high[v], k, s + v);
                        Floats other = number_of(w, code, how, low[v], high[v], k + 1, s + v);
                        round_both(&one, &other);
#pragma GCC unroll 4
                        for (int r = 0; r < rows; r++) {
                            even[r][v] = fused(one, x[r][input - from + k], even[r][v]);
                            odd[r][v] = fused(other, x[r][input - from + k + 1], odd[r][v]);
                        }
                    }
                if ((input + each) % SUMMED) continue;
#pragma GCC unroll 4
                for (int v = 0; v < beside; v++)
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) {
                        float *to = sums + r * PANEL + lane + v * LANES;
                        Floats sum = input < SUMMED ? splat(0) : get_floats(to);
                        put_floats(to, sum + (even[r][v] + odd[r][v]));
                        even[r][v] = odd[r][v] = splat(0);
                    }
            }
#pragma GCC unroll 4
            for (int v = 0; v < beside; v++)
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    put_floats(parts[r][0] + lane + v * LANES, even[r][v]);
                    put_floats(parts[r][1] + lane + v * LANES, odd[r][v]);
                }
        }
    }
}
#else
/* sums[r][0 .. 63] = the products of `rows` rows with a panel. */
INLINE void multiply_codes(const Packed *w, int code, int how, int rows, const Left *const *left, long inputs, long panel,
                           float *sums) {
    const int each = codes_of_word(code), beside = BESIDE(rows);
    long stop;
    for (long from = 0; from < inputs; from = stop) {
        stop = piece_end(w, code, how, from, inputs);
        for (long lane = 0; lane < PANEL; lane += beside * LANES) {
            Scaling s[BESIDE(1)];
            Floats sum[STRAIGHT_ROWS][BESIDE(1)];
#pragma GCC unroll 4
            for (int v = 0; v < beside; v++) {
                s[v] = scaling_of(w, code, how, panel, from / w->group, lane + v * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++)
                    sum[r][v] = from ? get_floats(sums + r * PANEL + lane + v * LANES) : splat(0);
            }
            for (long input = from; input < stop; input += each) {
                Words low[BESIDE(1)], high[BESIDE(1)];
                const Left *factors[STRAIGHT_ROWS];
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) factors[r] = left[r] + LEFTS(input);
#pragma GCC unroll 4
                for (int v = 0; v < beside; v++)
                    get_codes(w, code, inputs, panel, input, lane + v * LANES, low + v, high + v);
#pragma GCC unroll 8
                for (int k = 0; k < each; k += 2)
#pragma GCC unroll 4
                    for (int v = 0; v < beside; v++) {
                        Floats even = number_of(w, code, how, low[v], high[v], k, s + v);
                        Floats odd = number_of(w, code, how, low[v], high[v], k + 1, s + v);
#pragma GCC unroll 4
                        for (int r = 0; r < rows; r++) {
                            const Left *factor = factors[r] + LEFTS(k);
#if DOT
                            sum[r][v] = mac(sum[r][v], joined(even, odd), *factor);
#else
                            sum[r][v] = mac(sum[r][v], (Words)even, factor[0]);
                            sum[r][v] = mac(sum[r][v], (Words)odd, factor[1]);
#endif
                        }
                    }
            }
#pragma GCC unroll 4
            for (int v = 0; v < beside; v++)
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) put_floats(sums + r * PANEL + lane + v * LANES, sum[r][v]);
        }
    }
}
#endif

#define MULTIPLY(rows)                                                                                       \
    static __attribute__((noinline)) void multiply_##rows(const Packed *w, const Left *const *left, long inputs, \
                                                          long panel, float *sums) {                         \
        FOR_CODES(w, MULTIPLY_##rows)                                                                        \
    }
#define MULTIPLY_1(code, how) multiply_codes(w, code, how, 1, left, inputs, panel, sums)
#define MULTIPLY_2(code, how) multiply_codes(w, code, how, 2, left, inputs, panel, sums)
#define MULTIPLY_4(code, how) multiply_codes(w, code, how, 4, left, inputs, panel, sums)
MULTIPLY(1)
MULTIPLY(2)
MULTIPLY(4)
#endif

/* Words of steps step .. step + count - 1 of a panel: where they are, or in `room`, where they are put. */
INLINE const uint32_t *words_of(const Product *p, long panel, long step, long count, uint32_t *room) {
    if (!p->packed) return (const uint32_t *)p->weight + (panel * (p->inputs / PAIR) + step) * PANEL;
    unpack(p->packed, p->inputs, panel, step * PAIR, (step + count) * PAIR, room);
    return room;
}

/* Where block number `block` of `blocks` begins: steps in equal parts, of whole words whatever they hold. */
INLINE long block_begin(const Product *p, long steps, long block, long blocks) {
    if (!p->packed) return steps * block / blocks;
    long together = INPUTS_TOGETHER / PAIR;
    return steps / together * block / blocks * together;
}
