// Kernels of a device's forward pass, compiled for one model when it is loaded.
//
// Decides how a row is rotated, attended, normed, gated and scored. REAL_IS_BF16 sets the type of weights and
// activations; sums are always f32. Needs WIDTH (of a head), HEADS, KV_HEADS, HIDDEN. No headers are included, because
// a machine that runs this may have none. plain.rs has the same steps in Rust: every change is made in both. Tests
// compare both with the CPU's own path, these kernels by emulate.cc.

#define GROUP (HEADS / KV_HEADS)
#define HALF (WIDTH / 2)
#define PAIRS ((HALF + 31) / 32)
#define ALL 0xffffffffu
#define NEVER (-1e30f)

typedef unsigned long long address;

#ifdef REAL_IS_BF16
typedef unsigned short real;
__device__ __forceinline__ float wide(real x) { return __uint_as_float((unsigned)x << 16); }
__device__ __forceinline__ real narrow(float x) { return rounded(x); }
#else
typedef float real;
__device__ __forceinline__ float wide(real x) { return x; }
__device__ __forceinline__ real narrow(float x) { return x; }
#endif

__device__ __forceinline__ float sum_of_warp(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
  return x;
}

// One head of one row by one warp: bias, norm, rotation.
__device__ __forceinline__ void turn_head(const real *in, const real *bias, const float *norm, const float *cosine,
                                          const float *sine, float epsilon, real *out) {
  int lane = threadIdx.x % 32;
  float a[PAIRS], b[PAIRS], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int at = lane + 32 * i;
    a[i] = b[i] = 0.0f;
    if (at < HALF) {
      a[i] = wide(in[at]);
      b[i] = wide(in[at + HALF]);
      if (bias) {
        a[i] += wide(bias[at]);
        b[i] += wide(bias[at + HALF]);
      }
    }
    squares += a[i] * a[i] + b[i] * b[i];
  }
  if (norm) {
    float scale = rsqrtf(sum_of_warp(squares) / WIDTH + epsilon);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      int at = lane + 32 * i;
      if (at < HALF) {
        a[i] *= scale * norm[at];
        b[i] *= scale * norm[at + HALF];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int at = lane + 32 * i;
    if (at < HALF) {
      out[at] = narrow(a[i] * cosine[at] - b[i] * sine[at]);
      out[at + HALF] = narrow(a[i] * sine[at] + b[i] * cosine[at]);
    }
  }
}

// qkv [rows, HEADS + 2 KV_HEADS, WIDTH] -> queries [rows, HEADS, WIDTH], keys and values [rows, KV_HEADS, WIDTH] each.
// A warp per head; bias [HEADS + 2 KV_HEADS, WIDTH] and norms [2, WIDTH] may be absent.
extern "C" __global__ void turn(const real *qkv, const real *bias, const float *norms, const float *cosine,
                                const float *sine, const unsigned *positions, real *queries, real *keys, real *values,
                                int rows, float epsilon) {
  int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int all = HEADS + 2 * KV_HEADS;
  int row = warp / all, head = warp % all;
  if (row >= rows) return;
  const real *in = qkv + (size_t)warp * WIDTH;
  const real *own = bias ? bias + head * WIDTH : 0;
  if (head >= HEADS + KV_HEADS) {
    real *out = values + ((size_t)row * KV_HEADS + head - HEADS - KV_HEADS) * WIDTH;
    for (int at = lane; at < WIDTH; at += 32) out[at] = own ? narrow(wide(in[at]) + wide(own[at])) : in[at];
    return;
  }
  size_t angle = (size_t)positions[row] * HALF;
  bool is_query = head < HEADS;
  real *out = is_query ? queries + ((size_t)row * HEADS + head) * WIDTH
                       : keys + ((size_t)row * KV_HEADS + head - HEADS) * WIDTH;
  const float *norm = norms ? norms + (is_query ? 0 : WIDTH) : 0;
  turn_head(in, own, norm, cosine + angle, sine + angle, epsilon, out);
}

// Where the sections of a pass begin in `meta`, which plan.rs writes.
struct Where {
  int chunks, spans, runs, sights, starts, ancestors;
};

