/* What Python passes to the kernels; library.py mirrors these structures. Sizes count elements. */
#ifndef TIDEPIPE_NATIVE_H
#define TIDEPIPE_NATIVE_H

#include <stdint.h>

#define GROUP 16 /* outputs, or KV slots, that lie side by side in packed weights and in the KV pool */
#define PANEL 64 /* outputs, or KV slots, that one tile computes */
#define MOST_RANK 512 /* of an adapter */
#define MOST_PARTS 3  /* products that are fused into one */
#define ADAPTED 4     /* products of a layer */

/* Attention of one layer over packed rows.
 * qkv: [tokens][(heads + 2 kv_heads) * head_dim], rotated in place. out: [tokens][heads * head_dim].
 * keys: per block and head, for each 16 slots [head_dim / pair][16][pair] with pair 2 for bfloat16, else 1.
 * values: likewise [16 / pair][head_dim][pair].
 * kv_int8: the pool holds bytes, whatever the data type: keys 128 + k for each 16 slots [head_dim / 4][16][4],
 * values [16 / 4][head_dim][4], and behind each 16 slots their 16 scales, floats.
 * slot_bytes: a head's share of one slot, scale included. block_stride: bytes from block to block.
 * cos, sin: float [positions][head_dim / 2].
 * q_norm, k_norm: [head_dim] or null. window: positions that a token sees, itself included; 0 for all.
 * Per token: positions, slots (block * block_size + offset).
 * Per row: offsets (first token), first_positions, tables [table_width].
 * order: numbers of rows, so that those of an item stand side by side, by their positions.
 * Per item: item_rows rows from number item_first of `order` on, queries item_begin .. item_end - 1 of each (of several
 * rows one query each), a range of key heads, and how many slots, whole tiles, are the same for all its rows. */
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
    const int32_t *order;
    const int32_t *item_first;
    const int32_t *item_rows;
    const int32_t *item_shared;
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
    int64_t slot_bytes;
    int64_t kv_int8;
    int64_t window;
    int64_t rope;
    float norm_eps;
    float scale;
} Attention;

/* Rows rounded to int8, each with a scale of its own: x is about values * scale.
 * values: [rows][inputs]. shifts: 128 times the sum of a row's values. */
typedef struct {
    int8_t *values;
    float *scales;
    int32_t *shifts;
} Bytes;

/* How a code becomes a number: itself, as an e4m3 (8 bits), or the entry of a table (4 bits). */
#define CODE_4 4
#define CODE_5 5
#define CODE_6 6
#define CODE_8 8
#define CODE_FLOAT8 9
#define CODE_TABLE 10
#define SCALE_FLOAT 0
#define SCALE_HALF 1
#define SCALE_BFLOAT 2
#define SCALE_BYTE 3

/* Weights of few bits, (number of the code - zero) * scale + least.
 * codes: for each 64 outputs [inputs / n][64] words of n = 8 codes' low four bits, or of 4 codes of 8 bits.
 * more: of codes of 5 or 6 bits the others, [inputs * bits / 32][64] words.
 * scales, zeros, least: for each 64 outputs [groups][64] of one kind; zeros null: zero; least null: 0.
 * units, least_units: half floats [unit_count][64] that scales and least are multiples of, or null.
 * group_of: the group of each input, or null where `group` inputs in a row are one. table: 16 entries. */
typedef struct {
    const uint32_t *codes;
    const uint32_t *more;
    const void *scales;
    const void *zeros;
    const void *least;
    const uint16_t *units;
    const uint16_t *least_units;
    const int32_t *group_of;
    const float *table;
    int64_t code;
    int64_t scale_kind;
    int64_t group;
    int64_t groups;
    int64_t unit_count;
    int64_t groups_per_unit;
    float zero;
} Packed;

/* x [rows][inputs] times packed weights, plus bias, into out [rows][stride], the first `outputs` of each row.
 * weight: for each 64 outputs [inputs / pair][64][pair], zeros behind the last. bias: float or null.
 * scales: null, or float [outputs] if the weights are int8 (then packed as bytes 128 + w, [inputs / 4][64][4]);
 * such a product reads `bytes` instead of x.
 * packed: null, or weights of few bits, instead of `weight`.
 * beside: null, or a product of the same x whose outputs stand behind these in each row, and so on.
 * float_out: out is float whatever x is. */
typedef struct Product Product;
struct Product {
    const void *x;
    Bytes bytes;
    const void *weight;
    const float *scales;
    const float *bias;
    void *out;
    const Packed *packed;
    const Product *beside;
    int64_t rows;
    int64_t inputs;
    int64_t outputs;
    int64_t stride;
    int64_t float_out;
};

/* One pass over rows: see the kernels. x, y, weight, out: [rows][columns], weight [columns]. */
typedef struct {
    void *x;
    const void *y;
    const void *weight;
    void *out;
    Bytes bytes; /* where `quantize` puts the rows */
    int64_t rows;
    int64_t columns;
    float eps;
} Rows;

/* One decoder layer: weights, and its part of the KV pool. */
typedef struct {
    const void *input_norm;
    const void *mlp_norm;
    const void *q_norm;
    const void *k_norm;
    Product qkv;
    Product output;
    Product gate_up;
    Product down;
    void *keys;
    void *values;
    int64_t window;
    int64_t rope;
} Layer;

/* One adapter of one part of a product, or none (rank 0). down: [rank][inputs]. up: [rank][outputs].
 * begin: its first output among those of the product. */
typedef struct {
    const float *down;
    const float *up;
    int64_t rank;
    int64_t inputs;
    int64_t outputs;
    int64_t begin;
} LowRank;

/* A step through all layers of a stage.
 * attention: what the layers have in common. bounds: items of attention of each thread [threads + 1].
 * residual: [tokens][hidden], in and out. The other buffers are for one layer's results, bytes for int8 inputs.
 * arrived: zero at first; the threads meet here. stored: layers whose keys and values are in the pool.
 * low_rank: null, or [layers][ADAPTED][MOST_PARTS][adapters]. adapter_of: of each token the number of its adapter, from
 * 1; 0 for none. */
typedef struct {
    const Layer *layers;
    int64_t layer_count;
    Attention attention;
    const int64_t *bounds;
    void *residual;
    void *normed;
    void *qkv;
    void *attended;
    void *projected;
    void *gate_up;
    void *gated;
    Bytes bytes;
    int64_t tokens;
    int64_t hidden;
    int64_t threads;
    int64_t arrived;
    int64_t *stored;
    float eps;
    int64_t adapters;
    const LowRank *low_rank;
    const int32_t *adapter_of;
} Stage;

#endif
