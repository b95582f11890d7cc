/* Attention. The pool's layout is that of packed weights: tiles read it in place. */

/* Scores of one query row to probabilities; adds them to `total` per lane. Hidden slots get zero. */
INLINE Floats exponentiate(const float *scores, float peak, Floats total, Left *out) {
#if DOT
    for (int c = 0; c < PANEL; c += 2 * LANES) {
        Floats low = get_floats(scores + c), high = get_floats(scores + c + LANES);
        Floats p = (Floats)((Ints)power_of_two(low - peak) & (low > LOWEST));
        Floats q = (Floats)((Ints)power_of_two(high - peak) & (high > LOWEST));
        /* What is summed here is what the values are weighted with: after rounding. */
        __m512bh rounded = _mm512_cvtne2ps_pbh((__m512)q, (__m512)p);
        *(WordsAt *)(out + c / PAIR) = (Words)rounded;
        total = (Floats)_mm512_dpbf16_ps((__m512)total, rounded, (__m512bh)_mm512_set1_epi32(0x3f803f80));
    }
#else
    for (int c = 0; c < PANEL; c += LANES) {
        Floats score = get_floats(scores + c);
        Floats p = (Floats)((Ints)power_of_two(score - peak) & (score > LOWEST));
        put_floats(out + c, p);
        total += p;
    }
#endif
    return total;
}

/* Scores [rows][PANEL] of slots from `start` to probabilities, and the decay of what was summed before. */
INLINE void softmax_tile(Item *item, int rows, long row, long start, float *scores, Left *out, float *decay) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        float *total = item->total + (row + r) * LANES;
        decay[r] = raise_peak(item, row + r, mask_scores(item, row + r, start, scores + r * PANEL));
        Floats before = settled(get_floats(total) * decay[r]);
        put_floats(total, exponentiate(scores + r * PANEL, item->peak[row + r], before,
                                       out + r * LEFTS(PANEL)));
    }
}

/* `rows` query rows from number `row` against one tile; `next`, if given, is fetched meanwhile. */
INLINE void attend_tile(long dim, Item *item, int rows, long row, long start, const Blocks *now,
                        const Blocks *next) {
    float scores[6 * PANEL] __attribute__((aligned(64)));
    Left probabilities[6 * LEFTS(PANEL)] __attribute__((aligned(64)));
    const Left *left[6];
    float decay[6];
    tile_columns(rows, item->query + row, dim / PAIR, now->keys, GROUP, next ? next->keys : 0, GROUP, 0,
                 scores, PANEL);
    softmax_tile(item, rows, row, start, scores, probabilities, decay);
    for (int r = 0; r < rows; r++) left[r] = probabilities + r * LEFTS(PANEL);
    long slots = item->limit - start < PANEL ? item->limit - start : PANEL;
    float *sums = item->sums + row * dim;
    for (long d = 0; d < dim;) {
        const uint32_t *part[PANEL / GROUP], *next_part[PANEL / GROUP];
        for (int g = 0; g < PANEL / GROUP; g++) part[g] = now->values[g] + d;
        for (int g = 0; next && g < PANEL / GROUP; g++) next_part[g] = next->values[g] + d * (GROUP / PAIR);
        const uint32_t *const *ahead = next ? next_part : 0;
        if (dim - d >= TILE_GROUPS(rows) * GROUP) {
            tile_slots(rows, left, slots, part, ahead, dim, TILE_GROUPS(rows), decay, sums + d, dim);
            d += TILE_GROUPS(rows) * GROUP;
        } else {
            tile_slots(rows, left, slots, part, ahead, dim, 1, decay, sums + d, dim);
            d += GROUP;
        }
    }
}

#include "attention_wide.h"

#include "attention_tiles.h"

/* The query rows of one key head become item rows `at` onwards, with nothing summed yet. */
INLINE void begin_head(const Attention *p, Item *item, long at, long first_token, long first_position,
                       long head, long rows) {
    long dim = p->head_dim, group = p->heads / p->kv_heads, query = 0, member = 0;
    for (long r = at; r < at + rows; r++) {
        const Elem *from = (const Elem *)p->qkv
                           + ((first_token + query) * (p->heads + 2 * p->kv_heads) + head * group + member)
                                 * dim;
        if (p->kv_int8) {
            int8_t bytes[MOST_HEAD_DIM] __attribute__((aligned(64)));
            int32_t sum;
            item->query_scale[r] = round_row(from, dim, bytes, &sum);
            put_byte_parts((const uint32_t *)bytes, dim / 4, 1, item->bytes + r * LEFT_BYTES(dim), dim / 4);
            item->query_shift[r] = 128 * sum;
        } else {
#if AMX
            __builtin_memcpy(item->pairs + r * dim / PAIR, from, dim * sizeof *from);
#elif DOT
            item->query[r] = (const Left *)from;
#else
            for (long d = 0; d < dim; d += LANES) put_floats(item->wide + r * dim + d, load(from + d));
            item->query[r] = item->wide + r * dim;
#endif
        }
        item->position[r] = first_position + query;
        item->peak[r] = LOWEST;
        put_floats(item->total + r * LANES, splat(0));
        for (long d = 0; d < dim; d += LANES) put_floats(item->sums + r * dim + d, splat(0));
        if (++member == group) member = 0, query++;
    }
}

