/* Vectors, and the two tiles that all heavy work is made of.
 * BF16: 1 for bfloat16 data, 0 for float. LANES: floats per vector. DOT: 1 with bfloat16 dot products.
 * VNNI: 1 with int8 dot products. AMX: 1 with matrix tiles, of both. */
#ifndef TIDEPIPE_TILE_H
#define TIDEPIPE_TILE_H

#include "native.h"

#define INLINE static inline __attribute__((always_inline))
#define KERNEL __attribute__((noinline)) void /* called from Python, or by another kernel */
#define PAIR (BF16 ? 2 : 1)
#define PARTS (BF16 && !DOT ? 2 : 1) /* multiplications that one word of packed weights takes */
#define VECTORS (GROUP / LANES)      /* per group of 16 */
/* Groups whose sums the registers hold beside each other, for so many rows. Few rows take more groups: a sum
 * waits for the one before it, so that only independent ones keep the multipliers busy. */
#define TILE_GROUPS(rows) (LANES == 16 || (LANES == 8 && (rows) == 1) ? PANEL / GROUP : LANES == 8 && (rows) <= 3 ? 2 : 1)
#define MOST_VECTORS (LANES == 16 ? 4 : 8)

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(4 * LANES)));
typedef float FloatsAt __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t WordsAt __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t IntsAt __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int8_t BytesAt __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t HalvesAt __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#if BF16
typedef uint16_t Elem;
#else
typedef float Elem;
#endif

/* The left operand of a product, PARTS of them a step: DOT a pair as it lies in memory, else a float. */
#if DOT
typedef uint32_t Left;
#else
typedef float Left;
#endif
#define LEFTS(count) ((count) / PAIR * PARTS) /* for so many elements */

INLINE float widen(Elem value) {
#if BF16
    union {
        uint32_t bits;
        float number;
    } word = {(uint32_t)value << 16};
    return word.number;
#else
    return value;
#endif
}

INLINE Elem narrow(float value) {
#if BF16
    union {
        float number;
        uint32_t bits;
    } word = {value};
    uint32_t rounded = (word.bits + 0x7fff + ((word.bits >> 16) & 1)) >> 16;
    return value == value ? (uint16_t)rounded : 0x7fc0;
#else
    return value;
#endif
}

/* The value as rounded here: compilers may merge a product and the sum it goes into, one place doing so and another
 * not, though both shall give the same. */
INLINE Floats settled(Floats value) {
#if LANES == 16
    __asm__("" : "+v"(value));
#elif LANES == 8 || defined __x86_64__
    __asm__("" : "+x"(value));
#elif defined __aarch64__
    __asm__("" : "+w"(value));
#else
    __asm__("" : "+m"(value));
#endif
    return value;
}

INLINE Floats splat(float value) { return (Floats){0} + value; }

INLINE Floats blend(Ints mask, Floats yes, Floats no) {
    return (Floats)(((Ints)yes & mask) | ((Ints)no & ~mask));
}

/* The larger one per lane; b where one is no number. */
INLINE Floats larger(Floats a, Floats b) {
#if LANES == 16
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return blend(a > b, a, b);
#endif
}

/* Halves become words, and words that are small enough halves; for vectors of eight compilers take several times the
 * instructions. */
INLINE Words widen_halves(HalvesAt halves) {
#if LANES == 8
    return (Words)_mm256_cvtepu16_epi32((__m128i)halves);
#else
    return __builtin_convertvector(halves, Words);
#endif
}

INLINE HalvesAt narrow_words(Words words) {
#if LANES == 8
    __m256i all = (__m256i)words;
    return (HalvesAt)_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
#else
    return __builtin_convertvector(words, HalvesAt);
#endif
}

/* bfloat16 in the upper halves; what the lower ones hold is to be ignored. */
INLINE Words upper_halves(Floats value) {
    Words bits = (Words)value;
    Words rounded = bits + 0x7fff + ((bits >> 16) & 1);
#if LANES == 8
    __m256 none = _mm256_cmp_ps((__m256)value, (__m256)value, _CMP_UNORD_Q);
    return (Words)_mm256_blendv_ps((__m256)rounded, (__m256)_mm256_set1_epi32(0x7fc00000), none);
#else
    Ints number = value == value;
    return (rounded & (Words)number) | (0x7fc00000u & (Words)~number);
#endif
}

