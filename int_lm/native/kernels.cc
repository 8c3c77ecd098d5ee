// Kernels for CPUs, called by XLA: what JAX says in many operations, each of which goes through
// memory, is one pass here. They compute the same integers (tests/test_native.py).
//
//   linear   int8 [P, N] x W [M, N], the low-rank perturbation, both shifts and the narrowing
//   norm     the L1 norm
//   likelihood                       log2 p(target) of logits (likelihood.py)
//   errors, stream, through, unit    what votes are made of, dithered (credit.py, votes.py)
//   direct_added, direct_update      direct connections: read, and learnt (direct.py)
//   hash                             of weights (hashing.py)
//   outer    sum over tokens and pairs of outer products, of int8 [J, M] and [J, N]
//
// Sums are those of int32, exact within the bounds that config.validate checks. The instruction set
// is chosen when a kernel runs: AVX-512 with VNNI, or AVX2. What XLA calls is in handlers.inc.

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int BLOCK_TILES = 8;  // tiles of rows in a piece of work: their inputs fit the L1 cache
constexpr int NORM_ROWS = 64;   // likewise
constexpr int64_t LITTLE_WORK = 1 << 14;
constexpr int64_t UNPACKED_ROWS = 2;  // of a linear whose weights are read as they are
constexpr uint32_t DITHER_COLUMN = 0x85EBCA77, HASH_POSITION = 0x9E3779B1;
constexpr int64_t HASH_WORDS = 1 << 17;  // hashed by one thread at a time
constexpr int32_t CREDIT_MOST = (1 << 13) - 1, DIVIDEND_MOST = (1 << 14) - 1;
constexpr int32_t NO_TARGET = -1, DISTANCE_MOST = 254;
constexpr int64_t NARROW_VOCABULARY = 256;
constexpr int MOVE_BITS = 23;  // direct._MOVE_BITS

// W, its perturbation (rank 0 for none: `left` and `right` are then not read) and its shifts.
struct Linear {
  const int8_t *x, *weight, *left, *right;
  int64_t rows, inputs, outputs;
  int rank, low, high;
};

// Operands of a sum of outer products.
struct Outer {
  const int8_t *left, *right;
  int64_t terms, rows, columns;
};

// What fixed.dither makes of a row and a position, at column 0.
inline uint32_t dither_word(uint32_t row, uint32_t position) {
  return row * 0x9E3779B1u + position * 0xC2B2AE3Du;
}

// Of fixed.dither: rows are those of [T, I], tokens of the step's segment by pairs.
struct Dither {
  const int32_t* numbers;  // of the pairs
  int64_t pairs, length;
  uint32_t step;
  uint32_t word(int64_t row) const {
    const uint32_t place = uint32_t(row / pairs) + step * uint32_t(length);
    return dither_word(uint32_t(numbers[row % pairs]), place);
  }
};

// Credit taken back through W [inputs, outputs] and, if there is a gain, the norm after it.
struct Credit {
  Dither dither;
  const int8_t *x, *weight;
  int64_t rows, inputs, outputs;
  const int32_t* shift;
  const int8_t *gain, *residual;
  const int32_t *multipliers, *shifts;
  int bits;
};

// A unit's perturbation and inputs, its effects and their credit.
struct Unit {
  Dither dither;
  const int8_t *x, *left, *right, *effect, *credit;
  int64_t inputs, outputs, effects;
  int rank, score_shift, bits, spare, down;
};

// Targets, and tables of the likelihood.
struct Likelihood {
  const int32_t *targets, *octave, *log2;
  int64_t vocabulary;
};

// Beside them the table of fractions, and what makes 1.
struct Errors {
  Dither dither;
  Likelihood of;
  const int32_t* fraction;
  int32_t scale;
};

// Tables, of which every row of the logits has a row picked that is added to it.
struct DirectAdded {
  struct Table {
    const int8_t* entries;
    const int32_t* picked;
    int64_t size;
  };
  std::vector<Table> tables;
  int64_t vocabulary;
};

