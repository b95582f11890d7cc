/* Passes over rows between the products, with Hugging Face's roundings. */

/* y = weight * round(x / rms(x)), all [columns]. */
INLINE void norm_row(const Elem *x, const Elem *weight, float eps, long columns, Elem *y) {
    Floats squares = {0};
    long c = 0;
    for (; c + LANES <= columns; c += LANES) {
        Floats value = load(x + c);
        squares += value * value;
    }
    float total = sum_lanes(squares);
    for (; c < columns; c++) total += widen(x[c]) * widen(x[c]);
    float factor = 1.0f / __builtin_sqrtf(total / (float)columns + eps);
    for (c = 0; c + LANES <= columns; c += LANES)
        store(y + c, stored(load(x + c) * factor) * load(weight + c));
    for (; c < columns; c++) y[c] = narrow(widen(narrow(widen(x[c]) * factor)) * widen(weight[c]));
}

/* x += y, one row. */
INLINE void add_row(const Rows *p, long row) {
    Elem *x = (Elem *)p->x + row * p->columns;
    const Elem *y = (const Elem *)p->y + row * p->columns;
    long c = 0;
    for (; c + LANES <= p->columns; c += LANES) store(x + c, load(x + c) + load(y + c));
    for (; c < p->columns; c++) x[c] = narrow(widen(x[c]) + widen(y[c]));
}

INLINE void add_rows(const Rows *p, long row_begin, long row_end) {
    for (long row = row_begin; row < row_end; row++) add_row(p, row);
}

/* x += y (unless y is null); out = norm of x. */
KERNEL tidepipe_norm(const Rows *p, int64_t row_begin, int64_t row_end) {
    for (long row = row_begin; row < row_end; row++) {
        const Elem *x = (const Elem *)p->x + row * p->columns;
        if (p->y) add_row(p, row);
        norm_row(x, (const Elem *)p->weight, p->eps, p->columns, (Elem *)p->out + row * p->columns);
    }
}

/* 2^x for x <= 0 (1 at 0 exactly), to within 2 units in the last place. */
INLINE Floats power_of_two(Floats x) {
    x = larger(splat(-126.0f), x);    /* in this order a NaN stays one */
    Floats shifted = x + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number, which the low bits then hold */
    Floats f = x - (shifted - 12582912.0f);
    Floats result = splat(1.5403530e-4f);
    result = result * f + 1.3333558e-3f;
    result = result * f + 9.6181291e-3f;
    result = result * f + 5.5504109e-2f;
    result = result * f + 2.4022651e-1f;
    result = result * f + 6.9314718e-1f;
    result = result * f + 1.0f;
    return (Floats)((Words)result + ((Words)shifted << 23));
}

/* round(silu(gate)) * up, LANES of each, stored to `out`. */
INLINE void swiglu_lanes(const Elem *gate, const Elem *up, Elem *out) {
    Floats g = load(gate);
    /* silu = g / (1 + e^-g), written with e^-|g|, which cannot overflow. */
    Floats small = power_of_two(larger(g, -g) * -1.44269504f);
    Floats silu = g * blend(g < 0.0f, small, splat(1.0f)) / (small + 1.0f);
    store(out, stored(silu) * load(up));
}

/* out = round(silu(gate)) * up, where x is [rows][gate, up], each of `columns`. */
KERNEL tidepipe_swiglu(const Rows *p, int64_t row_begin, int64_t row_end) {
    for (long row = row_begin; row < row_end; row++) {
        const Elem *gate = (const Elem *)p->x + row * 2 * p->columns;
        const Elem *up = gate + p->columns;
        Elem *out = (Elem *)p->out + row * p->columns;
        long c = 0;
        for (; c + LANES <= p->columns; c += LANES) swiglu_lanes(gate + c, up + c, out + c);
        if (c < p->columns) {
            Elem tail[3][LANES] = {{0}};
            for (long k = 0; c + k < p->columns; k++) tail[0][k] = gate[c + k], tail[1][k] = up[c + k];
            swiglu_lanes(tail[0], tail[1], tail[2]);
            for (long k = 0; c + k < p->columns; k++) out[c + k] = tail[2][k];
        }
    }
}