INLINE Floats load(const Elem *from) {
#if BF16
    return (Floats)(widen_halves(*(const HalvesAt *)from) << 16);
#else
    return *(const FloatsAt *)from;
#endif
}

INLINE void store(Elem *to, Floats value) {
#if DOT
    *(HalvesAt *)to = (HalvesAt)_mm512_cvtneps_pbh((__m512)value);
#elif BF16
    *(HalvesAt *)to = narrow_words(upper_halves(value) >> 16);
#else
    *(FloatsAt *)to = value;
#endif
}

/* As it would be after being stored and loaded. */
INLINE Floats stored(Floats value) {
#if DOT
    return (Floats)(widen_halves((HalvesAt)_mm512_cvtneps_pbh((__m512)value)) << 16);
#elif BF16
    return (Floats)(upper_halves(value) & 0xffff0000u);
#else
    return value;
#endif
}

INLINE float larger_one(float a, float b) { return a > b ? a : b; }

#if LANES == 16
INLINE float sum_lanes(Floats value) { return _mm512_reduce_add_ps((__m512)value); }

INLINE float largest_lane(Floats value) { return _mm512_reduce_max_ps((__m512)value); }
#elif LANES == 8
/* The lanes folded in half, three times. */
#define FOLD(op)                                                                                             \
    __m128 four = op(_mm256_castps256_ps128((__m256)value), _mm256_extractf128_ps((__m256)value, 1));        \
    __m128 two = op(four, _mm_movehl_ps(four, four));                                                        \
    return _mm_cvtss_f32(op(two, _mm_movehdup_ps(two)))

INLINE float sum_lanes(Floats value) { FOLD(_mm_add_ps); }

INLINE float largest_lane(Floats value) { FOLD(_mm_max_ps); }
#else
INLINE float sum_lanes(Floats value) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += value[lane];
    return total;
}

INLINE float largest_lane(Floats value) {
    float best = value[0];
    for (int lane = 1; lane < LANES; lane++) best = larger_one(value[lane], best);
    return best;
}
#endif

/* Two shifts shall stay two shifts: a mask would take a register, and tiles fill 16 to the last one. */
#if LANES == 8
#define TWO_STEPS(value) __asm__("" : "+x"(value))
#else
#define TWO_STEPS(value) (void)0
#endif

/* The right operand of one multiplication, of a word of packed weights. */
INLINE Words part_of(Words weights, int part) {
    if (PARTS == 1) return weights;
    if (part) {
        weights >>= 16;
        TWO_STEPS(weights);
    }
    return weights << 16;
}

/* One multiplication of a product, for LANES outputs. */
INLINE Floats mac(Floats sum, Words weights, Left left) {
#if DOT
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32((int)left));
#else
#if LANES == 8
    Floats factor = (Floats)_mm256_set1_ps(left);
    /* In place, in this order: compilers choose others, and spill sums. */
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(weights), "x"(factor));
    return sum;
#else
    return sum + (Floats)weights * left;
#endif
#endif
}

/* A step with the second of the pair ignored, whatever it holds. */
INLINE Floats mac_first(Floats sum, Words weights, const Left *left) {
#if DOT
    return mac(sum, weights & 0xffffu, *left & 0xffffu);
#else
    return mac(sum, part_of(weights, 0), *left);
#endif
}

/* The same address, of which the compiler does not know it: what is there is read anew, instead of being kept in
 * one of few registers. */
INLINE const uint32_t *anew(const uint32_t *at) {
    __asm__("" : "+r"(at));
    return at;
}

INLINE Floats get_floats(const float *from) { return *(const FloatsAt *)from; }

INLINE void put_floats(float *to, Floats value) { *(FloatsAt *)to = value; }

/* `count` elements become floats. */
INLINE void widen_row(const Elem *from, long count, float *to) {
    long i = 0;
    for (; i + LANES <= count; i += LANES) put_floats(to + i, load(from + i));
    for (; i < count; i++) to[i] = widen(from[i]);
}