// A table of direct connections, how many steps have read each row, and the errors of its readings.
struct DirectUpdate {
  int8_t* table;
  int32_t* counts;
  const int8_t* errors;
  const int32_t* roots;  // of tables.reciprocal_root
  int64_t vocabulary;
  uint32_t step;
  int32_t rate;
  int spare;
};

// Readings by the row that they read: those of row `row(k)` are first(k), next(first(k)), ..., to -1.
class Readings {
 public:
  // Rows of `size` and more are of padding, which belongs to none.
  Readings(const int32_t* rows, int64_t readings, int64_t size) : next_(readings) {
    int bits = 1;
    while ((int64_t(1) << bits) < 2 * readings) ++bits;
    std::vector<int32_t> slots(int64_t(1) << bits, -1);  // of a hash table, at most half of it full
    const uint32_t mask = uint32_t(slots.size() - 1);
    for (int64_t j = readings - 1; j >= 0; --j) {
      const int32_t row = rows[j];
      if (row < 0 || row >= size) continue;
      uint32_t slot = uint32_t(row) * 0x9E3779B1u >> (32 - bits);
      while (slots[slot] >= 0 && rows_[slots[slot]] != row) slot = (slot + 1) & mask;
      if (slots[slot] < 0) {
        slots[slot] = int32_t(rows_.size());
        rows_.push_back(row);
        first_.push_back(-1);
      }
      next_[j] = first_[slots[slot]];
      first_[slots[slot]] = int32_t(j);
    }
  }
  int64_t count() const { return int64_t(rows_.size()); }
  int32_t row(int64_t k) const { return rows_[k]; }
  int32_t first(int64_t k) const { return first_[k]; }
  int32_t next(int32_t j) const { return next_[j]; }

 private:
  std::vector<int32_t> rows_, first_, next_;
};

// Memory aligned to cache lines, not initialised.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64))) {}
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  T* data() { return data_; }

 private:
  T* data_;
};

// Runs a function of 0 .. count - 1 on XLA's threads. The caller works too, and waits for pieces
// that others have begun, never for a thread: a busy pool costs time, not the run. What is little
// work in all, of so many vectors or entries, it does alone, sooner than a thread wakes up.
class Parallel {
 public:
  explicit Parallel(ffi::ThreadPool& pool) : pool_(pool) {}

  void operator()(int64_t count, int64_t work, const std::function<void(int64_t)>& function) const {
    if (work < LITTLE_WORK) {
      for (int64_t i = 0; i < count; ++i) function(i);
      return;
    }
    struct Shared {
      std::atomic<int64_t> next{0}, done{0};
    };
    const auto shared = std::make_shared<Shared>();
    const auto* body = &function;  // outlives every piece; a late thread finds none and touches nothing
    const auto pieces = [shared, count, body] {
      for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
        (*body)(i);
        shared->done.fetch_add(1, std::memory_order_release);
      }
    };
    const int64_t threads = pool_.num_threads() < count ? pool_.num_threads() : count;
    for (int64_t t = 1; t < threads; ++t) pool_.Schedule(std::function<void()>(pieces));
    pieces();
    while (shared->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
  }

 private:
  ffi::ThreadPool& pool_;
};

#define FORMULA __attribute__((always_inline)) TARGET  // of a lambda

