#include "cuda/decode_impl.h"

#include "cuda/absent/absent_impl.h"

namespace tessera::internal {

const Impl& decode_impl() {
  static const AbsentImpl impl("decode", "NVIDIA GPUs: short queries against long keys, paged and growing caches");
  return impl;
}

}  // namespace tessera::internal
