/* What a core can multiply at most: independent sums that never leave the registers. Compiled by bench.roofline
 * with the options of the kernels for this CPU. Each function returns the operations (2 per product) it did. */
#include <immintrin.h>

#include "tile.h"

#include "bytes.h"

#define SUMS (LANES == 16 ? 24 : 12)

/* Else equal products would be computed once, for all sums and turns. */
#if LANES == 16
#define OPAQUE(value) __asm__ volatile("" : "+v"(value))
#else
#define OPAQUE(value) __asm__ volatile("" : "+x"(value))
#endif

double peak_products(long turns, float *out) {
    Floats sum[SUMS] = {{0}};
    Words right = (Words)splat(0.5f);
#if DOT
    Left left = 0x3f003f00; /* two halves */
#else
    Left left = 0.5f;
#endif
    for (long turn = 0; turn < turns; turn++) {
#pragma GCC unroll 24
        for (int s = 0; s < SUMS; s++) {
            OPAQUE(right);
            sum[s] = mac(sum[s], right, left);
        }
    }
    for (int s = 0; s < SUMS; s++) put_floats(out + s * LANES, sum[s]);
    return 2.0 * turns * SUMS * LANES * PAIR / PARTS;
}

double peak_byte_products(long turns, float *out) {
    Ints sum[SUMS] = {{0}};
    Words right = (Words)((Ints){0} + 0x00010001);
    for (long turn = 0; turn < turns; turn++) {
#pragma GCC unroll 24
        for (int s = 0; s < SUMS; s++) {
            OPAQUE(right);
            sum[s] = mac_bytes(sum[s], right, 0x00010001, 0);
        }
    }
    for (int s = 0; s < SUMS; s++) put_floats(out + s * LANES, (Floats)sum[s]);
    return 2.0 * turns * SUMS * LANES * 4 / BYTE_PARTS;
}
