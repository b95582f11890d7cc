/* Weights of few bits: a block of them becomes words of packed weights, which the tiles of product.h multiply. What
 * is multiplied is what the same weights, unpacked at load, would be: results are the same to the last bit. */

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

/* What makes numbers of codes, for LANES outputs: (code - zero) * scale + least. */
typedef struct {
    Floats scale, zero, least;
} Scaling;

/* What a loop over codes is compiled for: what weights have beside codes and scales. */
#define ZEROS 1
#define LEAST 2
#define ANY_GROUP 4 /* inputs of a group stand anywhere */

INLINE Scaling scaling_of(const Packed *w, int has, long panel, long group, long lane) {
    long at = (panel * w->groups + group) * PANEL + lane;
    Scaling s = {scale_numbers(w->scales, at, w->scale_kind), splat(w->zero), splat(0)};
    if (has & ZEROS) s.zero = scale_numbers(w->zeros, at, w->scale_kind);
    if (has & LEAST) s.least = scale_numbers(w->least, at, w->scale_kind);
    if (w->units) { /* scales are multiples of a unit that several groups share */
        long of = (panel * w->unit_count + group / w->groups_per_unit) * PANEL + lane;
        s.scale = settled(s.scale * half_floats(w->units + of));
        if (has & LEAST) s.least = settled(s.least * half_floats(w->least_units + of));
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

/* Two inputs that stand side by side, for LANES outputs, to where packed weights have them. */
INLINE void put_inputs(uint32_t *to, Floats even, Floats odd) {
#if DOT
    static const uint16_t order[32] = {0,  16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8,  24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    *(WordsAt *)to = (Words)_mm512_permutexvar_epi16(_mm512_loadu_si512(order), both);
#elif BF16
    *(WordsAt *)to = (upper_halves(even) >> 16) | (upper_halves(odd) & 0xffff0000u);
#else
    put_floats((float *)to, even);
    put_floats((float *)to + PANEL, odd);
#endif
}

/* Number k of the codes whose low (or all) bits are in `low`; their other bits, if any, are in `high`. */
INLINE Floats code_number(const Packed *w, int code, Words low, Words high, int k) {
    if (code == CODE_FLOAT8) {
        Words bits = low >> (8 * k);
        return widen_small(bits & 0x7f, (bits & 0x80) << 24, 3, 7);
    }
    if (code == CODE_8) return __builtin_convertvector((Ints)(low >> (8 * k) & 0xff), Floats);
    if (code == CODE_4) return table_entry(w->table, low >> (4 * k));
    int more = code - CODE_4;
    Words bits = (low >> (4 * k) & 15) | (high >> (more * k) & ((1u << more) - 1)) << 4;
    return __builtin_convertvector((Ints)bits, Floats);
}

/* A code as a number. The zero of a table is in its entries already. */
INLINE Floats number_of(const Packed *w, int code, int has, Words low, Words high, int k, const Scaling *s) {
    Floats number = code_number(w, code, low, high, k);
    if ((has & ZEROS) || (code != CODE_4 && code != CODE_FLOAT8)) number -= s->zero;
    number *= s->scale;
    return has & LEAST ? settled(number) + s->least : number;
}

/* Inputs begin .. end - 1 of a panel as words [steps][PANEL]. */
INLINE void unpack_codes(const Packed *w, int code, int has, long inputs, long panel, long begin, long end, uint32_t *to) {
    const int each = code == CODE_8 || code == CODE_FLOAT8 ? 4 : 8; /* inputs that a word has the low bits of */
    const int more = code == CODE_5 || code == CODE_6 ? code - CODE_4 : 0;
    const uint32_t *low = w->codes + panel * (inputs / each) * PANEL;
    const uint32_t *high = more ? w->more + panel * (inputs * more / 32) * PANEL : 0;
    long stop;
    for (long from = begin; from < end; from = stop) {
        /* A piece with one scale, if there is one, but not so long that its memory is not read in order. */
        stop = has & ANY_GROUP ? from + each : (from / w->group + 1) * w->group;
        if (stop > from + 64) stop = from + 64;
        if (stop > end) stop = end;
        for (long lane = 0; lane < PANEL; lane += LANES) {
            Scaling s;
            if (!(has & ANY_GROUP)) s = scaling_of(w, has, panel, from / w->group, lane);
            for (long input = from; input < stop; input += each) {
                const uint32_t *at = low + input / each * PANEL + lane;
                Words bits = get_words(at), others = {0};
                __builtin_prefetch(at + 16 * PANEL, 0, 2);
                if (more) others = get_words(high + input * more / 32 * PANEL + lane) >> (input * more % 32);
#pragma GCC unroll 8
                for (int k = 0; k < each; k += 2) {
                    Floats value[2];
#pragma GCC unroll 2
                    for (int n = 0; n < 2; n++) {
                        if (has & ANY_GROUP) s = scaling_of(w, has, panel, w->group_of[input + k + n], lane);
                        value[n] = number_of(w, code, has, bits, others, k + n, &s);
                    }
                    put_inputs(to + (input - begin + k) / PAIR * PANEL + lane, value[0], value[1]);
                }
            }
        }
    }
}

static __attribute__((noinline)) void unpack(const Packed *w, long inputs, long panel, long begin, long end, uint32_t *to) {
#define UNPACK(code, has)                                                                                    \
    case (code) * 8 + (has): unpack_codes(w, code, has, inputs, panel, begin, end, to); break
    switch (w->code * 8 + (w->zeros ? ZEROS : 0) + (w->least ? LEAST : 0) + (w->group_of ? ANY_GROUP : 0)) {
        UNPACK(CODE_4, 0);
        UNPACK(CODE_4, ZEROS);
        UNPACK(CODE_4, LEAST);
        UNPACK(CODE_4, ANY_GROUP);
        UNPACK(CODE_4, ANY_GROUP | ZEROS);
        UNPACK(CODE_5, 0);
        UNPACK(CODE_5, LEAST);
        UNPACK(CODE_6, 0);
        UNPACK(CODE_8, 0);
        UNPACK(CODE_8, ZEROS);
        UNPACK(CODE_8, ANY_GROUP);
        UNPACK(CODE_8, ANY_GROUP | ZEROS);
        UNPACK(CODE_FLOAT8, 0);
    }
}

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
