// Kernels for CPUs, called by XLA: what JAX says in many operations, each of which goes through
// memory, is one pass here. They compute the same integers (tests/test_native.py).
//
//   linear   int8 [P, N] x W [M, N], the low-rank perturbation, both shifts and the narrowing
//   norm     the L1 norm
//   likelihood                       log2 p(target) of logits (likelihood.py)
//   errors, stream, through, unit    what votes are made of, dithered (credit.py, node.py)
//   direct_added, direct_update      context tables: read, and learnt (context_tables.py)
//   cache_over_tokens, cache_added   the document cache: a segment read, and added (document_cache.py)
//   hash                             of weights (hashing.py)
//   outer    sum over tokens and pairs of outer products, of int8 [J, M] and [J, N]
//
// Sums are those of int32, exact within the bounds that method.bounds checks. The instruction set
// is chosen when a kernel runs: AVX-512 with VNNI, or AVX2. What XLA calls is in handlers.inc.

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr int BLOCK_TILES = 8;  // tiles of rows in a piece of work: their inputs fit the L1 cache
constexpr int NORM_ROWS = 64;   // likewise
constexpr int64_t LITTLE_WORK = 1 << 14;
constexpr int64_t UNPACKED_ROWS = 2;  // of a linear whose weights are read as they are
constexpr int64_t CACHE_STREAMS = 16;   // of the document cache, read by one thread in turn
constexpr int64_t HASH_WORDS = 1 << 17;  // hashed by one thread at a time

// What Python computes with too is named there alone: build.py defines it here by the same name.
constexpr int32_t CREDIT_MOST = (1 << CREDIT_BITS) - 1, DIVIDEND_MOST = (1 << DIVIDEND_BITS) - 1;
constexpr int LIMB_BITS = WIDE_BITS / 2;
constexpr int LOG2_TABLE_SHIFT = LOG2_TABLE_BITS - LOG2_FRACTION_BITS;
constexpr int MOVE_BITS = DIRECT_STEP_BITS + DIRECT_MEAN_BITS + 7;  // 2^7 units of an error make 1
static_assert(LOGIT_UNIT_BITS == 4, "an octave of exp2 is two vectors of 8");

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
  return row * GOLDEN_RATIO + position * DITHER_POSITION;
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
  int rank, projection_shift, bits, spare, down;
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

// A context table, how many steps have read each row, and the errors of the tokens that read it.
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

// Rows of the document cache, [lengths][streams][2^bits][3], and what is read of them.
struct CacheRows {
  int32_t *words, *places, *hashes;
  const int32_t *context, *tokens;  // [context length][streams] before, and [length][streams]
  const int64_t* sizes;             // the lengths
  int64_t lengths, streams, before, length;
  int bits;
};

// Weights of the cache that are added to the logits of the rows that read a stream.
struct CacheAdded {
  const int8_t* table;
  const int32_t *weights, *tokens;  // [streams][slots]
  int64_t size, slots, readers, vocabulary;
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
      uint32_t slot = uint32_t(row) * GOLDEN_RATIO >> (32 - bits);
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

// A matrix of a segment: W of all layers, also packed, and A and B of all layers and pairs (rank 0
// for none).
struct Matrix {
  const int8_t *value, *left, *right;
  int64_t layers, inputs, outputs, pairs;
  int rank;
  const char* packed;
};

// What the code that `compile.tiles` writes calls, and what it is called with: the same are there.
struct TileKernels {
  void (*linear8)(const Matrix*, int64_t, int64_t, const int8_t*, int64_t, int, int, int8_t*);
  void (*linear16)(const Matrix*, int64_t, int64_t, const int8_t*, int64_t, int, int, int16_t*);
  void (*likelihood8)(const int8_t*, const int32_t*, const int32_t*, const int32_t*, int64_t, int64_t,
                      int32_t*);
  void (*likelihood16)(const int16_t*, const int32_t*, const int32_t*, const int32_t*, int64_t, int64_t,
                       int32_t*);
  void (*added8)(const int8_t*, int, const int8_t* const*, const int32_t* const*, int64_t, int64_t,
                 int64_t, int16_t*);
  void (*added16)(const int16_t*, int, const int8_t* const*, const int32_t* const*, int64_t, int64_t,
                  int64_t, int16_t*);
  void (*cache_added)(const int16_t*, const int8_t*, const int32_t*, const int32_t*, int64_t, int64_t,
                      int64_t, int64_t, int64_t, int16_t*);
};
struct Segment {
  const void* const* inputs;
  void* const* outputs;
  const Matrix* const* matrices;
  const TileKernels* kernels;
  int64_t members, length;
};
using TileFunction = void (*)(const Segment*, int64_t first);

// Memory aligned to cache lines, not initialised. Throws std::bad_alloc where there is none.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  T* data() { return data_; }