/* Divide the sums of one key head by the sums of probabilities, and write them out. */
INLINE void end_head(const Attention *p, const Item *item, long at, long first_token, long head, long rows) {
    long dim = p->head_dim, group = p->heads / p->kv_heads, query = 0, member = 0;
    for (long r = at; r < at + rows; r++) {
        float factor = 1.0f / sum_lanes(get_floats(item->total + r * LANES));
        Elem *out = (Elem *)p->out + ((first_token + query) * p->heads + head * group + member) * dim;
        for (long d = 0; d < dim; d += LANES) store(out + d, get_floats(item->sums + r * dim + d) * factor);
        if (++member == group) member = 0, query++;
    }
}

/* A tile for each number of rows; separate functions, since compilers take long over one large one. Where many rows
 * go by attention_wide.h, tiles with nothing to fetch are few: they fetch what is there, and need no code of their own. */
#define ATTEND_ROWS(n)                                                                                       \
    static __attribute__((noinline)) void attend_##n(const Attention *p, Item *item, long row, long start,   \
                                                     const Blocks *now, const Blocks *next) {                \
        const Blocks *ahead = next ? next : now;                                                             \
        if (p->kv_int8 && (next || !VNNI))                                                                   \
            attend_bytes(p->head_dim, item, n, row, start, now, ahead);                                      \
        else if (p->kv_int8)                                                                                 \
            attend_bytes(p->head_dim, item, n, row, start, now, 0);                                          \
        else if (!AMX && (next || !DOT))                                                                     \
            attend_tile(p->head_dim, item, n, row, start, now, ahead);                                       \
        else if (!AMX)                                                                                       \
            attend_tile(p->head_dim, item, n, row, start, now, 0);                                           \
    }
ATTEND_ROWS(1)
ATTEND_ROWS(2)
ATTEND_ROWS(3)
ATTEND_ROWS(4)
ATTEND_ROWS(5)
ATTEND_ROWS(6)

/* Where the tile at `start` lies, for head 0, in bytes of keys or values: its groups of 16 slots. */
INLINE void find_tile(const Attention *p, const int32_t *table, long start, long limit, long *base) {
    long groups_per_block = p->block_size / GROUP;
    long block = start / p->block_size, group = start % p->block_size / GROUP;
    for (int g = 0; g < PANEL / GROUP; g++) {
        base[g] = base[0]; /* behind the limit all is masked: any memory will do */
        if (start + g * GROUP >= limit) continue;
        base[g] = slot_group(p, table[block], group, 0);
        if (++group == groups_per_block) group = 0, block++;
    }
}

INLINE void find_head(const Attention *p, const long *base, long head, Blocks *blocks) {
    for (int g = 0; g < PANEL / GROUP; g++) {
        long at = base[g] + head * p->block_size * p->slot_bytes;
        blocks->keys[g] = (const uint32_t *)((const char *)p->keys + at);
        blocks->values[g] = (const uint32_t *)((const char *)p->values + at);
    }
}

/* Tiles that some rows of an item go through: from slot `first`, the beginning of a tile, up to `limit`. */
typedef struct {
    long row; /* of the batch: its table says where the slots lie */
    long first;
    long limit;
} Stretch;

/* Rows of the batch that an item is for; `member` counts them. */
INLINE long row_of(const Attention *p, long number, long member) { return p->order[p->item_first[number] + member]; }

/* The first tile of which a member's first query sees anything. */
INLINE long first_tile(const Attention *p, long number, long member) {
    long position = p->first_positions[row_of(p, number, member)] + p->item_begin[number];
    return p->window && position >= p->window ? (position - p->window + 1) / PANEL * PANEL : 0;
}

/* What a member of an item goes through by itself, or all of them together: member -1. Members stand in the order of
 * their positions, so that the first one's window reaches back farthest. */
INLINE Stretch stretch_of(const Attention *p, long number, long member) {
    long shared = p->item_shared[number], row = row_of(p, number, member < 0 ? 0 : member);
    long first = first_tile(p, number, member < 0 ? 0 : member);
    if (member < 0) return (Stretch){row, first, shared};
    return (Stretch){row, first > shared ? first : shared, p->first_positions[row] + p->item_end[number]};
}

/* The member that an item begins with: -1 if anything is shared. */
INLINE long first_member(const Attention *p, long number) {
    return first_tile(p, number, 0) < p->item_shared[number] ? -1 : 0;
}

