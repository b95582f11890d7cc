/* All layers of a stage in one call: between them nothing goes back to the interpreter. */

#define SPINS 4096     /* looks at the others before a thread lets somebody else run */
#define ROWS_TO_SHARE 48 /* rows per thread from which on threads share rows, not panels */

/* Wait until all threads are here. */
INLINE void meet(Stage *s) {
    if (s->threads == 1) return;
    int64_t number = __atomic_add_fetch(&s->arrived, 1, __ATOMIC_ACQ_REL);
    int64_t goal = (number + s->threads - 1) / s->threads * s->threads;
    for (long spin = 0; __atomic_load_n(&s->arrived, __ATOMIC_ACQUIRE) < goal; spin++)
        if (spin > SPINS) sched_yield();
}

/* The part of 0 .. total - 1 that a thread has. */
INLINE int64_t share(const Stage *s, int64_t thread, int64_t total) { return total * thread / s->threads; }

/* The adapters of a product of a layer; null if no row of the step has one. */
INLINE const LowRank *adapters_of(const Stage *s, int64_t layer, int64_t product) {
    return s->low_rank ? s->low_rank + (layer * ADAPTED + product) * MOST_PARTS * s->adapters : 0;
}

/* This thread's part of a product of x, and of those beside it, into out, and of what adapters add. The part ends when
 * all threads have done theirs. */
static __attribute__((noinline)) void stage_product(Stage *s, const Product *of, const LowRank *low, const void *x, void *out,
                                                    int64_t thread) {
    int64_t row = share(s, thread, s->tokens), rows = share(s, thread + 1, s->tokens) - row, first = 0;
    int64_t outputs = of->stride;
    if (of->scales) {
        Rows q = {.x = (void *)x, .bytes = s->bytes, .columns = of->inputs};
        tidepipe_quantize(&q, row, row + rows);
        meet(s);
    }
    for (; of; first += of->outputs, of = of->beside) {
        Product p = *of;
        int64_t panels = (p.outputs + PANEL - 1) / PANEL, begin = 0, end = panels;
        p.x = x, p.out = (Elem *)out + first, p.rows = s->tokens, p.bytes = s->bytes;
        if (s->tokens >= ROWS_TO_SHARE * s->threads) {
            p.rows = rows;
            p.x = (const Elem *)x + row * p.inputs;
            p.out = (Elem *)p.out + row * p.stride;
            p.bytes.values += row * p.inputs, p.bytes.scales += row, p.bytes.shifts += row;
        } else {
            begin = share(s, thread, panels), end = share(s, thread + 1, panels);
        }
        tidepipe_product(&p, begin, end);
    }
    meet(s);
    if (low) {
        add_adapters(s, low, x, out, outputs, row, row + rows);
        meet(s);
    }
}

/* What thread number `thread` does of a step; `end` is not used. */
KERNEL tidepipe_layers(Stage *s, int64_t thread, int64_t end) {
    int64_t row = share(s, thread, s->tokens), row_end = share(s, thread + 1, s->tokens);
    Rows add = {.x = s->residual, .out = s->normed, .columns = s->hidden, .eps = s->eps};
    Attention attention = s->attention;
    attention.qkv = s->qkv, attention.out = s->attended;
    (void)end;
    for (int64_t number = 0; number < s->layer_count; number++) {
        const Layer *layer = s->layers + number;
        Rows gates = {.x = s->gate_up, .out = s->gated, .columns = layer->down.inputs};
        attention.keys = layer->keys, attention.values = layer->values;
        attention.q_norm = layer->q_norm, attention.k_norm = layer->k_norm;
        attention.window = layer->window, attention.rope = layer->rope;
        add.weight = layer->input_norm;
        tidepipe_norm(&add, row, row_end);
        meet(s);
        stage_product(s, &layer->qkv, adapters_of(s, number, 0), s->normed, s->qkv, thread);
        tidepipe_store_kv(&attention, row, row_end);
        meet(s);
        if (!thread) __atomic_store_n(s->stored, number + 1, __ATOMIC_RELEASE);
        tidepipe_attend(&attention, s->bounds[thread], s->bounds[thread + 1]);
        meet(s);
        stage_product(s, &layer->output, adapters_of(s, number, 1), s->attended, s->projected, thread);
        add.y = s->projected, add.weight = layer->mlp_norm;
        tidepipe_norm(&add, row, row_end);
        meet(s);
        stage_product(s, &layer->gate_up, adapters_of(s, number, 2), s->normed, s->gate_up, thread);
        tidepipe_swiglu(&gates, row, row_end);
        meet(s);
        stage_product(s, &layer->down, adapters_of(s, number, 3), s->gated, s->projected, thread);
    }
    add_rows(&add, row, row_end);
}
