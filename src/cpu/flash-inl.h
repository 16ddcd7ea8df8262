// Everything that the flash kernels of one arithmetic share, once its products are there.

// clang-format off: each needs those before it
#include "cpu/vector_math-inl.h"
#include "cpu/pack-inl.h"
#include "cpu/scores-inl.h"
#include "cpu/flash_forward-inl.h"
#include "cpu/flash_backward-inl.h"
#include "cpu/flash_steps-inl.h"
// clang-format on
