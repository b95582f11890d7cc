/* x times packed weights. Each output is summed over the inputs in one fixed order, whatever the other rows
 * are: a token's activations do not depend on the batch it is computed in. */

#define ROW_BLOCK 192  /* rows of x that one pass over the weights serves */
#define STEP_BLOCK 320 /* steps whose packed weights, PANEL wide, stay in the second-level cache meanwhile */
#define FEW_ROWS 6      /* with which unpacking is most of the work, so that what is unpacked stays in the first-level one */
#define FEW_STEPS 64

/* weights: of the steps from `step` on. next: what will be, in the order of memory. */
INLINE void product_rows(int rows, const Elem *x, long inputs, long step, long steps, const uint32_t *weights,
                         const uint32_t *next, float *sums) {
    const Left *left[6];
#if PARTS == 2
    float wide[6][2 * STEP_BLOCK] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) {
        widen_row(x + r * inputs + step * PAIR, steps * PAIR, wide[r]);
        left[r] = wide[r];
    }
#else
    for (int r = 0; r < rows; r++) left[r] = (const Left *)(x + r * inputs) + step;
#endif
    const uint32_t *groups[PANEL / GROUP], *ahead[PANEL / GROUP];
    const int beside = TILE_GROUPS(rows);
    for (int g = 0; g < PANEL / GROUP; g++) {
        groups[g] = weights + g * GROUP;
        /* Line by line, in whatever order they will be used: skipping some halves what memory delivers. */
        ahead[g] = next + (g / beside * steps * beside + g % beside) * GROUP;
    }
    tile_columns(rows, left, steps, groups, PANEL, ahead, beside * GROUP, step != 0, sums, PANEL);
}

/* Write the sums of `count` rows, panel number `panel`, to the output. */
INLINE void product_out(const Product *p, long row, long count, long panel, const float *sums) {
    long column = panel * PANEL;
    long columns = p->outputs - column < PANEL ? p->outputs - column : PANEL;
    const float *bias = p->bias ? p->bias + column : 0;
    for (long r = 0; r < count; r++) {
        const float *from = sums + r * PANEL;
        long at = (row + r) * p->stride + column;
        float *wide = (float *)p->out + at;
        Elem *out = (Elem *)p->out + at;
        long c = 0;
        for (; c + LANES <= columns; c += LANES) {
            Floats value = get_floats(from + c);
            if (bias) value += get_floats(bias + c);
            if (p->float_out)
                put_floats(wide + c, value);
            else
                store(out + c, value);
        }
        for (; c < columns; c++) {
            float value = bias ? from[c] + bias[c] : from[c];
            if (p->float_out)
                wide[c] = value;
            else
                out[c] = narrow(value);
        }
    }
}

/* Sums of products of bytes become floats in place. */
INLINE void scale_sums(const Product *p, long row, long count, long panel, float *sums) {
    for (long r = 0; r < count; r++)
        for (long c = 0; c < PANEL; c += LANES) {
            float *at = sums + r * PANEL + c;
            Ints sum = *(const IntsAt *)at - p->bytes.shifts[row + r];
            Floats scale = get_floats(p->scales + panel * PANEL + c) * p->bytes.scales[row + r];
            put_floats(at, __builtin_convertvector(sum, Floats) * scale);
        }
}

#include "blocked.h"

#include "matrix_tiles.h"

/* product, for int8 weights. */
INLINE void product_of_bytes(const Product *p, long panel_begin, long panel_end) {
    int32_t sums[ROW_BLOCK * PANEL] __attribute__((aligned(64)));
    long steps = p->inputs / 4, blocks = (steps + BYTE_STEPS - 1) / BYTE_STEPS;
    for (long row = 0; row < p->rows; row += ROW_BLOCK) {
        long count = p->rows - row < ROW_BLOCK ? p->rows - row : ROW_BLOCK;
        long chunks = (count + 5) / 6;
        for (long panel = panel_begin; panel < panel_end; panel++) {
            const uint32_t *weights = (const uint32_t *)p->weight + panel * steps * PANEL;
            for (long block = 0; block < blocks; block++) {
                long step = steps * block / blocks, part = steps * (block + 1) / blocks - step;
                for (long chunk = 0; chunk < chunks; chunk++) {
                    long begin = count * chunk / chunks, end = count * (chunk + 1) / chunks;
                    int32_t *to = sums + begin * PANEL;
                    switch (end - begin) {
                    case 1: byte_tile(1, p, row + begin, step, part, weights, to); break;
                    case 2: byte_tile(2, p, row + begin, step, part, weights, to); break;
                    case 3: byte_tile(3, p, row + begin, step, part, weights, to); break;
                    case 4: byte_tile(4, p, row + begin, step, part, weights, to); break;
                    case 5: byte_tile(5, p, row + begin, step, part, weights, to); break;
                    default: byte_tile(6, p, row + begin, step, part, weights, to); break;
                    }
                }
            }
            scale_sums(p, row, count, panel, (float *)sums);
            product_out(p, row, count, panel, (const float *)sums);
        }
    }
}