// Keys (part 0) or values (part 1) of a row of a chunk [layers, 2, rows, KV_HEADS, WIDTH], of one head.
__device__ __forceinline__ const real *row_of(const unsigned *meta, Where where, unsigned chunk, unsigned row, int layer,
                                              int part, int head) {
  const unsigned *entry = meta + where.chunks + 3 * chunk;
  const real *base = (const real *)((address)entry[0] | (address)entry[1] << 32);
  size_t rows = entry[2];
  return base + (((size_t)(2 * layer + part) * rows + row) * KV_HEADS + head) * WIDTH;
}

#define QUERIES_PLAIN 32
#define KEYS_PLAIN 16
#define PART ((WIDTH + 3) / 4)

// Attention by plain products: four threads per query, each with every fourth number of it. Grid: tiles, KV_HEADS; 128
// threads.
extern "C" __global__ void attend_plain(const real *queries, real *out, const unsigned *meta, int tiles, Where where,
                                        int layer, float scale) {
  __shared__ float keys[KEYS_PLAIN][WIDTH], values[KEYS_PLAIN][WIDTH];
  const unsigned *tile = meta + tiles + 2 * blockIdx.x;
  const unsigned *span = meta + where.spans + 4 * tile[0];
  int head = blockIdx.y, part = threadIdx.x % 4;
  int count = span[1] * GROUP, query = tile[1] + threadIdx.x / 4;
  bool valid = query < count;
  int row = span[0] + (valid ? query : count - 1) / GROUP;
  size_t at_query = ((size_t)row * HEADS + head * GROUP + (valid ? query : count - 1) % GROUP) * WIDTH;
  int sight = (int)meta[where.sights + row];
  int last = tile[1] + QUERIES_PLAIN - 1;
  int furthest = (int)meta[where.sights + span[0] + (last < count ? last : count - 1) / GROUP];
  float q[PART], mixed[PART], top = NEVER, total = 0.0f;
#pragma unroll
  for (int i = 0; i < PART; i++) {
    int at = part + 4 * i;
    q[i] = at < WIDTH ? wide(queries[at_query + at]) * scale : 0.0f;
    mixed[i] = 0.0f;
  }
  for (unsigned nth = span[2]; nth < span[3]; nth++) {
    const unsigned *run = meta + where.runs + 4 * nth;
    int length = (int)run[2], position = (int)run[3];
    const real *from_keys = row_of(meta, where, run[0], run[1], layer, 0, head);
    const real *from_values = row_of(meta, where, run[0], run[1], layer, 1, head);
    for (int first = 0; first < length && position + first < furthest; first += KEYS_PLAIN) {
      __syncthreads();
      for (int i = threadIdx.x; i < KEYS_PLAIN * WIDTH; i += 128) {
        int key = i / WIDTH, at = i % WIDTH;
        bool is_there = first + key < length;
        size_t from = (size_t)(first + key) * KV_HEADS * WIDTH + at;
        keys[key][at] = is_there ? wide(from_keys[from]) : 0.0f;
        values[key][at] = is_there ? wide(from_values[from]) : 0.0f;
      }
      __syncthreads();
      for (int key = 0; key < KEYS_PLAIN; key++) {
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < PART; i++)
          if (part + 4 * i < WIDTH) score += q[i] * keys[key][part + 4 * i];
        score += __shfl_xor_sync(ALL, score, 1);
        score += __shfl_xor_sync(ALL, score, 2);
        if (first + key >= length || position + first + key >= sight) score = MINUS_INFINITY;
        float higher = fmaxf(top, score), less = __expf(top - higher), weight = __expf(score - higher);
        top = higher;
        total = total * less + weight;
#pragma unroll
        for (int i = 0; i < PART; i++)
          if (part + 4 * i < WIDTH) mixed[i] = mixed[i] * less + weight * values[key][part + 4 * i];
      }
    }
  }
  unsigned from = meta[where.starts + row], to = meta[where.starts + row + 1];
  unsigned most = to - from;
  for (int step = 16; step > 0; step /= 2) {
    unsigned other = __shfl_xor_sync(ALL, most, step);
    most = other > most ? other : most;
  }
  for (unsigned nth = 0; nth < most; nth++) {
    bool is_there = from + nth < to;
    const unsigned *of = meta + where.ancestors + 2 * (is_there ? from + nth : 0);
    const real *key = is_there ? row_of(meta, where, of[0], of[1], layer, 0, head) : 0;
    const real *value = is_there ? row_of(meta, where, of[0], of[1], layer, 1, head) : 0;
    float score = 0.0f;
#pragma unroll
    for (int i = 0; i < PART; i++)
      if (is_there && part + 4 * i < WIDTH) score += q[i] * wide(key[part + 4 * i]);
    score += __shfl_xor_sync(ALL, score, 1);
    score += __shfl_xor_sync(ALL, score, 2);
    if (!is_there) continue;
    float higher = fmaxf(top, score), less = __expf(top - higher), weight = __expf(score - higher);
    top = higher;
    total = total * less + weight;
#pragma unroll
    for (int i = 0; i < PART; i++)
      if (part + 4 * i < WIDTH) mixed[i] = mixed[i] * less + weight * wide(value[part + 4 * i]);
  }
  if (!valid) return;
