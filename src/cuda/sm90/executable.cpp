#include "cuda/sm90/executable.h"

#include <algorithm>

#include "cuda/driver.h"
#include "cuda/tensors.h"

namespace tessera::internal {

namespace {

// Freed memory stays in the pool, so that repeated calls without a workspace do not go to the system.
void keep_pool_memory(int device) {
  CUdevice handle = 0;
  CUmemoryPool pool = nullptr;
  check(driver().device_get(&handle, device), "cuDeviceGet");
  check(driver().default_pool(&pool, handle), "cuDeviceGetDefaultMemPool");
  cuuint64_t everything = ~cuuint64_t{0};
  check(driver().pool_set_attribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &everything), "cuMemPoolSetAttribute");
}

}  // namespace

std::byte* DeviceExecutable::allocate_workspace(std::size_t bytes, void* stream) const {
  const ContextScope context(device_);
  keep_pool_memory(device_);
  CUdeviceptr memory = 0;
  check(driver().memory_allocate_async(&memory, bytes, static_cast<CUstream>(stream)), "cuMemAllocAsync");
  return reinterpret_cast<std::byte*>(memory);
}

void DeviceExecutable::release_workspace(std::byte* memory, void* stream) const noexcept {
  const ContextScope context(device_);
  driver().memory_free_async(reinterpret_cast<CUdeviceptr>(memory), static_cast<CUstream>(stream));
}

std::string_view element_name(DType dtype) { return dtype == DType::bfloat16 ? "bfloat16" : "float16"; }

bool uniform_lengths(const Problem& problem) { return !problem.ragged() && problem.key_lengths.empty(); }

Batch batch_of(const Problem& problem, const SequenceEntry* g_sequences) {
  const auto narrow = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
  return {uniform_lengths(problem) ? nullptr : g_sequences,
          narrow(problem.batch),
          narrow(problem.heads_q),
          narrow(problem.group_size()),
          narrow(problem.seq_q),
          narrow(problem.seq_k),
          problem.ragged() ? 1 : 0};
}

}  // namespace tessera::internal
