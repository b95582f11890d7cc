/* Tiles of products of many rows, where a CPU has no dot products for their type. Their operands have been brought
 * into the form that is multiplied, once for all tiles that need them. */

#define MANY_ROWS 24 /* rows from which on that pays */
#define WIDE_VECTORS 4
#define WIDE (WIDE_VECTORS * LANES) /* outputs of a tile */
#define TILE_ROWS (LANES == 16 ? 6 : 3) /* and its rows, or one less; MANY_ROWS or more can be cut so */

/* The right operands of a tile, in units of one multiplication; words are floats, or two 16-bit numbers. */
typedef uint32_t Right[WIDE];

/* A vector of packed right operands, number v of step number `step` of `steps`. */
INLINE void put_right(int bytes, int with_sign, Words words, long step, long steps, int v, Right *right) {
#pragma GCC unroll 2
    for (int part = 0; part < (bytes ? BYTE_PARTS : PARTS); part++) {
        Words operand = bytes ? byte_part(words, part, with_sign) : part_of(words, part);
        long unit = bytes ? part * steps + step : step * PARTS + part;
        *(WordsAt *)(right[unit] + v * LANES) = operand;
    }
}

/* Tiles go two units at a time: add one of nothing to an odd number. */
INLINE long even_units(long units, Right *right) {
    if (units % 2) __builtin_memset(right[units], 0, sizeof *right);
    return units + units % 2;
}

/* sums[r][0 .. WIDE - 1] += the products of row r of the left operands with the right ones. `units` is even.
 * Strides count words. */
typedef void WideTile(const uint32_t *left, long left_stride, long units, const Right *right, uint32_t *sums,
                      long sums_stride);

#if LANES == 8
#include "wide_tile_avx2.h"
#else
#define FLOATS_OF(sum, right, left) (Words)mac((Floats)(sum), right, *(const Left *)(left))
#define BYTES_OF(sum, right, left) (Words)mac_bytes((Ints)(sum), right, *(left), 0)
#define UNROLLED _Pragma("GCC unroll 6")
#define WIDE_TILE(name, rows, one)                                                                           \
    static __attribute__((noinline)) void name(const uint32_t *left, long left_stride, long units,           \
                                               const Right *right, uint32_t *sums, long sums_stride) {       \
        Words sum[rows][WIDE_VECTORS];                                                                       \
        UNROLLED for (int r = 0; r < rows; r++)                                                              \
            UNROLLED for (int v = 0; v < WIDE_VECTORS; v++)                                                  \
                sum[r][v] = get_words(sums + r * sums_stride + v * LANES);                                   \
        for (long u = 0; u < units; u++)                                                                     \
            UNROLLED for (int r = 0; r < rows; r++)                                                          \
                UNROLLED for (int v = 0; v < WIDE_VECTORS; v++)                                              \
                    sum[r][v] = one(sum[r][v], get_words(right[u] + v * LANES), left + r * left_stride + u); \
        UNROLLED for (int r = 0; r < rows; r++)                                                              \
            UNROLLED for (int v = 0; v < WIDE_VECTORS; v++)                                                  \
                *(WordsAt *)(sums + r * sums_stride + v * LANES) = sum[r][v];                                \
    }
WIDE_TILE(fewer_floats, TILE_ROWS - 1, FLOATS_OF)
WIDE_TILE(most_floats, TILE_ROWS, FLOATS_OF)
WIDE_TILE(fewer_bytes, TILE_ROWS - 1, BYTES_OF)
WIDE_TILE(most_bytes, TILE_ROWS, BYTES_OF)
#endif

/* The products of `rows` rows, MANY_ROWS or more, with one set of right operands. */
INLINE void wide_tiles(int bytes, long rows, const uint32_t *left, long left_stride, long units, const Right *right,
                       uint32_t *sums, long sums_stride) {
    long chunks = (rows + TILE_ROWS - 1) / TILE_ROWS;
    WideTile *fewer = bytes ? fewer_bytes : fewer_floats, *most = bytes ? most_bytes : most_floats;
    for (long chunk = 0; chunk < chunks; chunk++) {
        long begin = rows * chunk / chunks, end = rows * (chunk + 1) / chunks;
        WideTile *tile = end - begin == TILE_ROWS ? most : fewer;
        tile(left + begin * left_stride, left_stride, units, right, sums + begin * sums_stride, sums_stride);
    }
}
