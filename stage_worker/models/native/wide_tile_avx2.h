/* The tiles of wide_tile.h for AVX2, in assembly, for two reasons. Twelve sums and what is multiplied fill the 16
 * registers, and left to themselves compilers keep some sum in memory. And instructions count: beside a busy sibling
 * a core issues three per cycle, so some right operands come from memory in the multiplication itself. */

/* Registers: 0 to 3, 4 to 7 and 8 to 11 hold the sums of rows 0, 1 and 2; 12, 13 and 14 their left operands; 15 a
 * right operand, or a product. u: unit, v: vector of eight outputs. */
#define RIGHT(u, v) "128*" #u "+32*" #v "(%[right])"
#define LEFT(u, r) "vbroadcastss 4*" #u "(%[left]" ROW_##r ", %%ymm1" #r "\n\t"
#define ROW_2 ")" /* of the row whose left operand is in register 12, and so on */
#define ROW_3 ",%[row])"
#define ROW_4 ",%[row],2)"
#define HELD(u, v) "vmovups " RIGHT(u, v) ", %%ymm15\n\t"
#define FMA(left, right, sum) "vfmadd231ps " right ", %%ymm1" #left ", %%ymm" #sum "\n\t"
#define MADD(left, right, sum)                                                                               \
    "vpmaddwd " right ", %%ymm1" #left ", %%ymm15\n\tvpaddd %%ymm15, %%ymm" #sum ", %%ymm" #sum "\n\t"
#define FLOATS_3(u)                                                                                          \
    LEFT(u, 2) LEFT(u, 3) LEFT(u, 4)                                                                         \
    HELD(u, 0) FMA(2, "%%ymm15", 0) FMA(3, "%%ymm15", 4) FMA(4, "%%ymm15", 8)                                \
    HELD(u, 1) FMA(2, "%%ymm15", 1) FMA(3, "%%ymm15", 5) FMA(4, "%%ymm15", 9)                                \
    HELD(u, 2) FMA(2, "%%ymm15", 2) FMA(3, "%%ymm15", 6) FMA(4, "%%ymm15", 10)                               \
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
#define WIDE_TILE(name, rows, unit)                                                                          \
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
WIDE_TILE(fewer_floats, ROWS_2, FLOATS_2)
WIDE_TILE(most_floats, ROWS_3, FLOATS_3)
WIDE_TILE(fewer_bytes, ROWS_2, BYTES_2)
WIDE_TILE(most_bytes, ROWS_3, BYTES_3)