#pragma unroll
  for (int i = 0; i < PART; i++)
    if (part + 4 * i < WIDTH) out[at_query + part + 4 * i] = narrow(mixed[i] / total);
}

#if defined(REAL_IS_BF16) && WIDTH % 16 == 0
#define QUERIES 64
#define KEYS 64
// Eight numbers more than a row has, so that eight rows are in different banks of shared memory.
#define PITCH (WIDTH + 8)
#define TO_BASE_2 1.4426950408889634f

__device__ __forceinline__ unsigned pair_at(const real *from) { return *(const unsigned *)from; }
__device__ __forceinline__ float low(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Attention by matrix units: 64 queries per tile, 16 per warp. Grid: tiles, KV_HEADS; 128 threads. A lane has numbers
// of two queries: rows lane / 4 and lane / 4 + 8 of the fragments.
extern "C" __global__ void __launch_bounds__(128)
    attend(const real *queries, real *out, const unsigned *meta, int tiles, Where where, int layer, float scale) {
  __shared__ __align__(16) real keys[KEYS * PITCH], values[KEYS * PITCH];
  const unsigned *tile = meta + tiles + 2 * blockIdx.x;
  const unsigned *span = meta + where.spans + 4 * tile[0];
  const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, pair = 2 * (lane % 4);
  const int count = span[1] * GROUP;
  bool valid[2];
  int row[2], sight[2];
  size_t at_query[2];
  for (int two = 0; two < 2; two++) {
    int query = tile[1] + 16 * warp + lane / 4 + 8 * two;
    valid[two] = query < count;
    query = valid[two] ? query : count - 1;
    row[two] = span[0] + query / GROUP;
    at_query[two] = ((size_t)row[two] * HEADS + head * GROUP + query % GROUP) * WIDTH;
    sight[two] = (int)meta[where.sights + row[two]];
  }
  int last = tile[1] + QUERIES - 1;
  // Each row sees more positions than the row before it, or all rows see the same number.
  const int nearest = (int)meta[where.sights + span[0] + tile[1] / GROUP];
  const int furthest = (int)meta[where.sights + span[0] + (last < count ? last : count - 1) / GROUP];
  unsigned q[WIDTH / 16][4];
  float mixed[WIDTH / 8][4], top[2] = {NEVER, NEVER}, total[2] = {0.0f, 0.0f};
#pragma unroll
  for (int k = 0; k < WIDTH / 16; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) q[k][i] = pair_at(queries + at_query[i % 2] + 16 * k + 8 * (i / 2) + pair);
#pragma unroll
  for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) mixed[n][i] = 0.0f;
  scale *= TO_BASE_2;
  for (unsigned nth = span[2]; nth < span[3]; nth++) {
    const unsigned *run = meta + where.runs + 4 * nth;
    int length = (int)run[2], position = (int)run[3];
    const real *from_keys = row_of(meta, where, run[0], run[1], layer, 0, head);
    const real *from_values = row_of(meta, where, run[0], run[1], layer, 1, head);
    for (int first = 0; first < length && position + first < furthest; first += KEYS) {
      __syncthreads();
#pragma unroll 4
      for (int i = threadIdx.x; i < KEYS * (WIDTH / 8); i += 128) {
        int key = i / (WIDTH / 8), at = i % (WIDTH / 8) * 8;
        size_t from = (size_t)(first + key) * KV_HEADS * WIDTH + at;
        uint4 nothing = {0, 0, 0, 0};
        bool is_there = first + key < length;
        *(uint4 *)(keys + key * PITCH + at) = is_there ? *(const uint4 *)(from_keys + from) : nothing;
        *(uint4 *)(values + key * PITCH + at) = is_there ? *(const uint4 *)(from_values + from) : nothing;
      }
      __syncthreads();
      float scores[KEYS / 8][4];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
      for (int k = 0; k < WIDTH / 16; k++)
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
          unsigned b[4];
          int key = 16 * n + lane / 16 * 8 + lane % 8, at = 16 * k + lane / 8 % 2 * 8;
          load_matrices(b, keys + key * PITCH + at);
          multiply(scores[2 * n], q[k], b[0], b[1]);
          multiply(scores[2 * n + 1], q[k], b[2], b[3]);
        }
      bool is_whole = first + KEYS <= length && position + first + KEYS <= nearest;
      float higher[2] = {top[0], top[1]};
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          int key = first + 8 * n + pair + i % 2;
          bool seen = is_whole || (key < length && position + key < sight[i / 2]);
          scores[n][i] = seen ? scores[n][i] * scale : MINUS_INFINITY;
          higher[i / 2] = fmaxf(higher[i / 2], scores[n][i]);
        }
      float less[2];
#pragma unroll
      for (int two = 0; two < 2; two++) {
        higher[two] = fmaxf(higher[two], __shfl_xor_sync(ALL, higher[two], 1));
        higher[two] = fmaxf(higher[two], __shfl_xor_sync(ALL, higher[two], 2));
        less[two] = exp2f(top[two] - higher[two]);
        top[two] = higher[two];
        total[two] *= less[two];
      }
#pragma unroll
      for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) mixed[n][i] *= less[i / 2];
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          scores[n][i] = exp2f(scores[n][i] - top[i / 2]);
          total[i / 2] += scores[n][i];
        }
