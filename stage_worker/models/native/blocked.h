/* Products of many rows by tiles of wide_tile.h. The order of sums is that of product.h. */

#define BLOCK_ROWS 144  /* of x, ... */
#define BLOCK_UNITS 192 /* multiplications of an output, ... */
#define BLOCK_PANELS 4  /* and panels: what a block works on fits the second-level cache */

/* A block's operands and sums; sums of bytes are int32. */
typedef struct {
    uint32_t left[BLOCK_ROWS][BLOCK_UNITS];
    Right right[BLOCK_UNITS];
    uint32_t sums[BLOCK_PANELS][BLOCK_ROWS * PANEL];
    uint32_t room[BLOCK_UNITS / PARTS * PANEL]; /* words of weights that have to be unpacked */
} Block;

/* Rows of x from `input` onwards become left operands. */
INLINE void put_left(const Product *p, int bytes, long row, long count, long input, long inputs, Block *block) {
    for (long r = 0; r < count; r++) {
        long at = (row + r) * p->inputs + input;
        if (bytes) {
            put_byte_parts((const uint32_t *)(p->bytes.values + at), inputs / 4, 1, block->left[r], inputs / 4);
            continue;
        }
        widen_row((const Elem *)p->x + at, inputs, (float *)block->left[r]);
        if (inputs < BLOCK_UNITS) block->left[r][inputs] = 0; /* where even_units adds one */
    }
}

/* Some inputs of a block's rows and panels. Weights behind are fetched meanwhile. */
INLINE void add_block(const Product *p, int bytes, long row, long count, long panel, long panels, long input,
                      long inputs, Block *block) {
    long pack = bytes ? 4 : PAIR, all = p->inputs / pack, steps = inputs / pack;
    const uint32_t *words = 0;
    put_left(p, bytes, row, count, input, inputs, block);
    for (long column = 0; column < panels * PANEL; column += WIDE) {
        if (bytes)
            words = (const uint32_t *)p->weight + ((panel + column / PANEL) * all + input / pack) * PANEL;
        else if (column % PANEL == 0)
            words = words_of(p, panel + column / PANEL, input / PAIR, steps, block->room);
        const uint32_t *weights = words + column % PANEL;
        const uint32_t *next = weights + (column % PANEL + WIDE < PANEL ? WIDE : all * PANEL - column % PANEL);
        if (p->packed) next = weights;
        for (long step = 0; step < steps; step++) {
            for (int line = 0; line < WIDE; line += GROUP) __builtin_prefetch(next + step * PANEL + line, 0, 2);
#pragma GCC unroll 4
            for (int v = 0; v < WIDE_VECTORS; v++)
                put_right(bytes, 0, get_words(weights + step * PANEL + v * LANES), step, steps, v, block->right);
        }
        long units = even_units(steps * (bytes ? BYTE_PARTS : PARTS), block->right);
        uint32_t *sums = block->sums[column / PANEL] + column % PANEL;
        if (!input && column % PANEL == 0) __builtin_memset(sums, 0, count * PANEL * sizeof *sums);
        wide_tiles(bytes, count, block->left[0], BLOCK_UNITS, units, block->right, sums, PANEL);
    }
}

INLINE void product_blocked(const Product *p, int bytes, long panel_begin, long panel_end) {
    Block block __attribute__((aligned(64)));
    long pack = bytes ? 4 : PAIR, steps = p->inputs / pack, most = BLOCK_UNITS / (bytes ? BYTE_PARTS : PARTS);
    long blocks = (p->rows + BLOCK_ROWS - 1) / BLOCK_ROWS, parts = (steps + most - 1) / most;
    for (long number = 0; number < blocks; number++) {
        long row = p->rows * number / blocks, count = p->rows * (number + 1) / blocks - row;
        for (long panel = panel_begin; panel < panel_end; panel += BLOCK_PANELS) {
            long panels = panel_end - panel < BLOCK_PANELS ? panel_end - panel : BLOCK_PANELS;
            for (long part = 0; part < parts; part++) {
                long input = block_begin(p, steps, part, parts) * pack;
                long end = block_begin(p, steps, part + 1, parts) * pack;
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