 private:
  T* data_;
};

// Runs a function of 0 .. count - 1 on XLA's threads. The caller works too, and waits for pieces
// that others have begun, never for a thread: a busy pool costs time, not the run. If a piece has no
// memory, the caller throws std::bad_alloc after all of them. What is little
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
      std::atomic<bool> failed{false};
    };
    const auto shared = std::make_shared<Shared>();
    const auto* body = &function;  // outlives every piece; a late thread finds none and touches nothing
    const auto pieces = [shared, count, body] {
      for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
        try {
          (*body)(i);
        } catch (const std::bad_alloc&) {  // must not leave a thread of XLA's
          shared->failed.store(true, std::memory_order_relaxed);
        }
        shared->done.fetch_add(1, std::memory_order_release);
      }
    };
    const int64_t threads = pool_.num_threads() < count ? pool_.num_threads() : count;
    for (int64_t t = 1; t < threads; ++t) pool_.Schedule(std::function<void()>(pieces));
    pieces();
    while (shared->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
    if (shared->failed.load(std::memory_order_relaxed)) throw std::bad_alloc();
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
// 16 bytes from p on.
template <typename V>
TARGET static inline V widened(const int8_t* p) {
  const Vector all = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  V result;
  __builtin_memcpy(&result, &all, sizeof result);
  return result;
}
// Of 16 entries at `table`, those that the lowest 4 bits of `places` name.
template <typename V>
TARGET static inline V permuted(const int32_t* table, const V& places) {
  Vector all, found;
  __builtin_memcpy(&all, table, sizeof all);
  __builtin_memcpy(&found, &places, sizeof found);
  found = _mm512_permutexvar_epi32(found, all);
  V result;
  __builtin_memcpy(&result, &found, sizeof result);
  return result;
}
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
#include "cache.inc"
#include "hash.inc"
#include "segment.inc"
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
template <typename V>
TARGET static inline V widened(const int8_t*) { return V{}; }  // not called
template <typename V>
TARGET static inline V permuted(const int32_t*, const V& places) { return places; }  // nor is this
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
#include "cache.inc"
#include "hash.inc"
#include "segment.inc"
#undef TARGET
}  // namespace avx2

bool has_vnni() {
  static const bool found = __builtin_cpu_supports("avx512vnni") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return found;
}

std::atomic<bool> avx2_only{false};  // for tests: int_lm_avx2_only

// Kernels take the path of AVX-512 with VNNI.
bool wide() { return has_vnni() && !avx2_only.load(std::memory_order_relaxed); }

// Compiled programs of a tile, by their numbers; int_lm_add_tile adds them.
struct Tiles {
  std::mutex mutex;
  std::unordered_map<int64_t, TileFunction> functions;
};
Tiles& tiles() {
  static Tiles all;
  return all;
}

// Names of all kernels, separated by spaces; KERNEL adds them.
std::string& names() {
  static std::string all;
  return all;
}

#include "handlers.inc"

}  // namespace

extern "C" int int_lm_supported() { return has_vnni() ? 2 : __builtin_cpu_supports("avx2") != 0; }
extern "C" void int_lm_avx2_only(int only) { avx2_only.store(only != 0); }
extern "C" void int_lm_add_tile(int64_t number, TileFunction function) {
  const std::lock_guard<std::mutex> lock(tiles().mutex);
  tiles().functions[number] = function;
}
extern "C" const char* int_lm_kernels() { return names().c_str(); }