#pragma unroll
      for (int k = 0; k < KEYS / 16; k++) {
        unsigned a[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          a[i] = both_rounded(scores[2 * k + i / 2][2 * (i % 2)], scores[2 * k + i / 2][2 * (i % 2) + 1]);
#pragma unroll
        for (int n = 0; n < WIDTH / 16; n++) {
          unsigned b[4];
          int key = 16 * k + lane / 8 % 2 * 8 + lane % 8, at = 16 * n + lane / 16 * 8;
          load_matrices_turned(b, values + key * PITCH + at);
          multiply(mixed[2 * n], a, b[0], b[1]);
          multiply(mixed[2 * n + 1], a, b[2], b[3]);
        }
      }
    }
  }
#pragma unroll
  for (int two = 0; two < 2; two++) {
    unsigned from = meta[where.starts + row[two]], to = meta[where.starts + row[two] + 1];
    unsigned most = to - from;
    for (int step = 16; step > 0; step /= 2) {
      unsigned other = __shfl_xor_sync(ALL, most, step);
      most = other > most ? other : most;
    }
    for (unsigned nth = 0; nth < most; nth++) {
      bool is_there = from + nth < to;
      const unsigned *of = meta + where.ancestors + 2 * (is_there ? from + nth : 0);
      const real *key = is_there ? row_of(meta, where, of[0], of[1], layer, 0, head) : 0;
      const real *value = is_there ? row_of(meta, where, of[0], of[1], layer, 1, head) : 0;
      float score = 0.0f;
#pragma unroll
      for (int k = 0; k < WIDTH / 8; k++) {
        unsigned own = q[k / 2][two + 2 * (k % 2)], its = is_there ? pair_at(key + 8 * k + pair) : 0;
        score += low(own) * low(its) + high(own) * high(its);
      }
      score += __shfl_xor_sync(ALL, score, 1);
      score += __shfl_xor_sync(ALL, score, 2);
      if (!is_there) continue;
      score *= scale;
      float higher = fmaxf(top[two], score), less = exp2f(top[two] - higher), weight = exp2f(score - higher);
      top[two] = higher;
      // The four lanes of a query each have a part of the total; the parts are added below.
      total[two] = total[two] * less + (pair == 0 ? weight : 0.0f);
#pragma unroll
      for (int n = 0; n < WIDTH / 8; n++) {
        unsigned its = pair_at(value + 8 * n + pair);
        mixed[n][2 * two] = mixed[n][2 * two] * less + weight * low(its);
        mixed[n][2 * two + 1] = mixed[n][2 * two + 1] * less + weight * high(its);
      }
    }
    __syncwarp();
    float all = total[two] + __shfl_xor_sync(ALL, total[two], 1);
    all += __shfl_xor_sync(ALL, all, 2);
    if (valid[two]) {
#pragma unroll
      for (int n = 0; n < WIDTH / 8; n++)
        *(unsigned *)(out + at_query[two] + 8 * n + pair) = both_rounded(mixed[n][2 * two] / all, mixed[n][2 * two + 1] / all);
    }
  }
}
#endif