namespace vnni {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
constexpr int LANES = 16, GROUP = 4, ROWS = 6, VECTORS = 4;
// VNNI multiplies unsigned by signed bytes: weights are packed as w + 128.
constexpr int32_t OFFSET = 128;
using Packed = uint8_t;
using Input = int8_t;
using Vector = __m512i;
TARGET static inline uint8_t pack_of(int8_t w) { return uint8_t(w) ^ 0x80; }
TARGET static inline __m256i eight_groups(const int8_t* w) {
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  return _mm256_xor_si256(all, _mm256_set1_epi8(char(0x80)));
}
TARGET static inline Vector zero() { return _mm512_setzero_si512(); }
TARGET static inline Vector load(const Packed* p) { return _mm512_load_si512(p); }
TARGET static inline Vector spread(const Input* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}
TARGET static inline Vector multiply_add(Vector total, Vector weight, Vector input) {
  return _mm512_dpbusd_epi32(total, weight, input);
}
TARGET static inline void store(int32_t* p, Vector v) { _mm512_store_si512(p, v); }
TARGET static inline void to_packed(int8_t x, Packed* p) { *p = pack_of(x); }
TARGET static inline void to_packed(int8_t x, Input* p) { *p = x; }
TARGET static inline void interleave16(const int8_t* const* rows, int64_t n, void* out, int flip) {
  __m128i row[4];
  for (int k = 0; k < 4; ++k)
    row[k] = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[k] + n)),
                           _mm_set1_epi8(char(flip)));
  const __m128i low01 = _mm_unpacklo_epi8(row[0], row[1]), high01 = _mm_unpackhi_epi8(row[0], row[1]);
  const __m128i low23 = _mm_unpacklo_epi8(row[2], row[3]), high23 = _mm_unpackhi_epi8(row[2], row[3]);
  auto* to = static_cast<__m128i*>(out);
  _mm_storeu_si128(to + 0, _mm_unpacklo_epi16(low01, low23));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
  _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
  _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
}
TARGET static inline void interleave16(const int8_t* const* rows, int64_t n, Packed* out) {
  interleave16(rows, n, out, 0x80);
}
TARGET static inline void interleave16(const int8_t* const* rows, int64_t n, Input* out) {
  interleave16(rows, n, out, 0);
}
#include "vectors.inc"
#include "tile.inc"
#include "outer.inc"
#include "credit.inc"
#include "direct.inc"
#include "hash.inc"
#undef TARGET
}  // namespace vnni

namespace avx2 {
#define TARGET __attribute__((target("avx2")))
constexpr int LANES = 8, GROUP = 2, ROWS = 3, VECTORS = 4;
constexpr int32_t OFFSET = 0;
using Packed = int16_t;
using Input = int16_t;
using Vector = __m256i;
TARGET static inline int16_t pack_of(int8_t w) { return w; }
TARGET static inline __m256i eight_groups(const int8_t* w) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}
TARGET static inline Vector zero() { return _mm256_setzero_si256(); }
TARGET static inline Vector load(const Packed* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
TARGET static inline Vector spread(const Input* p) {
  int32_t two;
  __builtin_memcpy(&two, p, 4);
  return _mm256_set1_epi32(two);
}
TARGET static inline Vector multiply_add(Vector total, Vector weight, Vector input) {
  // in place, by hand: GCC adds into other registers, runs out of them and copies all of it back
  asm("vpaddd %1, %0, %0" : "+x"(total) : "x"(_mm256_madd_epi16(weight, input)));
  return total;
}
TARGET static inline void store(int32_t* p, Vector v) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), v);
}
TARGET static inline void to_packed(int8_t x, Packed* p) { *p = x; }
TARGET static inline void interleave16(const int8_t* const* rows, int64_t n, Packed* out) {
  const __m128i even = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[0] + n));
  const __m128i odd = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[1] + n));
  auto* to = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(to + 0, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(even, odd)));
  _mm256_storeu_si256(to + 1, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(even, odd)));
}
#include "vectors.inc"
#include "tile.inc"
#include "outer.inc"
#include "credit.inc"
#include "direct.inc"
#include "hash.inc"
#undef TARGET
}  // namespace avx2

bool has_vnni() {
  static const bool found = __builtin_cpu_supports("avx512vnni") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return found;
}

#include "handlers.inc"

}  // namespace

extern "C" int int_lm_supported() { return has_vnni() ? 2 : __builtin_cpu_supports("avx2") != 0; }

