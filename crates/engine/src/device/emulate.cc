// An emulated device for tests: kernels.cu as C++, with the threads of a block as fibres on one thread.
//
// Decides how the features that CUDA adds to C++ are emulated: barriers, shuffles, matrix units. Threads run in orders
// that differ from block to block, so a missing barrier gives a wrong number. Invariant: behaviour that is undefined on
// a device is an error message here, not a number: lanes of a warp at different shuffles, a barrier that not all
// threads reach. Conversions round as on a device; products are added in another order. It says nothing about speed.

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

const unsigned LANES = 32;
const size_t STACK = 1 << 16;

struct Index {
  unsigned x, y, z;
};

struct Fibre {
  Index index;
  ucontext_t start;
  jmp_buf at;
  bool is_begun, is_done;
  std::vector<char> stack;
};

// Threads that wait for each other at the line `place`.
struct Barrier {
  unsigned size;
  int place;
  std::vector<Fibre *> waiting;
};

// A warp, and the values that its lanes exchange.
struct Warp {
  Barrier barrier;
  uint64_t shown[LANES][6];
};

std::vector<Fibre> fibres;
std::vector<Fibre *> ready;
std::vector<Warp> warps;
Barrier block;
Fibre *current;
jmp_buf scheduler;
void (*body)(void **);
void **arguments;
std::string trouble;
uint64_t lot = 1;

[[noreturn]] void leave() { _longjmp(scheduler, 1); }

__attribute__((noinline)) void rest() {
  if (_setjmp(current->at) == 0) leave();
}

void enter() {
  body(arguments);
  current->is_done = true;
  leave();
}

// Waits until all threads of a barrier have reached it.
__attribute__((noinline)) void meet(Barrier &barrier, int place) {
  if (barrier.waiting.empty()) barrier.place = place;
  if (barrier.place != place && trouble.empty())
    trouble = "threads meet at line " + std::to_string(place) + " and line " + std::to_string(barrier.place);
  barrier.waiting.push_back(current);
  if (barrier.waiting.size() == barrier.size) {
    ready.insert(ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
  }
  rest();
}

unsigned lane() { return current->index.x % LANES; }
Warp &own_warp() { return warps[current->index.x / LANES]; }

// Resumes one thread until it waits or ends.
void run(Fibre &fibre) {
  current = &fibre;
  bool is_begun = fibre.is_begun;
  fibre.is_begun = true;
  if (_setjmp(scheduler) != 0) return;
  if (is_begun) _longjmp(fibre.at, 1);
  getcontext(&fibre.start);
  fibre.start.uc_stack.ss_sp = fibre.stack.data();
  fibre.start.uc_stack.ss_size = STACK;
  fibre.start.uc_link = nullptr;
  makecontext(&fibre.start, enter, 0);
  setcontext(&fibre.start);
}

unsigned draw() {
  lot = lot * 6364136223846793005u + 1442695040888963407u;
  return lot >> 33;
}

// Runs one block until its end, or until no thread can continue. In about half of the blocks the next thread is random
// at each step; in the others a warp runs as far ahead of the rest as it can.
void run_block(unsigned threads) {
  block = {threads, 0, {}};
  warps.assign(threads / LANES, Warp{{LANES, 0, {}}, {}});
  ready.clear();
  unsigned first = draw() % threads;
  for (unsigned nth = 0; nth < threads; nth++) {
    Fibre &fibre = fibres[(first + nth) % threads];
    fibre.index = {(first + nth) % threads, 0, 0};
    fibre.is_begun = fibre.is_done = false;
    ready.push_back(&fibre);
  }
  bool is_eager = draw() % 2;
  while (!ready.empty()) {
    if (!is_eager) std::swap(ready[draw() % ready.size()], ready.back());
    Fibre *next = ready.back();
    ready.pop_back();
    run(*next);
  }
  for (unsigned nth = 0; nth < threads && trouble.empty(); nth++)
    if (!fibres[nth].is_done) trouble = "thread " + std::to_string(nth) + " waits for others that never come";
}

}  // namespace

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};

static Index blockIdx, blockDim;
#define threadIdx (current->index)
#define __syncthreads() meet(block, __LINE__)
#define __syncwarp() meet(own_warp().barrier, __LINE__)
#define __shfl_xor_sync(mask, value, step) shuffled(value, step, __LINE__)

