/* Products of many rows, where a CPU has no dot products for their type: operands are brought into the form that
 * is multiplied once for all tiles that need them, instead of in each. The order of sums stays that of product.h. */

#define MANY_ROWS 24  /* rows from which on this pays */
#define BLOCK_ROWS 144 /* of x, ... */
#define BLOCK_UNITS 192 /* multiplications of an output, ... */
#define BLOCK_PANELS 4 /* and panels: what a block works on fits the second-level cache, */
#define WIDE_VECTORS 4
#define WIDE (WIDE_VECTORS * LANES) /* and the right operands of one tile the first-level one */
#define TILE_ROWS (LANES == 16 ? 6 : 3)

/* A block's operands and sums; words are floats, or two 16-bit numbers of bytes (their sums int32). */
typedef struct {
    uint32_t left[BLOCK_ROWS + 6][BLOCK_UNITS];
    uint32_t right[BLOCK_UNITS][WIDE];
    uint32_t sums[BLOCK_PANELS][BLOCK_ROWS * PANEL];
} Block;

/* Rows of x from `input` onwards become left operands. */
INLINE void put_left(const Product *p, int bytes, long row, long count, long input, long inputs, Block *block) {
    for (long r = 0; r < count; r++) {
        long at = (row + r) * p->inputs + input, i = 0;
        if (bytes) {
            put_byte_parts((const uint32_t *)(p->bytes.values + at), inputs / 4, 1, block->left[r], inputs / 4);
            continue;
        }
        const Elem *from = (const Elem *)p->x + at;
        float *to = (float *)block->left[r];
        for (; i + LANES <= inputs; i += LANES) put_floats(to + i, load(from + i));
        for (; i < inputs; i++) to[i] = widen(from[i]);
    }
}

/* `steps` packed weights of WIDE outputs become right operands. */
INLINE void put_right(int bytes, const uint32_t *weights, long steps, Block *block) {
    for (long step = 0; step < steps; step++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE_VECTORS; v++) {
            Words words = get_words(weights + step * PANEL + v * LANES);
#pragma GCC unroll 2
            for (int part = 0; part < (bytes ? BYTE_PARTS : PARTS); part++) {
                long unit = bytes ? part * steps + step : step * PARTS + part;
                *(WordsAt *)(block->right[unit] + v * LANES) =
                    bytes ? byte_part(words, part, 0) : part_of(words, part);
            }
        }
}

/* A tile: sums[r][0 .. WIDE - 1] += the products of TILE_ROWS (or one row less) left operands with the right ones,
 * an even number of units. */
#if LANES == 8
/* In assembly, for two reasons. Twelve sums and what is multiplied fill the 16 registers, and left to themselves
 * compilers keep some sum in memory. And instructions count: beside a busy sibling a core issues three per cycle,
 * so some right operands come from memory in the multiplication itself, and as many as the load ports bear. */
