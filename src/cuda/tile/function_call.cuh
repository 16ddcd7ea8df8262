// What function.cuh declares, behind tessera/function_support.h and the text of the function.
#pragma once

#include "cuda/tile/function.cuh"
#include "cuda/tile/scaled.cuh"

// A long function is called: a kernel has a hundred places to put it into.
#if TESSERA_FUNCTION_IS_LONG
#define TESSERA_CALLED_FUNCTION __device__ __noinline__
#else
#define TESSERA_CALLED_FUNCTION TESSERA_DEVICE
#endif

namespace tessera::tile {

template <class T>
TESSERA_CALLED_FUNCTION T evaluate_function(T logit, Index index, const float* params) {
  return math::user::score(logit, index, params);
}

template <class Place>
TESSERA_DEVICE float call_function(float logit, const Place& place, int query, int key, float distance) {
  return evaluate_function(logit, Index(place.batch(), place.head(), place.query(query), place.key(key), distance),
                           place.params());
}

template <class Place>
TESSERA_DEVICE float call_function_of_product(float product, float scale, const Place& place, int query, int key,
                                              float distance) {
#if TESSERA_FUNCTION_IS_GENERIC && !TESSERA_FUNCTION_IS_LONG
  return value(evaluate_function(math::Scaled(product, scale),
                                 Index(place.batch(), place.head(), place.query(query), place.key(key), distance),
                                 place.params()));
#else
  return call_function(product * scale, place, query, key, distance);
#endif
}

template <class Place>
TESSERA_DEVICE Tangent differentiate_function(float logit, const Place& place, int query, int key, float distance) {
  const Dual<float> result = evaluate_function(
      Dual<float>(logit, 1.0F), Index(place.batch(), place.head(), place.query(query), place.key(key), distance),
      place.params());
  return {result.number, result.slope};
}

}  // namespace tessera::tile
