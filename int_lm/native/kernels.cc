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
//   unit_votes, local_votes          votes on a matrix of all layers, from records (unit.py, local.py)
//   counts   of weights that differ, or are at an end (params.py)
//   to_outputs, to_stream            credit on its way back through a block (deep.py)
//   outer    sum over tokens and pairs of outer products, of int8 [J, M] and [J, N]
//
// Sums are those of int32, exact within the bounds that method.bounds checks. The instruction set
// is chosen when a kernel runs: AVX-512 with VNNI, AVX-VNNI or AVX2; on ARM, NEON with dot products or
// without. The code is the same for all, on the few operations that vectors.inc lists; what XLA calls
// is in handlers.inc.

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#else
#include <arm_neon.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
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
constexpr int64_t SINGLE_WEIGHTS = 1 << 16;  // of a table of one column, at most, that are summed in turn
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

// Inputs of a matrix, how the effects answer if its outputs move, and credit of the effects.
struct Local {
  Dither dither;
  const int8_t *x, *responses, *credit;
  int64_t inputs, outputs, effects;
  int bits, spare;
};

// Units of all layers, each a Unit or Local, whose arrays follow one another. Their credit is of one
// layer: `through` takes it back through a weight of every layer, if there is one.
template <typename Of>
struct VotesOf {
  Of unit;
  Credit through;
  int64_t layers, terms;
};

// Credit of effects, how they answer if outputs move, and by what the products of a part are shifted;
// a part may be of the first outputs only.
struct Outputs {
  struct Part {
    const int8_t *credit, *responses;
    int64_t effects, outputs;
    const int32_t* down;
  };
  Dither dither;
  std::vector<Part> parts;
  int bits;
};

// Credit of a stream, and of its norm after a token shift; which tokens begin a document.
struct ToStream {
  Dither dither;
  const int8_t *stream, *credit, *normed;
  const int32_t* shift;
  const bool* starts;
  const int32_t *down, *multipliers, *shifts;
  int64_t width;
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

// What is added where no row of a table is picked: zeros, for every vocabulary.
static const int8_t NO_ROW[1 << 16] = {};

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

// Blocks of memory that a thread has no use for at the moment: kernels are called many times a
// step, and ask for the same ones again.
class Blocks {
 public:
  static constexpr size_t MOST = 1 << 20;  // bytes of a block that is kept
  ~Blocks() {
    for (Block& block : blocks_) std::free(block.data);
  }
  // The smallest block of so many bytes, or none; then its own size is in `bytes`.
  void* take(size_t& bytes) {
    Block* best = nullptr;
    for (Block& block : blocks_)
      if (block.bytes >= bytes && (best == nullptr || block.bytes < best->bytes)) best = &block;
    if (best == nullptr) return nullptr;
    const Block found = *best;
    *best = {nullptr, 0};
    bytes = found.bytes;
    return found.data;
  }
  void give(void* data, size_t bytes) {
    Block* least = &blocks_[0];
    for (Block& block : blocks_)
      if (block.bytes < least->bytes) least = &block;
    if (bytes > MOST || bytes <= least->bytes) return std::free(data);
    std::free(least->data);
    *least = {data, bytes};
  }

 private:
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };
  Block blocks_[8];
};
Blocks& blocks() {
  static thread_local Blocks own;
  return own;
}

