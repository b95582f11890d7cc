/* Products by matrix tiles (AMX): 16 rows times 16 columns, over 16 steps at once. A step is a word, whatever is in
 * it: two bfloat16, or four bytes. Each output is summed step by step in one fixed order, as in product.h, but not in
 * the same: with few rows, too, all that runs here runs by tiles. */
#if AMX

#define TILE 16
#define MANY_TILE_ROWS 12 /* from which on they pay for bytes, whose sums are exact either way */
#define STEPS_AHEAD 64 /* how far before its use a weight is fetched into the cache */

/* Sums are tiles 0 to 3, weights 6 and 7. Rows of x are 4 and, if there are more than 16, 5, else weights as well. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileShapes;

INLINE void shape_tiles(long upper, long lower) {
    TileShapes shapes __attribute__((aligned(64))) = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) shapes.row_bytes[tile] = 64, shapes.rows[tile] = TILE;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = upper;
    shapes.rows[2] = shapes.rows[3] = lower ? lower : upper;
    if (lower) shapes.rows[5] = lower;
    __asm__ volatile("" ::: "memory");
    _tile_loadconfig(&shapes);
}

INLINE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

#define ADD_TILES(sum, left, right)                                                                           \
    do {                                                                                                     \
        if (bytes)                                                                                           \
            _tile_dpbsud(sum, left, right);                                                                  \
        else                                                                                                 \
            _tile_dpbf16ps(sum, left, right);                                                                \
    } while (0)

/* A quarter of 16 steps of a panel: a core has few lines on their way at once, so they are asked for between products. */
INLINE void fetch_quarter(const uint32_t *weights, int quarter) {
    weights += quarter * TILE * PANEL / 4;
    for (int line = 0; line < TILE * PANEL / 4; line += 16) __builtin_prefetch(weights + line, 0, 3);
}

/* 16 steps of at most 16 rows, `stride` words apart, with a panel. ahead: steps to fetch meanwhile, or 0. */
INLINE void add_upper(int bytes, const uint32_t *x, long stride, const uint32_t *weights, const uint32_t *ahead) {
    _tile_loadd(4, x, stride * 4);
    if (ahead) fetch_quarter(ahead, 0);
    _tile_loadd(5, weights, PANEL * 4);
    ADD_TILES(0, 4, 5);
    if (ahead) fetch_quarter(ahead, 1);
    _tile_loadd(6, weights + TILE, PANEL * 4);
    ADD_TILES(1, 4, 6);
    if (ahead) fetch_quarter(ahead, 2);
    _tile_loadd(7, weights + 2 * TILE, PANEL * 4);
    ADD_TILES(2, 4, 7);
    if (ahead) fetch_quarter(ahead, 3);
    _tile_loadd(5, weights + 3 * TILE, PANEL * 4);
    ADD_TILES(3, 4, 5);
}

/* 16 steps of more than 16 rows with half a panel. */
INLINE void add_both(int bytes, const uint32_t *x, long stride, const uint32_t *weights, const uint32_t *ahead) {
    if (ahead) fetch_quarter(ahead, 0);
    _tile_loadd(6, weights, PANEL * 4);
    _tile_loadd(4, x, stride * 4);
    if (ahead) fetch_quarter(ahead, 1);
    _tile_loadd(7, weights + TILE, PANEL * 4);
    ADD_TILES(0, 4, 6);
    if (ahead) fetch_quarter(ahead, 2);
    _tile_loadd(5, x + TILE * stride, stride * 4);
    ADD_TILES(1, 4, 7);
    if (ahead) fetch_quarter(ahead, 3);
    ADD_TILES(2, 5, 6);
    ADD_TILES(3, 5, 7);
}

/* The steps of a block of rows and of a panel behind the last whole tile, with zeros behind them. */
typedef struct {
    uint32_t x[2 * TILE][TILE];
    uint32_t weights[TILE][PANEL];
} LastSteps;

INLINE void put_last_steps(const uint32_t *x, long rows, long stride, const uint32_t *weights, long count, LastSteps *last) {
    for (long r = 0; r < rows; r++)
        for (long s = 0; s < TILE; s++) last->x[r][s] = s < count ? x[r * stride + s] : 0;
    for (long s = 0; s < TILE; s++)
        for (long c = 0; c < PANEL; c++) last->weights[s][c] = s < count ? weights[s * PANEL + c] : 0;
    __asm__ volatile("" ::: "memory");
}

