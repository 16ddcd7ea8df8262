// Functions that users write: of a score, and of which pairs attend.
//
// A function is C++ source text and a few numbers. What its Problem runs on decides who compiles it: the host's C++ compiler
// for Impls on the CPU and for every mask function, NVRTC for kernels. A program that defines it with TESSERA_SCORE_FUNCTION or
// TESSERA_MASK_FUNCTION has compiled it for the CPU already. See docs/functions.md for what the source can use.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tessera/function_support.h"

namespace tessera {

namespace internal {

// Compiled for this CPU. Each may be called from several threads at once.
struct NativeScore {
  void (*float_row)(const FunctionRow&, const float* params, float* s) = nullptr;
  void (*float_slopes)(const FunctionRow&, const float* params, float* s, float* slopes) = nullptr;
  void (*double_row)(const FunctionRow&, const float* params, double* s) = nullptr;
  void (*double_slopes)(const FunctionRow&, const float* params, double* s, double* slopes) = nullptr;
  bool operator==(const NativeScore&) const = default;

  template <class Function>
  static NativeScore of() {
    return {&score_row<Function, float>, &score_row_and_slopes<Function, float>, &score_row<Function, double>,
            &score_row_and_slopes<Function, double>};
  }
};

struct NativeMask {
  void (*row)(const FunctionRow&, const float* params, unsigned char* keeps) = nullptr;
  bool operator==(const NativeMask&) const = default;

  template <class Function>
  static NativeMask of() {
    return {&mask_row<Function>};
  }
};

}  // namespace internal

// What both kinds have in common. Immutable; copies share their memory.
class UserFunction {
 public:
  const std::string& name() const { return data_->name; }
  const std::string& source() const { return data_->source; }
  const std::vector<float>& params() const { return data_->params; }
  // Whether the result can depend on Index::batch or Index::head: whether the source names them, or hands on a whole Index.
  bool depends_on_batch() const { return data_->depends_on_batch; }
  bool depends_on_head() const { return data_->depends_on_head; }
  // SHA-256 of the name, the source and the bits of the parameters, in hexadecimal.
  const std::string& hash() const { return data_->hash; }
  // Its name, the number of parameters and the first digits of the hash: "t5_bias(32 params, 3f0c77a1)".
  std::string describe() const;

 protected:
  struct Data {
    std::string name;
    std::string source;
    std::vector<float> params;
    bool depends_on_batch = false;
    bool depends_on_head = false;
    std::string hash;
    internal::NativeScore score;  // of functions that the program has compiled
    internal::NativeMask mask;
  };
  // Throws Error for a name or source that is empty, and for a parameter that is NaN.
  explicit UserFunction(Data data);
  bool equals(const UserFunction& other) const;

  std::shared_ptr<const Data> data_;
};

// What a score becomes. `source` defines
//
//   template <class T> T score(T s, tessera::Index i, const float* params)
//
// for T = float, double and tessera::Dual of them, which is where derivatives come from. It is evaluated in namespace
// tessera::math::user, whose enclosing namespace has exp, log, tanh, abs, min, max, select and others, and may define helpers of
// its own. It must be a pure function. It may be called for pairs of a sequence that the mask hides, and its result is then
// unused; never for positions outside of the sequence.
class ScoreFunction : public UserFunction {
 public:
  // `name` stands in compile errors, before the line number, and in Problem::describe().
  explicit ScoreFunction(std::string source, std::vector<float> params = {}, std::string name = "score_function");
  // Of functions that the program has compiled; `source` is for GPUs.
  ScoreFunction(internal::NativeScore native, std::string source, std::vector<float> params, std::string name);

  const internal::NativeScore& native() const { return data_->score; }
  bool operator==(const ScoreFunction& other) const { return equals(other); }
};

// Which pairs attend. `source` defines one of
//
//   bool keep(tessera::Index i)
//   bool keep(tessera::Index i, const float* params)
//
// A plan evaluates it once, on the host, for all pairs: what it hides as a whole tile is then skipped. If it does not depend on
// the batch or the head, it is evaluated for the first alone.
class MaskFunction : public UserFunction {
 public:
  explicit MaskFunction(std::string source, std::vector<float> params = {}, std::string name = "mask_function");
  MaskFunction(internal::NativeMask native, std::string source, std::vector<float> params, std::string name);

  const internal::NativeMask& native() const { return data_->mask; }
  bool operator==(const MaskFunction& other) const { return equals(other); }
};

// The positions that functions see, of a problem that is a part of a whole: those of the first sequence, head, query and key,
// and the distances between neighbouring queries and keys.
struct Positions {
  int batch_start = 0;
  int head_start = 0;
  int query_start = 0;
  int key_start = 0;
  int query_stride = 1;
  int key_stride = 1;
  bool operator==(const Positions&) const = default;
};

}  // namespace tessera

// Defines `name`, a function of the parameters that returns a ScoreFunction: its body is compiled with the program, and kept as
// text for GPUs. The body sees T, s, i, params and tessera::math, and nothing else of the program, or it does not compile there.
//
//   TESSERA_SCORE_FUNCTION(soft_cap, return params[0] * tanh(s / params[0]);)
//   problem.score_function = soft_cap({20.0F});
#define TESSERA_SCORE_FUNCTION(function, ...)                                                                  \
  struct function##_tessera_source {                                                                           \
    template <class T>                                                                                         \
    static T score(T s, [[maybe_unused]] ::tessera::Index i, [[maybe_unused]] const float* params) {           \
      TESSERA_USE_MATH                                                                                         \
      __VA_ARGS__                                                                                              \
    }                                                                                                          \
  };                                                                                                           \
  inline ::tessera::ScoreFunction function(std::vector<float> params = {}) {                                   \
    return {::tessera::internal::NativeScore::of<function##_tessera_source>(),                                 \
            "template <class T> T score(T s, tessera::Index i, const float* params) {\n" #__VA_ARGS__ "\n}\n", \
            std::move(params), #function};                                                                     \
  }

// The same for a MaskFunction; the body sees i and params.
//
//   TESSERA_MASK_FUNCTION(dilated, return i.key <= i.query && (i.query - i.key) % 4 == 0;)
#define TESSERA_MASK_FUNCTION(function, ...)                                                                \
  struct function##_tessera_source {                                                                        \
    static bool keep([[maybe_unused]] ::tessera::Index i, [[maybe_unused]] const float* params) {           \
      TESSERA_USE_MATH                                                                                      \
      __VA_ARGS__                                                                                           \
    }                                                                                                       \
  };                                                                                                        \
  inline ::tessera::MaskFunction function(std::vector<float> params = {}) {                                 \
    return {::tessera::internal::NativeMask::of<function##_tessera_source>(),                               \
            "bool keep(tessera::Index i, const float* params) {\n" #__VA_ARGS__ "\n}\n", std::move(params), \
            #function};                                                                                     \
  }
