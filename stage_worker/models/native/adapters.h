/* Adapters (LoRA) beside a product: to a row's result comes B (A x), of the row's own adapter. Each row by itself, in
 * one order: what it gets does not depend on the other rows. */

#define ROWS_OF_DOWN 4 /* of A, summed beside each other: a sum waits for the one before it */

/* inner[r] = A[r] x. */
INLINE void shrink(const LowRank *of, const Elem *x, float *inner) {
    long in = of->inputs, r = 0;
    for (; r < of->rank; r += ROWS_OF_DOWN) {
        long rows = of->rank - r < ROWS_OF_DOWN ? of->rank - r : ROWS_OF_DOWN, c = 0;
        const float *down[ROWS_OF_DOWN];
        Floats sums[ROWS_OF_DOWN];
        for (long k = 0; k < ROWS_OF_DOWN; k++) {
            down[k] = of->down + (r + (k < rows ? k : 0)) * in;
            sums[k] = splat(0.0f);
        }
        for (; c + LANES <= in; c += LANES) {
            Floats value = load(x + c);
            for (long k = 0; k < ROWS_OF_DOWN; k++) sums[k] += value * get_floats(down[k] + c);
        }
        for (long k = 0; k < rows; k++) {
            float total = sum_lanes(sums[k]);
            for (long rest = c; rest < in; rest++) total += widen(x[rest]) * down[k][rest];
            inner[r + k] = total;
        }
    }
}

/* out += B inner; B lies as [rank][outputs]. */
INLINE void expand(const LowRank *of, const float *inner, Elem *out) {
    long c = 0;
    for (; c + 2 * LANES <= of->outputs; c += 2 * LANES) {
        Floats low = load(out + c), high = load(out + c + LANES);
        for (long r = 0; r < of->rank; r++) {
            const float *up = of->up + r * of->outputs + c;
            low += inner[r] * get_floats(up);
            high += inner[r] * get_floats(up + LANES);
        }
        store(out + c, low), store(out + c + LANES, high);
    }
    for (; c < of->outputs; c++) {
        float value = widen(out[c]);
        for (long r = 0; r < of->rank; r++) value += inner[r] * of->up[r * of->outputs + c];
        out[c] = narrow(value);
    }
}

/* Rows row .. row_end - 1 of a product that is done. `low`: of each of its parts the adapters, by number. */
static __attribute__((noinline)) void add_adapters(const Stage *s, const LowRank *low, const Elem *x, Elem *out, long inputs,
                                                   long outputs, long row, long row_end) {
    float inner[MOST_RANK];
    for (; row < row_end; row++) {
        int32_t number = s->adapter_of[row];
        if (!number) continue;
        for (long part = 0; part < MOST_PARTS; part++) {
            const LowRank *of = low + part * s->adapters + number - 1;
            if (!of->rank) continue;
            shrink(of, x + row * inputs, inner);
            expand(of, inner, out + row * outputs + of->begin);
        }
    }
}
