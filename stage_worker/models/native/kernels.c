/* CPU kernels of the layer stack: products with packed weights, attention over the paged KV pool, and the
 * passes between them. Compiled once per data type and kind of CPU, by macros (see build.py). Nothing here
 * allocates, and no function keeps state, so threads may share the work by ranges. */

#if LANES >= 8
#include <immintrin.h>
#endif

#include <sched.h>

#include "tile.h"

#include "bytes.h"
#include "wide_tile.h"
#include "packed.h"
#include "product.h"
#include "rows.h"

#include "store.h"

#include "attention_item.h"

#include "attention_bytes.h"

#include "attention.h"

#include "adapters.h"

#include "layers.h"
