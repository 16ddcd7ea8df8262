// The Impl for short queries against long keys, and for caches of keys that are paged or that grow: src/cuda/decode.
#pragma once

#include "plan/impl.h"

namespace tessera::internal {

const Impl& decode_impl();

}  // namespace tessera::internal