/* Find the tile needed after the one at `start`: the stretch's next, or the first one of what is behind it. */
INLINE void find_next_tile(const Attention *p, long number, long last, long member, long start, long *base) {
    Stretch stretch = stretch_of(p, number, member);
    start += PANEL;
    if (start >= stretch.limit) {
        if (++member == p->item_rows[number]) {
            if (number < last) number++;
            member = first_member(p, number);
        }
        stretch = stretch_of(p, number, member);
        start = stretch.first;
    }
    find_tile(p, p->tables + stretch.row * p->table_width, start, stretch.limit, base);
}

/* Item rows first .. first + rows - 1, those of one key head, against one tile. alone: they are all that the item has. */
INLINE void attend_rows(const Attention *p, Item *item, long first, long rows, int alone, long start,
                        const Blocks *now, const Blocks *next) {
    (void)alone;
#if AMX
    if (!p->kv_int8) {
        attend_by_tiles(p, item, first, rows, alone, start, *now, next);
        return;
    }
#endif
#if !DOT || !VNNI
    if (attends_wide(p, rows)) {
        attend_head(p, item, first, rows, start, now);
        return;
    }
#endif
    for (long chunk = 0, chunks = (rows + 5) / 6; chunk < chunks; chunk++) {
        long r = first + rows * chunk / chunks, end = first + rows * (chunk + 1) / chunks;
        if (start > item->position[end - 1]) continue;
        if (p->window && start + PANEL <= item->position[r] - p->window + 1) continue;
        const Blocks *ahead = chunk == 0 ? next : 0;
        switch (end - r) {
        case 1: attend_1(p, item, r, start, now, ahead); break;
        case 2: attend_2(p, item, r, start, now, ahead); break;
        case 3: attend_3(p, item, r, start, now, ahead); break;
        case 4: attend_4(p, item, r, start, now, ahead); break;
        case 5: attend_5(p, item, r, start, now, ahead); break;
        default: attend_6(p, item, r, start, now, ahead); break;
        }
    }
}

/* One stretch of an item; `last` is the last item that this thread computes. */
INLINE void attend_stretch(const Attention *p, Item *item, long number, long last, long member) {
    long single = p->item_end[number] - p->item_begin[number] == 1, members = p->item_rows[number];
    long rows = (p->item_end[number] - p->item_begin[number]) * (p->heads / p->kv_heads), see = 1;
    int alone = members == 1 && p->item_head_end[number] - p->item_head_begin[number] == 1;
    Stretch stretch = stretch_of(p, number, member);
    item->limit = stretch.limit;
    for (long start = stretch.first; start < stretch.limit; start += PANEL) {
        long base[PANEL / GROUP], next_base[PANEL / GROUP] = {0}, at = member < 0 ? 0 : member * rows;
        find_tile(p, p->tables + stretch.row * p->table_width, start, stretch.limit, base);
        /* A single query waits for memory: blocks lie anywhere, so ask for the next ones early. */
        if (single) find_next_tile(p, number, last, member, start, next_base);
        while (member < 0 && see < members && first_tile(p, number, see) <= start) see++;
        for (long head = p->item_head_begin[number]; head < p->item_head_end[number]; head++) {
            Blocks now, next;
            find_head(p, base, head, &now);
            if (single) find_head(p, next_base, head, &next);
            attend_rows(p, item, at, see * rows, alone, start, &now, single ? &next : 0);
            at += members * rows;
        }
    }
}

/* One item; `last` is the last one that this thread computes. */
INLINE void attend_item(const Attention *p, long number, long last) {
    Item item;
    long begin = p->item_begin[number], count = p->item_end[number] - begin, members = p->item_rows[number];
    long rows = count * (p->heads / p->kv_heads), at = 0;
    item.window = p->window;
    item.scale = p->scale;
#if AMX
    item.shaped = 0;
#endif
    for (long head = p->item_head_begin[number]; head < p->item_head_end[number]; head++)
        for (long member = 0; member < members; member++, at += rows) {
            long row = row_of(p, number, member);
            begin_head(p, &item, at, p->offsets[row] + begin, p->first_positions[row] + begin, head, rows);
        }
    for (long member = first_member(p, number); member < members; member++)
        attend_stretch(p, &item, number, last, member);
    at = 0;
    for (long head = p->item_head_begin[number]; head < p->item_head_end[number]; head++)
        for (long member = 0; member < members; member++, at += rows)
            end_head(p, &item, at, p->offsets[row_of(p, number, member)] + begin, head, rows);
}

/* Items begin .. end - 1. */
KERNEL tidepipe_attend(const Attention *p, int64_t begin, int64_t end) {
    for (long number = begin; number < end; number++) attend_item(p, number, end - 1);
#if AMX
    _tile_release(); /* else their state would be saved at each switch of threads */
#endif
}