template <class T>
static T shuffled(T value, unsigned step, int place) {
  memcpy(own_warp().shown[lane()], &value, sizeof value);
  meet(own_warp().barrier, place);
  T other;
  memcpy(&other, own_warp().shown[lane() ^ step], sizeof other);
  meet(own_warp().barrier, place);
  return other;
}

static float __uint_as_float(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
#define __expf expf
static float low_half(unsigned pair) { return __uint_as_float(pair << 16); }
static float high_half(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

#define MINUS_INFINITY __uint_as_float(0xff800000u)

// The functions of intrinsics.cu, emulated.

static unsigned short rounded(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline unsigned both_rounded(float first, float second) { return rounded(first) | (unsigned)rounded(second) << 16; }

inline void load(unsigned (&out)[4], const unsigned short *row, bool is_turned, int place) {
  own_warp().shown[lane()][0] = (uint64_t)row;
  meet(own_warp().barrier, place);
  unsigned a = lane() / 4, b = 2 * (lane() % 4);
  for (unsigned matrix = 0; matrix < 4; matrix++) {
    auto at = [&](unsigned row, unsigned column) {
      return (unsigned)((const unsigned short *)own_warp().shown[8 * matrix + row][0])[column];
    };
    out[matrix] = is_turned ? at(b, a) | at(b + 1, a) << 16 : at(a, b) | at(a, b + 1) << 16;
  }
  meet(own_warp().barrier, place);
}

#define load_matrices(out, row) load(out, row, false, __LINE__)
#define load_matrices_turned(out, row) load(out, row, true, __LINE__)
#define multiply(sums, a, b0, b1) multiplied(sums, a, b0, b1, __LINE__)

inline void multiplied(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, int place) {
  auto &shown = own_warp().shown;
  for (unsigned nth = 0; nth < 4; nth++) shown[lane()][nth] = a[nth];
  shown[lane()][4] = b0;
  shown[lane()][5] = b1;
  meet(own_warp().barrier, place);
  auto half = [](unsigned pair, unsigned nth) { return nth % 2 ? high_half(pair) : low_half(pair); };
  for (unsigned nth = 0; nth < 4; nth++) {
    unsigned row = lane() / 4 + 8 * (nth / 2), column = 2 * (lane() % 4) + nth % 2;
    for (unsigned k = 0; k < 16; k++) {
      unsigned of_a = shown[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)];
      unsigned of_b = shown[column * 4 + k % 8 / 2][4 + k / 8];
      sums[nth] += half(of_a, k) * half(of_b, k);
    }
  }
  meet(own_warp().barrier, place);
}

#include "kernels.cu"

template <auto kernel, class... Types, size_t... Nth>
static void call(void **arguments, void (*)(Types...), std::index_sequence<Nth...>) {
  kernel(*(std::remove_const_t<Types> *)arguments[Nth]...);
}

template <auto kernel, class... Types>
static void call(void **arguments, void (*known)(Types...)) {
  call<kernel>(arguments, known, std::index_sequence_for<Types...>());
}

template <auto kernel>
static void played(void **arguments) {
  call<kernel>(arguments, kernel);
}

// Runs a kernel over a grid, with arguments as for cuLaunchKernel; returns an error message, or null.
extern "C" const char *play(const char *name, unsigned wide, unsigned high, unsigned threads, void **with) {
  struct {
    const char *name;
    void (*body)(void **);
  } const known[] = {
#if defined(REAL_IS_BF16) && WIDTH % 16 == 0
      {"attend", played<attend>},
#endif
      {"attend_plain", played<attend_plain>},
      {"turn", played<turn>},
      {"add_norm", played<add_norm>},
      {"gate", played<gate>},
      {"score", played<score>},
  };
  body = nullptr;
  for (auto &kernel : known)
    if (!strcmp(kernel.name, name)) body = kernel.body;
  if (!body) return "no such kernel";
  if (threads % LANES) return "a block is warps of 32 threads";
  arguments = with;
  trouble.clear();
  blockDim = {threads, 1, 1};
  if (fibres.size() < threads) {
    fibres = std::vector<Fibre>(threads);
    for (Fibre &fibre : fibres) fibre.stack.resize(STACK);
  }
  for (blockIdx = {0, 0, 0}; blockIdx.y < high && trouble.empty(); blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < wide && trouble.empty(); blockIdx.x++)
      run_block(threads);
  return trouble.empty() ? nullptr : trouble.c_str();
}