#define RIGHT(u, v) "128*" #u "+32*" #v "(%[right])"
#define LEFT(u, r) "vbroadcastss 4*" #u "+(" #r "-2)*%c[row](%[left]), %%ymm1" #r "\n\t"
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
#define GET(r, v, sum) "vmovups " #r "*%c[out]+32*" #v "(%[sums]), %%ymm" #sum "\n\t"
#define PUT(r, v, sum) "vmovups %%ymm" #sum ", " #r "*%c[out]+32*" #v "(%[sums])\n\t"
#define ROWS_2(row) row(0, 0, 1, 2, 3) row(1, 4, 5, 6, 7)
#define ROWS_3(row) ROWS_2(row) row(2, 8, 9, 10, 11)
#define BLOCK_TILE(name, rows, unit)                                                                         \
    static void name(const uint32_t (*left)[BLOCK_UNITS], long units, const uint32_t (*right)[WIDE],         \
                     uint32_t *sums) {                                                                       \
        __asm__ volatile(rows(GET_ROW) "1:\n\t" unit(0) unit(1) "add $8, %[left]\n\t"                        \
                                       "add $256, %[right]\n\t"                                              \
                                       "sub $2, %[units]\n\t"                                                \
                                       "jnz 1b\n\t" rows(PUT_ROW)                                            \
                         : [left] "+r"(left), [right] "+r"(right), [units] "+r"(units)                       \
                         : [sums] "r"(sums), [row] "i"(4 * BLOCK_UNITS), [out] "i"(4 * PANEL)                \
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
    static __attribute__((noinline)) void name(const uint32_t (*left)[BLOCK_UNITS], long units,              \
                                               const uint32_t (*right)[WIDE], uint32_t *sums) {              \
        Words sum[rows][WIDE_VECTORS];                                                                       \
        for (int r = 0; r < rows; r++)                                                                       \
            for (int v = 0; v < WIDE_VECTORS; v++) sum[r][v] = get_words(sums + r * PANEL + v * LANES);      \
        for (long unit = 0; unit < units; unit++)                                                            \
            for (int r = 0; r < rows; r++)                                                                   \
                for (int v = 0; v < WIDE_VECTORS; v++)                                                       \
                    sum[r][v] = mac_unit(sum[r][v], get_words(right[unit] + v * LANES), &left[r][unit]);     \
        for (int r = 0; r < rows; r++)                                                                       \
            for (int v = 0; v < WIDE_VECTORS; v++) *(WordsAt *)(sums + r * PANEL + v * LANES) = sum[r][v];   \
    }
BLOCK_TILE(fewer_floats, TILE_ROWS - 1, MAC_FLOATS)
BLOCK_TILE(most_floats, TILE_ROWS, MAC_FLOATS)
BLOCK_TILE(fewer_bytes, TILE_ROWS - 1, MAC_BYTES)
BLOCK_TILE(most_bytes, TILE_ROWS, MAC_BYTES)
#endif

/* One part of the inputs of a block's rows and panels; the weights behind are fetched meanwhile. */
INLINE void add_block(const Product *p, int bytes, long row, long count, long panel, long panels, long input,
                      long inputs, Block *block) {
    long pack = bytes ? 4 : PAIR, all = p->inputs / pack, steps = inputs / pack, chunks = (count + TILE_ROWS - 1) / TILE_ROWS;
    long units = steps * (bytes ? BYTE_PARTS : PARTS);
    put_left(p, bytes, row, count, input, inputs, block);
    for (long column = 0; column < panels * PANEL; column += WIDE) {
        const uint32_t *weights = (const uint32_t *)p->weight + (panel + column / PANEL) * all * PANEL
                                  + input / pack * PANEL + column % PANEL;
        const uint32_t *next = column % PANEL + WIDE < PANEL ? weights + WIDE : weights + (all - 1) * PANEL + WIDE;
        uint32_t *sums = block->sums[column / PANEL] + column % PANEL;
        put_right(bytes, weights, steps, block);
        if (!input && column % PANEL == 0) __builtin_memset(sums, 0, count * PANEL * sizeof *sums);
        for (long chunk = 0; chunk < chunks; chunk++) {
            long begin = count * chunk / chunks, end = count * (chunk + 1) / chunks;
            for (long step = steps * chunk / chunks; step < steps * (chunk + 1) / chunks; step++)
                for (int line = 0; line < WIDE; line += GROUP) __builtin_prefetch(next + step * PANEL + line, 0, 2);
            uint32_t *to = sums + begin * PANEL;
            /* Of MANY_ROWS and more there are no chunks of less than TILE_ROWS - 1. */
            switch (2 * (end - begin == TILE_ROWS) + bytes) {
            case 0: fewer_floats(block->left + begin, units, block->right, to); break;
            case 1: fewer_bytes(block->left + begin, units, block->right, to); break;
            case 2: most_floats(block->left + begin, units, block->right, to); break;
            default: most_bytes(block->left + begin, units, block->right, to); break;
            }
        }
    }
}

INLINE void product_blocked(const Product *p, int bytes, long panel_begin, long panel_end) {
    Block block __attribute__((aligned(64)));
    long pack = bytes ? 4 : PAIR, per_part = BLOCK_UNITS / (bytes ? BYTE_PARTS : PARTS) * pack;
    long blocks = (p->rows + BLOCK_ROWS - 1) / BLOCK_ROWS, parts = (p->inputs + per_part - 1) / per_part;
    for (long number = 0; number < blocks; number++) {
        long row = p->rows * number / blocks, count = p->rows * (number + 1) / blocks - row;
        for (long panel = panel_begin; panel < panel_end; panel += BLOCK_PANELS) {
            long panels = panel_end - panel < BLOCK_PANELS ? panel_end - panel : BLOCK_PANELS;
            for (long part = 0; part < parts; part++) {
                long steps = p->inputs / pack, input = steps * part / parts * pack;
                long end = steps * (part + 1) / parts * pack;
                add_block(p, bytes, row, count, panel, panels, input, end - input, &block);
            }
            for (long n = 0; n < panels; n++) {
                float *sums = (float *)block.sums[n];
                if (bytes) scale_sums(p, row, count, panel + n, sums);
                product_out(p, row, count, panel + n, sums);
            }
        }
    }
}