#if STRAIGHT
/* product, for few rows and weights of few bits. */
static __attribute__((noinline)) void product_of_codes(const Product *p, long panel_begin, long panel_end) {
    float sums[STRAIGHT_ROWS * PANEL] __attribute__((aligned(64)));
    const Left *left[STRAIGHT_ROWS];
    for (int r = 0; r < STRAIGHT_ROWS; r++)
        left[r] = (const Left *)((const Elem *)p->x + (r < p->rows ? r : 0) * p->inputs);
    for (long panel = panel_begin; panel < panel_end; panel++) {
        switch (p->rows) {
        case 1: multiply_1(p->packed, left, p->inputs, panel, sums); break;
        case 2: multiply_2(p->packed, left, p->inputs, panel, sums); break;
        default: multiply_4(p->packed, left, p->inputs, panel, sums); break; /* of three rows the first twice */
        }
        product_out(p, 0, p->rows, panel, sums);
    }
}
#endif

/* Panels panel_begin .. panel_end - 1 of the outputs. */
KERNEL tidepipe_product(const Product *p, int64_t panel_begin, int64_t panel_end) {
#if STRAIGHT
    int straight = p->packed && p->rows <= STRAIGHT_ROWS && !(how_of(p->packed) & (SUBTRACTED | ANY_GROUP));
#endif
#if AMX
    if (p->scales && p->rows >= MANY_TILE_ROWS) {
        product_of_tiles(p, 1, panel_begin, panel_end);
        return;
    }
    if (!p->scales && !straight) {
        product_of_tiles(p, 0, panel_begin, panel_end);
        return;
    }
#endif
    if (!DOT && !p->scales && p->rows >= MANY_ROWS) {
        product_blocked(p, 0, panel_begin, panel_end);
        return;
    }
    if (!VNNI && p->scales && p->rows >= MANY_ROWS) {
        product_blocked(p, 1, panel_begin, panel_end);
        return;
    }
    if (p->scales) {
        product_of_bytes(p, panel_begin, panel_end);
        return;
    }
#if STRAIGHT
    if (straight) {
        product_of_codes(p, panel_begin, panel_end);
        return;
    }
#endif
    float sums[ROW_BLOCK * PANEL] __attribute__((aligned(64)));
    uint32_t room[STEP_BLOCK * PANEL] __attribute__((aligned(64)));
    long most = p->packed && p->rows <= FEW_ROWS ? FEW_STEPS : STEP_BLOCK;
    long steps = p->inputs / PAIR, blocks = (steps + most - 1) / most;
    for (long row = 0; row < p->rows; row += ROW_BLOCK) {
        long count = p->rows - row < ROW_BLOCK ? p->rows - row : ROW_BLOCK;
        long chunks = (count + 5) / 6;
        for (long panel = panel_begin; panel < panel_end; panel++) {
            for (long block = 0; block < blocks; block++) {
                long step = block_begin(p, steps, block, blocks), part = block_begin(p, steps, block + 1, blocks) - step;
                const uint32_t *weights = words_of(p, panel, step, part, room);
                const uint32_t *next = p->packed ? weights : weights + part * PANEL;
                for (long chunk = 0; chunk < chunks; chunk++) {
                    /* Chunks as equal as can be: one or two rows run at a fraction of the speed. */
                    long begin = count * chunk / chunks, end = count * (chunk + 1) / chunks;
                    const Elem *x = (const Elem *)p->x + (row + begin) * p->inputs;
                    float *to = sums + begin * PANEL;
                    switch (end - begin) {
                    case 1: product_rows(1, x, p->inputs, step, part, weights, next, to); break;
                    case 2: product_rows(2, x, p->inputs, step, part, weights, next, to); break;
                    case 3: product_rows(3, x, p->inputs, step, part, weights, next, to); break;
                    case 4: product_rows(4, x, p->inputs, step, part, weights, next, to); break;
                    case 5: product_rows(5, x, p->inputs, step, part, weights, next, to); break;
                    default: product_rows(6, x, p->inputs, step, part, weights, next, to); break;
                    }
                }
            }
            product_out(p, row, count, panel, sums);
        }
    }
}