// sums = x + y (+ bias), and their norm: out [2, rows, HIDDEN]. A block of 256 threads per row.
extern "C" __global__ void add_norm(const real *x, const real *y, const real *bias, const real *weight, real *out, int rows,
                                    float epsilon) {
  __shared__ float parts[8];
  const int each = (HIDDEN + 255) / 256;
  size_t from = (size_t)blockIdx.x * HIDDEN, to = from + (size_t)rows * HIDDEN;
  float own[each], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < each; i++) {
    int at = threadIdx.x + 256 * i;
    own[i] = 0.0f;
    if (at < HIDDEN) {
      real sum = narrow(wide(x[from + at]) + wide(y[from + at]) + (bias ? wide(bias[at]) : 0.0f));
      out[from + at] = sum;
      own[i] = wide(sum);
    }
    squares += own[i] * own[i];
  }
  squares = sum_of_warp(squares);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = squares;
  __syncthreads();
  float all = 0.0f;
  for (int i = 0; i < 8; i++) all += parts[i];
  float scale = rsqrtf(all / HIDDEN + epsilon);
#pragma unroll
  for (int i = 0; i < each; i++) {
    int at = threadIdx.x + 256 * i;
    if (at < HIDDEN) out[to + at] = narrow(own[i] * scale * wide(weight[at]));
  }
}

// [rows, 2, width] (gate, up) -> [rows, width]: silu(gate) · up. Grid: rows, enough blocks of 256 threads for a row.
extern "C" __global__ void gate(const real *in, real *out, int width) {
  int at = blockIdx.y * 256 + threadIdx.x;
  if (at >= width) return;
  size_t from = (size_t)blockIdx.x * 2 * width + at;
  float x = wide(in[from]);
  out[(size_t)blockIdx.x * width + at] = narrow(x / (1.0f + __expf(-x)) * wide(in[from + width]));
}

#define PAIRS_OF_ROW ((HIDDEN / 2 + 31) / 32)

// Logits of a few tokens after a row each (HIDDEN is even): lists [items, 3] of (row of hidden, first, one past the
// last) in tokens. A block of 128 threads per item, a warp per token.
extern "C" __global__ void score(const float *hidden, const real *head, const unsigned *lists, const unsigned *tokens,
                                 float *out) {
  const unsigned *list = lists + 3 * blockIdx.x;
  const float *row = hidden + (size_t)list[0] * HIDDEN;
  int lane = threadIdx.x % 32;
  float own[2 * PAIRS_OF_ROW];
#pragma unroll
  for (int i = 0; i < PAIRS_OF_ROW; i++) {
    int at = 2 * (lane + 32 * i);
    own[2 * i] = at < HIDDEN ? row[at] : 0.0f;
    own[2 * i + 1] = at < HIDDEN ? row[at + 1] : 0.0f;
  }
  for (unsigned nth = list[1] + threadIdx.x / 32; nth < list[2]; nth += 4) {
    const real *weights = head + (size_t)tokens[nth] * HIDDEN;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PAIRS_OF_ROW; i++) {
      int at = 2 * (lane + 32 * i);
      if (at < HIDDEN) {
#ifdef REAL_IS_BF16
        unsigned both = *(const unsigned *)(weights + at);
        float first = __uint_as_float(both << 16), second = __uint_as_float(both & 0xffff0000u);
#else
        float2 both = *(const float2 *)(weights + at);
        float first = both.x, second = both.y;
#endif
        sum += own[2 * i] * first + own[2 * i + 1] * second;
      }
    }
    sum = sum_of_warp(sum);
    if (lane == 0) out[nth] = sum;
  }
}
