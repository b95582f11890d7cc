/* Adapters (LoRA) beside a product: to a row's result comes B (A x), of the row's own adapter. Each row's sums in one
 * order, whatever rows are beside it: what it gets does not depend on them. */

#define ROWS_OF_DOWN 4 /* of A, summed beside each other: a sum waits for the one before it */
#define ROWS_ALIKE 8   /* of one adapter, together: they read its numbers while these are near */
#define WINDOW 64      /* rows among which those of one adapter are gathered */

/* inner[n][r] = A[r] x[at[n]], of `rows` rows. */
INLINE void shrink(const LowRank *of, const Elem *x, const long *at, long rows, float (*inner)[MOST_RANK]) {
    long in = of->inputs;
    for (long r = 0; r < of->rank; r += ROWS_OF_DOWN) {
        long downs = of->rank - r < ROWS_OF_DOWN ? of->rank - r : ROWS_OF_DOWN;
        const float *down[ROWS_OF_DOWN];
        for (long k = 0; k < ROWS_OF_DOWN; k++) down[k] = of->down + (r + (k < downs ? k : 0)) * in;
        for (long row = 0; row < rows; row++) {
            const Elem *values = x + at[row] * in;
            Floats sums[ROWS_OF_DOWN];
            long c = 0;
            for (long k = 0; k < ROWS_OF_DOWN; k++) sums[k] = splat(0.0f);
            for (; c + LANES <= in; c += LANES) {
                Floats value = load(values + c);
                for (long k = 0; k < ROWS_OF_DOWN; k++) sums[k] += value * get_floats(down[k] + c);
            }
            for (long k = 0; k < downs; k++) {
                float total = sum_lanes(sums[k]);
                for (long rest = c; rest < in; rest++) total += widen(values[rest]) * down[k][rest];
                inner[row][r + k] = total;
            }
        }
    }
}

/* out[at[n]] += B inner[n]; B lies as [rank][outputs], rows of out `stride` apart. */
INLINE void expand(const LowRank *of, float (*inner)[MOST_RANK], const long *at, long rows, Elem *out, long stride) {
    long c = 0;
    for (; c + 2 * LANES <= of->outputs; c += 2 * LANES) {
        for (long row = 0; row < rows; row++) {
            Elem *to = out + at[row] * stride + c;
            Floats low = load(to), high = load(to + LANES);
            for (long r = 0; r < of->rank; r++) {
                const float *up = of->up + r * of->outputs + c;
                low += inner[row][r] * get_floats(up);
                high += inner[row][r] * get_floats(up + LANES);
            }
            store(to, low), store(to + LANES, high);
        }
    }
    for (; c < of->outputs; c++) {
        for (long row = 0; row < rows; row++) {
            Elem *to = out + at[row] * stride + c;
            float value = widen(*to);
            for (long r = 0; r < of->rank; r++) value += inner[row][r] * of->up[r * of->outputs + c];
            *to = narrow(value);
        }
    }
}

/* Rows row .. row_end - 1 of a product that is done. `low`: of each of its parts the adapters, by number. */
static __attribute__((noinline)) void add_adapters(const Stage *s, const LowRank *low, const Elem *x, Elem *out, long outputs,
                                                   long row, long row_end) {
    float inner[ROWS_ALIKE][MOST_RANK];
    for (; row < row_end; row += WINDOW) {
        long count = row_end - row < WINDOW ? row_end - row : WINDOW;
        const int32_t *numbers = s->adapter_of + row;
        uint64_t left = 0;
        for (long n = 0; n < count; n++) left |= (uint64_t)(numbers[n] != 0) << n;
        while (left) {
            int32_t number = numbers[__builtin_ctzll(left)];
            long at[ROWS_ALIKE], rows = 0;
            for (uint64_t rest = left; rest && rows < ROWS_ALIKE; rest &= rest - 1) {
                long n = __builtin_ctzll(rest);
                if (numbers[n] != number) continue;
                at[rows++] = row + n, left &= ~((uint64_t)1 << n);
            }
            for (long part = 0; part < MOST_PARTS; part++) {
                const LowRank *of = low + part * s->adapters + number - 1;
                if (!of->rank) continue;
                shrink(of, x, at, rows, inner);
                expand(of, inner, at, rows, out + of->begin, outputs);
            }
        }
    }
}
