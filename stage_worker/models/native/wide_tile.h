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
/* In assembly, for two reasons. Twelve sums and what is multiplied fill the 16 registers, and left to themselves
 * compilers keep some sum in memory. And instructions count: beside a busy sibling a core issues three per cycle,
 * so some right operands come from memory in the multiplication itself, and as many as the load ports bear. */
#define RIGHT(u, v) "128*" #u "+32*" #v "(%[right])"
#define LEFT(u, r) "vbroadcastss 4*" #u "(%[left]" ROW_##r ", %%ymm1" #r "\n\t"
#define ROW_2 ")"
#define ROW_3 ",%[row])"
#define ROW_4 ",%[row],2)"
#define HELD(u, v) "vmovups " RIGHT(u, v) ", %%ymm15\n\t"
#define FMA(left, right, sum) "vfmadd231ps " right ", %%ymm1" #left ", %%ymm" #sum "\n\t"
#define MADD(left, right, sum)                                                                               \
    "vpmaddwd " right ", %%ymm1" #left ", %%ymm15\n\tvpaddd %%ymm15, %%ymm" #sum ", %%ymm" #sum "\n\t"
/* Row r, of the left operand in register 10 + r, has the sums a to d. */
#define FLOATS_3(u)                                                                                          \
    LEFT(u, 2) LEFT(u, 3) LEFT(u, 4)                                                                         \
    HELD(u, 0) FMA(2, "%%ymm15", 0) FMA(3, "%%ymm15", 4) FMA(4, "%%ymm15", 8)                                \
    HELD(u, 1) FMA(2, "%%ymm15", 1) FMA(3, "%%ymm15", 5) FMA(4, "%%ymm15", 9)                                \
    HELD(u, 2) FMA(2, "%%ymm15", 2) FMA(3, "%%ymm15", 6) FMA(4, "%%ymm15", 10)                                    \
    FMA(2, RIGHT(u, 3), 3) FMA(3, RIGHT(u, 3), 7) FMA(4, RIGHT(u, 3), 11)
#define FLOATS_2(u)                                                                                          \
    LEFT(u, 2) LEFT(u, 3)                                                                                    \
    FMA(2, RIGHT(u, 0), 0) FMA(3, RIGHT(u, 0), 4) FMA(2, RIGHT(u, 1), 1) FMA(3, RIGHT(u, 1), 5)              \
    FMA(2, RIGHT(u, 2), 2) FMA(3, RIGHT(u, 2), 6) FMA(2, RIGHT(u, 3), 3) FMA(3, RIGHT(u, 3), 7)
#define BYTES_2(u)                                                                                           \
    LEFT(u, 2) LEFT(u, 3)                                                                                    \
    MADD(2, RIGHT(u, 0), 0) MADD(3, RIGHT(u, 0), 4) MADD(2, RIGHT(u, 1), 1) MADD(3, RIGHT(u, 1), 5)          \
    MADD(2, RIGHT(u, 2), 2) MADD(3, RIGHT(u, 2), 6) MADD(2, RIGHT(u, 3), 3) MADD(3, RIGHT(u, 3), 7)
#define BYTES_3(u)                                                                                           \
    LEFT(u, 4) BYTES_2(u)                                                                                    \
    MADD(4, RIGHT(u, 0), 8) MADD(4, RIGHT(u, 1), 9) MADD(4, RIGHT(u, 2), 10) MADD(4, RIGHT(u, 3), 11)
#define GET_ROW(r, a, b, c, d) GET(r, 0, a) GET(r, 1, b) GET(r, 2, c) GET(r, 3, d)
#define PUT_ROW(r, a, b, c, d) PUT(r, 0, a) PUT(r, 1, b) PUT(r, 2, c) PUT(r, 3, d)
#define GET(r, v, sum) "vmovups 32*" #v "(%[sums]" r ", %%ymm" #sum "\n\t"
#define PUT(r, v, sum) "vmovups %%ymm" #sum ", 32*" #v "(%[sums]" r "\n\t"
#define ROWS_2(row) row(")", 0, 1, 2, 3) row(",%[out])", 4, 5, 6, 7)
#define ROWS_3(row) ROWS_2(row) row(",%[out],2)", 8, 9, 10, 11)
#define BLOCK_TILE(name, rows, unit)                                                                         \
    static __attribute__((noinline)) void name(const uint32_t *left, long left_stride, long units,           \
                                               const Right *right, uint32_t *sums, long sums_stride) {       \
        __asm__ volatile(rows(GET_ROW) "1:\n\t" unit(0) unit(1) "add $8, %[left]\n\t"                        \
                                       "add $256, %[right]\n\t"                                              \
                                       "sub $2, %[units]\n\t"                                                \
                                       "jnz 1b\n\t" rows(PUT_ROW)                                            \
                         : [left] "+r"(left), [right] "+r"(right), [units] "+r"(units)                       \
                         : [sums] "r"(sums), [row] "r"(4 * left_stride), [out] "r"(4 * sums_stride)          \
                         : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",   \
                           "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");            \
    }
BLOCK_TILE(fewer_floats, ROWS_2, FLOATS_2)
BLOCK_TILE(most_floats, ROWS_3, FLOATS_3)
BLOCK_TILE(fewer_bytes, ROWS_2, BYTES_2)
BLOCK_TILE(most_bytes, ROWS_3, BYTES_3)
#else
#define MAC_FLOATS(sum, right, left) (Words)mac((Floats)sum, right, *(const Left *)(left))
#define MAC_BYTES(sum, right, left) (Words)mac_bytes((Ints)sum, right, *(left), 0)
#define BLOCK_TILE(name, rows, mac_unit)                                                                     \
    static __attribute__((noinline)) void name(const uint32_t *left, long left_stride, long units,           \
                                               const Right *right, uint32_t *sums, long sums_stride) {       \
        Words sum[rows][WIDE_VECTORS];                                                                       \
        for (int r = 0; r < rows; r++)                                                                       \
            for (int v = 0; v < WIDE_VECTORS; v++) sum[r][v] = get_words(sums + r * sums_stride + v * LANES);      \
        for (long unit = 0; unit < units; unit++)                                                            \
            for (int r = 0; r < rows; r++)                                                                   \
                for (int v = 0; v < WIDE_VECTORS; v++)                                                       \
                    sum[r][v] = mac_unit(sum[r][v], get_words(right[unit] + v * LANES), left + r * left_stride + unit);     \
        for (int r = 0; r < rows; r++)                                                                       \
            for (int v = 0; v < WIDE_VECTORS; v++) *(WordsAt *)(sums + r * sums_stride + v * LANES) = sum[r][v];   \
    }
BLOCK_TILE(fewer_floats, TILE_ROWS - 1, MAC_FLOATS)
BLOCK_TILE(most_floats, TILE_ROWS, MAC_FLOATS)
BLOCK_TILE(fewer_bytes, TILE_ROWS - 1, MAC_BYTES)
BLOCK_TILE(most_bytes, TILE_ROWS, MAC_BYTES)
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