// A handler that returns an error of XLA's where there is no memory.
template <typename... Arguments>
auto guarded(ffi::Error (*handler)(Arguments...)) {
  return [handler](Arguments... arguments) -> ffi::Error {
    try {
      return handler(arguments...);
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "int_lm: no memory for a kernel");
    }
  };
}

// Declares the kernel int_lm_NAME: the handler that XLA calls, what it takes, and its name in the list.
#define KERNEL(name, handler, binding)                             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(int_lm_##name, guarded(handler), binding); \
  static const bool name##_is_listed = (names() += " int_lm_" #name, true)

#define BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define TAKES(type) Arg<ffi::Buffer<ffi::type>>()
#define GIVES(type) Ret<ffi::Buffer<ffi::type>>()
#define NUMBER(name) Attr<int64_t>(name)
#define DITHERED BIND.TAKES(S32).TAKES(U32)  // the pairs' numbers and the step's come first

#define LINEAR(type)                                                                         \
  BIND.TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S32).GIVES(type).NUMBER("low").NUMBER( \
      "high")
KERNEL(linear8, linear8, LINEAR(S8));
KERNEL(linear16, linear16, LINEAR(S16));
KERNEL(norm, norm, BIND.TAKES(S8).TAKES(S8).TAKES(S32).TAKES(S32).GIVES(S8));
KERNEL(outer, outer, BIND.TAKES(S8).TAKES(S8).GIVES(S32));

KERNEL(stream, stream,
       DITHERED.TAKES(S8).TAKES(S8).TAKES(S32).TAKES(S8).TAKES(S8).TAKES(S32).TAKES(S32).GIVES(S8));
KERNEL(through, through, DITHERED.TAKES(S8).TAKES(S8).TAKES(S32).GIVES(S8).NUMBER("bits"));
KERNEL(unit, unit,
       DITHERED.TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).GIVES(S8).NUMBER("projection_shift")
           .NUMBER("bits").NUMBER("spare").NUMBER("down"));

#define ERRORS(type) \
  DITHERED.TAKES(type).TAKES(S32).TAKES(S32).TAKES(S32).TAKES(S32).GIVES(S8).NUMBER("scale")
KERNEL(errors8, errors<ffi::S8>, ERRORS(S8));
KERNEL(errors16, errors<ffi::S16>, ERRORS(S16));
#define LIKELIHOOD(type) BIND.TAKES(type).TAKES(S32).TAKES(S32).TAKES(S32).GIVES(S32)
KERNEL(likelihood8, likelihood<ffi::S8>, LIKELIHOOD(S8));
KERNEL(likelihood16, likelihood<ffi::S16>, LIKELIHOOD(S16));

KERNEL(direct_added8, direct_added<ffi::S8>, BIND.TAKES(S8).RemainingArgs().GIVES(S16));
KERNEL(direct_added16, direct_added<ffi::S16>, BIND.TAKES(S16).RemainingArgs().GIVES(S16));
KERNEL(direct_update, direct_update,
       BIND.TAKES(S8).TAKES(S32).TAKES(S32).TAKES(S8).TAKES(U32).TAKES(S32).GIVES(S8).GIVES(S32)
           .NUMBER("rate").NUMBER("spare"));
KERNEL(cache_over_tokens, cache_over_tokens,
       BIND.TAKES(S32).TAKES(S32).TAKES(S32).TAKES(S32).TAKES(S32).GIVES(S32).GIVES(S32).GIVES(S32)
           .GIVES(S32).GIVES(S32).Attr<ffi::Span<const int64_t>>("sizes"));
KERNEL(cache_added, cache_added, BIND.TAKES(S16).TAKES(S8).TAKES(S32).TAKES(S32).GIVES(S16));
KERNEL(hash, hash, BIND.TAKES(S8).TAKES(U32).GIVES(U32));
KERNEL(segment, segment,
       BIND.RemainingArgs().RemainingRets().NUMBER("program").NUMBER("members").NUMBER("length")
           .NUMBER("tile").Attr<ffi::Span<const int64_t>>("matrices"));