INLINE void get_sums(const uint32_t *sums, int below) {
    _tile_loadd(0, sums, PANEL * 4);
    _tile_loadd(1, sums + TILE, PANEL * 4);
    _tile_loadd(2, sums + below, PANEL * 4);
    _tile_loadd(3, sums + below + TILE, PANEL * 4);
}

INLINE void put_sums(uint32_t *sums, int below) {
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + TILE, PANEL * 4);
    _tile_stored(2, sums + below, PANEL * 4);
    _tile_stored(3, sums + below + TILE, PANEL * 4);
}

/* sums[r][0 .. 63] (+)= the products of at most 32 rows, `stride` words apart, with some steps of a panel. fetch: the
 * weights come from memory. */
INLINE void tile_sums(int bytes, const uint32_t *x, long rows, long stride, long steps, const uint32_t *weights,
                      int fetch, int accumulate, uint32_t *sums) {
    long whole = steps / TILE * TILE;
    /* Of few rows four sums lie side by side, of more two above two. */
    int few = rows <= TILE, below = few ? 2 * TILE : TILE * PANEL;
    LastSteps last;
    if (whole < steps)
        put_last_steps(x + whole, rows, stride, weights + whole * PANEL, steps - whole, &last);
    for (long half = 0; half < (few ? 2 * TILE : PANEL); half += 2 * TILE) {
        if (accumulate)
            get_sums(sums + half, below);
        else
            zero_sums();
        for (long step = 0; step < whole; step += TILE) {
            const uint32_t *here = weights + step * PANEL;
            const uint32_t *ahead = fetch && !half ? here + STEPS_AHEAD * PANEL : 0;
            if (few)
                add_upper(bytes, x + step, stride, here, ahead);
            else
                add_both(bytes, x + step, stride, here + half, ahead);
        }
        if (whole < steps) {
            if (few)
                add_upper(bytes, last.x[0], TILE, last.weights[0], 0);
            else
                add_both(bytes, last.x[0], TILE, last.weights[0] + half, 0);
        }
        put_sums(sums + half, below);
    }
}

/* product; bytes: for int8 weights. Of weights of few bits a block of steps at a time is unpacked. */
INLINE void product_of_tiles(const Product *p, int bytes, long panel_begin, long panel_end) {
    uint32_t sums[ROW_BLOCK * PANEL] __attribute__((aligned(64)));
    uint32_t room[STEP_BLOCK * PANEL] __attribute__((aligned(64)));
    long steps = p->inputs / (bytes ? 4 : PAIR), shaped = 0;
    long most = p->rows <= FEW_ROWS ? FEW_STEPS : STEP_BLOCK, blocks = p->packed ? (steps + most - 1) / most : 1;
    for (long row = 0; row < p->rows; row += ROW_BLOCK) {
        long count = p->rows - row < ROW_BLOCK ? p->rows - row : ROW_BLOCK;
        for (long panel = panel_begin; panel < panel_end; panel++) {
            for (long block = 0; block < blocks; block++) {
                long step = block_begin(p, steps, block, blocks), part = block_begin(p, steps, block + 1, blocks) - step;
                const uint32_t *weights = bytes ? (const uint32_t *)p->weight + panel * steps * PANEL
                                                : words_of(p, panel, step, part, room);
                __asm__ volatile("" ::: "memory");
                for (long begin = 0; begin < count; begin += 2 * TILE) {
                    long rows = count - begin < 2 * TILE ? count - begin : 2 * TILE;
                    long at = (row + begin) * p->inputs;
                    const uint32_t *x = bytes ? (const uint32_t *)(p->bytes.values + at)
                                              : (const uint32_t *)((const Elem *)p->x + at);
                    if (rows != shaped) shape_tiles(rows < TILE ? rows : TILE, rows > TILE ? rows - TILE : 0);
                    shaped = rows;
                    tile_sums(bytes, x + step, rows, steps, part, weights, !begin && !p->packed, block > 0,
                              sums + begin * PANEL);
                }
                __asm__ volatile("" ::: "memory");
            }
            if (bytes) scale_sums(p, row, count, panel, (float *)sums);
            product_out(p, row, count, panel, (const float *)sums);
        }
    }
    _tile_release(); /* else their state would be saved at each switch of threads */
}

#endif
