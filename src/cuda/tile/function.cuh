// A user's score function in kernels. Its text and function_call.cuh come before the kernel in a translation unit that is compiled
// at run time; everywhere else what is declared here is not defined.
#pragma once

#include "cuda/ptx/device.cuh"
#include "cuda/tile/program.h"

namespace tessera::tile {

// Whether the function adds to a score what does not depend on it.
#if defined(TESSERA_FUNCTION_ADDS) && TESSERA_FUNCTION_ADDS
inline constexpr bool kFunctionAdds = true;
#else
inline constexpr bool kFunctionAdds = false;
#endif

// Whether it names positions, which it may read tables with, and not distances alone.
#if defined(TESSERA_FUNCTION_NAMES_POSITIONS) && TESSERA_FUNCTION_NAMES_POSITIONS
inline constexpr bool kFunctionNamesPositions = true;
#else
inline constexpr bool kFunctionNamesPositions = false;
#endif

struct Tangent {
  float value, derivative;
};

// Where a sequence and query head stand, as the function sees it. kMoved: the problem is a part of a whole, whose positions these
// are.
template <bool kMoved>
class FunctionPlace {
 public:
  TESSERA_DEVICE FunctionPlace(const FunctionParams& function, int sequence, int head)
      : function_(function), sequence_(sequence), head_(head) {}

  TESSERA_DEVICE const float* params() const { return function_.params; }
  TESSERA_DEVICE int batch() const { return kMoved ? sequence_ + function_.batch_start : sequence_; }
  TESSERA_DEVICE int head() const { return kMoved ? head_ + function_.head_start : head_; }
  TESSERA_DEVICE int query(int query) const {
    return kMoved ? query * function_.query_stride + function_.query_start : query;
  }
  TESSERA_DEVICE int key(int key) const { return kMoved ? key * function_.key_stride + function_.key_start : key; }
  // The key whose position is that of a query, rounded towards 0; it need not be one of the sequence.
  TESSERA_DEVICE int key_at(int at_query) const {
    return kMoved ? (query(at_query) - function_.key_start) / function_.key_stride : at_query;
  }
  // Of a query and a key, and how it changes to those that are `queries` and `keys` further on.
  TESSERA_DEVICE float distance(int at_query, int at_key) const {
    return static_cast<float>(query(at_query) - key(at_key));
  }
  TESSERA_DEVICE float step(int queries, int keys) const {
    return kMoved ? static_cast<float>(queries * function_.query_stride - keys * function_.key_stride)
                  : static_cast<float>(queries - keys);
  }

 private:
  const FunctionParams& function_;
  const int sequence_, head_;
};

// Of a logit, in natural logarithms. `query` and `key` have to be positions of the sequence: functions read tables with them.
// `distance` need not be theirs where they are not those of the element.
template <class Place>
TESSERA_DEVICE float call_function(float logit, const Place& place, int query, int key, float distance);
// The same of a product of the kernel's, which the scale makes a logit.
template <class Place>
TESSERA_DEVICE float call_function_of_product(float product, float scale, const Place& place, int query, int key,
                                              float distance);
// As call_function(), and its derivative.
template <class Place>
TESSERA_DEVICE Tangent differentiate_function(float logit, const Place& place, int query, int key, float distance);

}  // namespace tessera::tile
