/* One item of attention, and its scores. */

#define MOST_ROWS 48 /* query rows (queries x query heads) of one item */
#define LOWEST -3.0e38f
#define LEFT_BYTES(count) ((count) / 4 * BYTE_PARTS) /* words of left operands for so many bytes */

/* What one item works on: some queries of one row, with all the query heads that share its key heads. */
typedef struct {
    long limit; /* slots that the last query sees */
    long window;
    float scale;
    long position[MOST_ROWS];                                           /* of each query row */
    const Left *query[MOST_ROWS];                                       /* LEFTS(head_dim) */
    float peak[MOST_ROWS];                                              /* largest score so far */
    float total[MOST_ROWS * LANES];                                     /* sum of probabilities, per lane */
    float sums[MOST_ROWS * MOST_HEAD_DIM] __attribute__((aligned(64))); /* [rows][head_dim] */
    /* Queries against int8 keys, each with a scale, and 128 times the sum of its bytes. */
    uint32_t bytes[MOST_ROWS * LEFT_BYTES(MOST_HEAD_DIM)] __attribute__((aligned(64)));
    float query_scale[MOST_ROWS];
    int32_t query_shift[MOST_ROWS];
#if !DOT
    Left wide[MOST_ROWS * MOST_HEAD_DIM];
#endif
#if AMX
    uint32_t pairs[MOST_ROWS * MOST_HEAD_DIM / PAIR] __attribute__((aligned(64))); /* queries, side by side */
    long shaped;                                                                   /* rows that tiles have now, or 0 */
#endif
} Item;

/* Scale the scores of one query row and hide the slots that it does not see; returns the largest. */
INLINE float mask_scores(const Item *item, long row, long start, float *scores) {
    long last = item->position[row] - start; /* slots of the tile up to this one are seen */
    long first = item->window ? last - item->window + 1 : 0;
    Floats best = splat(LOWEST);
    if (last >= PANEL - 1 && first <= 0) {
        for (int c = 0; c < PANEL; c += LANES) {
            Floats score = settled(get_floats(scores + c) * item->scale);
            put_floats(scores + c, score);
            best = larger(best, score);
        }
        return largest_lane(best);
    }
    last = last > PANEL ? PANEL : last;
    first = first > 0 ? first : 0;
    for (int c = 0; c < PANEL; c += LANES) {
        Ints slot;
        for (int lane = 0; lane < LANES; lane++) slot[lane] = c + lane;
        Floats score = settled(get_floats(scores + c) * item->scale);
        score = blend((slot <= (int)last) & (slot >= (int)first), score, splat(LOWEST));
        put_floats(scores + c, score);
        best = larger(best, score);
    }
    return largest_lane(best);
}

/* The groups of 16 slots of one tile, for one key head. */
typedef struct {
    const uint32_t *keys[PANEL / GROUP];
    const uint32_t *values[PANEL / GROUP];
} Blocks;

/* Make `peak` part of the largest score so far; returns by how much it rose, negated. */
INLINE float rise_of_peak(Item *item, long row, float peak) {
    float before = item->peak[row];
    item->peak[row] = larger_one(peak, before);
    return before - item->peak[row];
}

/* Likewise; returns the decay of what was summed before. */
INLINE float raise_peak(Item *item, long row, float peak) {
    return power_of_two(splat(rise_of_peak(item, row, peak)))[0];
}