// Memory aligned to cache lines, not initialised. Throws std::bad_alloc where there is none.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : bytes_((size * sizeof(T) + 63) / 64 * 64) {
    data_ = static_cast<T*>(blocks().take(bytes_));
    if (data_ == nullptr) data_ = static_cast<T*>(std::aligned_alloc(64, bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { blocks().give(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  T* data() { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

// A buffer, on the stack if MOST entries are enough.
template <typename T, int64_t MOST>
class Few {
 public:
  explicit Few(int64_t size) : data_(own_) {
    if (size > MOST) data_ = more_.emplace(size).data();
  }
  T* data() { return data_; }

 private:
  T own_[MOST];
  std::optional<Buffer<T>> more_;
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

// The kernels of one instruction set whose results, or logits, are int8 or int16.
template <typename Entry>
struct KernelsOf {
  void (*linear)(const Linear&, const Parallel&, Entry*);
  void (*errors)(const Errors&, const Entry*, int64_t, int64_t, int8_t*);
  void (*likelihood)(const Likelihood&, const Entry*, int64_t, int64_t, int32_t*);
  void (*added)(const DirectAdded&, const Entry*, int64_t, int64_t, int16_t*);
};

// All kernels of one instruction set.
struct Kernels {
  KernelsOf<int8_t> bytes;
  KernelsOf<int16_t> halves;
  void (*norm)(const int8_t*, const int8_t*, int64_t, const int32_t*, const int32_t*, int8_t*);
  void (*outer)(const Outer&, const Parallel&, int32_t*);
  void (*credit)(const Credit&, const Parallel&, int8_t*);
  void (*unit)(const Unit&, int64_t, int64_t, int8_t*);
  void (*unit_votes)(const VotesOf<Unit>&, const Parallel&, int32_t*);
  void (*local_votes)(const VotesOf<Local>&, const Parallel&, int32_t*);
  void (*counts)(const int8_t*, const int8_t*, int64_t, int32_t*);
  void (*move)(const DirectUpdate&, const Readings&, int64_t, int64_t);
  void (*move_weights)(const DirectUpdate&, const int32_t*, int64_t, int64_t);
  void (*cache_streams)(const CacheRows&, int64_t, int64_t, int32_t*, int32_t*);
  void (*cache_added)(const CacheAdded&, const int16_t*, int64_t, int64_t, int16_t*);
  void (*hash)(const int8_t*, int64_t, int64_t, const uint32_t*, uint32_t*);
  int64_t (*packed_bytes)(const Matrix&);
  int64_t (*panels_of)(const Matrix&);
  void (*pack_matrix)(const Matrix&, int64_t, int64_t, void*);
  TileKernels of_tiles;
  void (*to_outputs)(const Outputs&, int64_t, int64_t, int8_t*);
  void (*to_stream)(const ToStream&, int64_t, int64_t, int8_t*);
  template <typename Entry>
  const KernelsOf<Entry>& of() const {
    if constexpr (sizeof(Entry) == 1)
      return bytes;
    else
      return halves;
  }
};

#define FORMULA __attribute__((always_inline)) TARGET  // of a lambda

#if defined(__x86_64__)

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAS_AVX_VNNI 1  // the compiler
bool has_avx_vnni() {
  unsigned a = 0, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#endif

namespace vnni {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#include "avx512.inc"
#include "vnni.inc"
#include "wide.inc"
#include "x86.inc"
#include "kernels.inc"
#undef INTERLEAVES_64
#undef TARGET
}  // namespace vnni

#if HAS_AVX_VNNI
namespace avx_vnni {
#define TARGET __attribute__((target("avx2,avxvnni")))
#define MULTIPLIES_BYTES 1
#include "avx2.inc"
#include "vnni.inc"
#include "x86.inc"
#include "kernels.inc"
#undef MULTIPLIES_BYTES
#undef TARGET
}  // namespace avx_vnni
#endif

namespace avx2 {
#define TARGET __attribute__((target("avx2")))
#define MULTIPLIES_BYTES 0
#include "avx2.inc"
#include "x86.inc"
#include "kernels.inc"
#undef MULTIPLIES_BYTES
#undef TARGET
}  // namespace avx2

#else

#if defined(__clang__)
#define DOT_PRODUCT "dotprod"
#else
#define DOT_PRODUCT "arch=armv8.2-a+dotprod"
#endif

bool has_dot_products() {
#if defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#else
  return getauxval(AT_HWCAP) & 1 << 20;  // ASIMDDP
#endif
}

namespace dotprod {
#define TARGET __attribute__((target(DOT_PRODUCT)))
#define ADDS_DOT_PRODUCTS 1
#include "neon.inc"
#include "kernels.inc"
#undef ADDS_DOT_PRODUCTS
#undef TARGET
}  // namespace dotprod

namespace neon {
#define TARGET
#define ADDS_DOT_PRODUCTS 0
#include "neon.inc"
#include "kernels.inc"
#undef ADDS_DOT_PRODUCTS
#undef TARGET
}  // namespace neon

#endif

// An instruction set, and whether this processor has it.
struct Set {
  const char* name;
  const Kernels* kernels;
  bool supported;
};

// All instruction sets, those that do most at once first.
const std::vector<Set>& sets() {
#if defined(__x86_64__)
  static const bool avx512 = __builtin_cpu_supports("avx512vnni") &&
                             __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const bool avx2 = __builtin_cpu_supports("avx2");
  static const std::vector<Set> all{
      {"vnni", &vnni::kernels, avx512},
#if HAS_AVX_VNNI
      {"avx_vnni", &avx_vnni::kernels, avx2 && has_avx_vnni()},
#endif
      {"avx2", &avx2::kernels, avx2}};
#else
  static const std::vector<Set> all{{"dotprod", &dotprod::kernels, has_dot_products()},
                                    {"neon", &neon::kernels, true}};
#endif
  return all;
}

std::atomic<const Kernels*> wanted{nullptr};  // for tests: int_lm_use

// The kernels of the first instruction set that there is, unless others are wanted.
const Kernels& chosen() {
  static const Kernels* const first = [] {
    for (const Set& set : sets())
      if (set.supported) return set.kernels;
    return sets().back().kernels;  // never used: dispatch.available
  }();
  const Kernels* kernels = wanted.load(std::memory_order_relaxed);
  return kernels ? *kernels : *first;
}

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
#include "back_handlers.inc"

}  // namespace

// Names of the instruction sets that this processor has, separated by spaces, the best first.
extern "C" const char* int_lm_instructions() {
  static const std::string names = [] {
    std::string all;
    for (const Set& set : sets())
      if (set.supported) all += (all.empty() ? "" : " ") + std::string(set.name);
    return all;
  }();
  return names.c_str();
}

// Kernels use this instruction set, which the processor must have; by default the best.
extern "C" void int_lm_use(const char* name) {
  const Kernels* found = nullptr;
  for (const Set& set : sets())
    if (set.supported && std::strcmp(set.name, name) == 0) found = set.kernels;
  wanted.store(found);
}


// Loads a compiled program of a tile; returns nullptr, or why it cannot.
extern "C" const char* int_lm_add_tile(int64_t number, const char* path) {
  void* program = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  const auto function =
      program ? reinterpret_cast<TileFunction>(dlsym(program, "int_lm_tile")) : nullptr;
  if (function == nullptr) return dlerror();
  const std::lock_guard<std::mutex> lock(tiles().mutex);
  tiles().functions[number] = function;
  return nullptr;
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
KERNEL(counts, counts, BIND.TAKES(S8).TAKES(S8).GIVES(S32));

KERNEL(stream, stream,
       DITHERED.TAKES(S8).TAKES(S8).TAKES(S32).TAKES(S8).TAKES(S8).TAKES(S32).TAKES(S32).GIVES(S8));
KERNEL(through, through, DITHERED.TAKES(S8).TAKES(S8).TAKES(S32).GIVES(S8).NUMBER("bits"));
KERNEL(unit, unit,
       DITHERED.TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).GIVES(S8).NUMBER("projection_shift")
           .NUMBER("bits").NUMBER("spare").NUMBER("down"));

KERNEL(unit_votes, unit_votes,
       DITHERED.TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S32).GIVES(S32)
           .NUMBER("projection_shift").NUMBER("bits").NUMBER("spare").NUMBER("down")
           .NUMBER("through_bits"));
KERNEL(local_votes, local_votes,
       DITHERED.TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S32).GIVES(S32).NUMBER("bits")
           .NUMBER("spare").NUMBER("through_bits"));

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
KERNEL(to_outputs, to_outputs, DITHERED.RemainingArgs().GIVES(S8).NUMBER("bits"));
KERNEL(to_stream, to_stream,
       DITHERED.TAKES(S8).TAKES(S8).TAKES(S8).TAKES(S32).TAKES(S32).TAKES(PRED).TAKES(S32).TAKES(S32)
           .GIVES(S8));