#define LINEAR(name, function, type)                                          \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                               \
                                ffi::Ffi::Bind()                              \
                                    .Ctx<ffi::ThreadPool>()                   \
                                    .Arg<ffi::Buffer<ffi::S8>>()              \
                                    .Arg<ffi::Buffer<ffi::S8>>()              \
                                    .Arg<ffi::Buffer<ffi::S8>>()              \
                                    .Arg<ffi::Buffer<ffi::S8>>()              \
                                    .Arg<ffi::Buffer<ffi::S32>>()             \
                                    .Ret<ffi::Buffer<type>>()                 \
                                    .Attr<int64_t>("low")                     \
                                    .Attr<int64_t>("high")                    \
                                    .Attr<bool>("avx2_only"))
LINEAR(int_lm_linear8, linear8, ffi::S8);
LINEAR(int_lm_linear16, linear16, ffi::S16);

XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_norm, norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S8>>()
                                  .Attr<bool>("avx2_only"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_outer, outer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<bool>("avx2_only"));

// Kernels that dither: the pairs' numbers and the step's come first.
#define DITHERED() \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::S32>>().Arg<ffi::Buffer<ffi::U32>>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_stream, stream,
                              DITHERED()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S8>>()
                                  .Attr<int64_t>("bits")
                                  .Attr<bool>("avx2_only"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_through, through,
                              DITHERED()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S8>>()
                                  .Attr<int64_t>("bits")
                                  .Attr<bool>("avx2_only"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_unit, unit,
                              DITHERED()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Ret<ffi::Buffer<ffi::S8>>()
                                  .Attr<int64_t>("score_shift")
                                  .Attr<int64_t>("bits")
                                  .Attr<int64_t>("spare")
                                  .Attr<int64_t>("down")
                                  .Attr<bool>("avx2_only"));

#define ERRORS(name, type)                                      \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, errors<type>,             \
                                DITHERED()                      \
                                    .Arg<ffi::Buffer<type>>()   \
                                    .Arg<ffi::Buffer<ffi::S32>>() \
                                    .Arg<ffi::Buffer<ffi::S32>>() \
                                    .Arg<ffi::Buffer<ffi::S32>>() \
                                    .Arg<ffi::Buffer<ffi::S32>>() \
                                    .Ret<ffi::Buffer<ffi::S8>>() \
                                    .Attr<int64_t>("scale")     \
                                    .Attr<bool>("avx2_only"))
ERRORS(int_lm_errors8, ffi::S8);
ERRORS(int_lm_errors16, ffi::S16);

#define LIKELIHOOD(name, type)                                    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, likelihood<type>,           \
                                ffi::Ffi::Bind()                  \
                                    .Ctx<ffi::ThreadPool>()       \
                                    .Arg<ffi::Buffer<type>>()     \
                                    .Arg<ffi::Buffer<ffi::S32>>() \
                                    .Arg<ffi::Buffer<ffi::S32>>() \
                                    .Arg<ffi::Buffer<ffi::S32>>() \
                                    .Ret<ffi::Buffer<ffi::S32>>() \
                                    .Attr<bool>("avx2_only"))
LIKELIHOOD(int_lm_likelihood8, ffi::S8);
LIKELIHOOD(int_lm_likelihood16, ffi::S16);

#define DIRECT_ADDED(name, type)                                  \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, direct_added<type>,         \
                                ffi::Ffi::Bind()                  \
                                    .Ctx<ffi::ThreadPool>()       \
                                    .Arg<ffi::Buffer<type>>()     \
                                    .RemainingArgs()              \
                                    .Ret<ffi::Buffer<ffi::S16>>() \
                                    .Attr<bool>("avx2_only"))
DIRECT_ADDED(int_lm_direct_added8, ffi::S8);
DIRECT_ADDED(int_lm_direct_added16, ffi::S16);

XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_direct_update, direct_update,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S8>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Attr<int64_t>("rate")
                                  .Attr<int64_t>("spare")
                                  .Attr<bool>("avx2_only"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_hash, hash,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Ret<ffi::Buffer<ffi::U32>>()
                                  .Attr<bool>("avx2_only"));