INLINE Words get_words(const uint32_t *from) { return *(const WordsAt *)from; }

/* sum[r][v] += the words at[v] times factor[r]. Of what 16 registers hold beside the sums, the fewer kind stays:
 * with few rows the factors, else the words. */
INLINE void mac_tile(int rows, int vectors, const uint32_t *const *at, int part, const Left *factor,
                     Floats (*sum)[MOST_VECTORS]) {
    Words words[MOST_VECTORS];
    if (LANES == 8 && rows <= 3) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            words[0] = part_of(get_words(part ? anew(at[v]) : at[v]), part);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) sum[r][v] = mac(sum[r][v], words[0], factor[r]);
        }
        return;
    }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) words[v] = part_of(get_words(part ? anew(at[v]) : at[v]), part);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = mac(sum[r][v], words[v], factor[r]);
}

/* out[r][0 .. 63] (+)= sum over steps of left[r][step] * right, for `rows` (a constant, at most 6) rows.
 * right[g]: the g-th group of 16 columns, `stride` words from step to step.
 * next: null, or what will be `right` soon, in any order: it is fetched into the cache meanwhile. */
INLINE void tile_columns(int rows, const Left *const *left, long steps, const uint32_t *const *right, long stride,
                         const uint32_t *const *next, long next_stride, int accumulate, float *out,
                         long out_stride) {
    const int groups = TILE_GROUPS(rows), vectors = groups * VECTORS;
    for (int first = 0; first < PANEL / GROUP; first += groups) {
        Floats sum[6][MOST_VECTORS];
        float *to = out + first * GROUP;
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sum[r][v] = accumulate ? get_floats(to + r * out_stride + v * LANES) : splat(0);
        for (long step = 0; step < steps; step++) {
#pragma GCC unroll 4
            for (int g = 0; next && g < groups; g++) __builtin_prefetch(next[first + g] + step * next_stride, 0, 2);
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; part++) {
                const uint32_t *at[MOST_VECTORS];
                Left factor[6];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++)
                    at[v] = right[first + v / VECTORS] + step * stride + v % VECTORS * LANES;
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) factor[r] = left[r][step * PARTS + part];
                mac_tile(rows, vectors, at, part, factor, sum);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) put_floats(to + r * out_stride + v * LANES, sum[r][v]);
    }
}

/* out[r][0 .. groups * 16 - 1] = out * decay[r] + sum over `slots` KV slots of left[r][slot] * values.
 * values[s]: the s-th 16 slots, [16 / pair][stride words]. next: null, or for each 16 slots what is fetched. */
INLINE void tile_slots(int rows, const Left *const *left, long slots, const uint32_t *const *values,
                       const uint32_t *const *next, long stride, int groups, const float *decay, float *out,
                       long out_stride) {
    Floats sum[6][MOST_VECTORS];
    int vectors = groups * VECTORS;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sum[r][v] = get_floats(out + r * out_stride + v * LANES) * decay[r];
    long done = 0;
    for (int sixteen = 0; done + PAIR <= slots; sixteen++) {
        const uint32_t *words = values[sixteen], *ahead = next ? next[sixteen] : 0;
        for (int pair = 0; pair < GROUP / PAIR && done + PAIR <= slots; pair++, done += PAIR) {
#pragma GCC unroll 4
            for (int g = 0; next && g < groups; g++)
                __builtin_prefetch(ahead + (pair * groups + g) * GROUP, 0, 2);
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; part++) {
                const uint32_t *at[MOST_VECTORS];
                Left factor[6];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++) at[v] = words + pair * stride + v * LANES;
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) factor[r] = left[r][done / PAIR * PARTS + part];
                mac_tile(rows, vectors, at, part, factor, sum);
            }
        }
    }
    if (done < slots) { /* half a pair: the other half is not this sequence's */
        const uint32_t *words = values[done / GROUP] + done % GROUP / PAIR * stride;
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sum[r][v] = mac_first(sum[r][v], get_words(words + v * LANES), left[r] + done / PAIR * PARTS);
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) put_floats(out + r * out_stride + v * LANES, sum[r][v]);
}

#endif
