/* What Python passes to the kernels; library.py mirrors these structures. Sizes count elements. */
#ifndef TIDEPIPE_NATIVE_H
#define TIDEPIPE_NATIVE_H

#include <stdint.h>

#define GROUP 16 /* outputs, or KV slots, that lie side by side in packed weights and in the KV pool */
#define PANEL 64 /* outputs, or KV slots, that one tile computes */

/* Attention of one layer over packed rows.
 * qkv: [tokens][(heads + 2 kv_heads) * head_dim], rotated in place. out: [tokens][heads * head_dim].
 * keys: per block and head, for each 16 slots [head_dim / pair][16][pair] with pair 2 for bfloat16, else 1.
 * values: likewise [16 / pair][head_dim][pair]. block_stride: elements from block to block.
 * cos, sin: float [positions][head_dim / 2].
 * q_norm, k_norm: [head_dim] or null. window: positions that a token sees, itself included; 0 for all.
 * Per token: positions, slots (block * block_size + offset).
 * Per row: offsets (first token), first_positions, tables [table_width].
 * Per item: its row, the queries item_begin .. item_end - 1 of the row, and a range of key heads. */
typedef struct {
    void *qkv;
    void *out;
    void *keys;
    void *values;
    const float *cos;
    const float *sin;
    const void *q_norm;
    const void *k_norm;
    const int64_t *positions;
    const int64_t *slots;
    const int32_t *offsets;
    const int32_t *first_positions;
    const int32_t *tables;
    const int32_t *item_row;
    const int32_t *item_begin;
    const int32_t *item_end;
    const int32_t *item_head_begin;
    const int32_t *item_head_end;
    int64_t table_width;
    int64_t heads;
    int64_t kv_heads;
    int64_t head_dim;
    int64_t block_size;
    int64_t block_stride;
    int64_t window;
    int64_t rope;
    float norm_eps;
    float scale;
} Attention;

/* x [rows][inputs] times packed weights, plus bias, into out [rows][outputs].
 * weight: for each 64 outputs [inputs / pair][64][pair], zeros behind the last. bias: float or null.
 * float_out: out is float whatever x is. */
typedef struct {
    const void *x;
    const void *weight;
    const float *bias;
    void *out;
    int64_t rows;
    int64_t inputs;
    int64_t outputs;
    int64_t float_out;
} Product;

/* One pass over rows: see the kernels. x, y, weight, out: [rows][columns], weight [columns]. */
typedef struct {
    void *x;
    const void *y;
    const void *weight;
    void *out;
    int64_t rows;
    int64_t columns;
    float eps;
} Rows;

#endif
