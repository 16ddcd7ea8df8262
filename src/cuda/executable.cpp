#include "cuda/executable.h"

#include <map>
#include <mutex>

#include "cuda/driver.h"
#include "cuda/score_params.h"

namespace tessera::internal {

namespace {

// A pool of the library's own on each device, whose freed memory stays in it, so that repeated calls without a workspace do not
// go to the system. The device's default pool is left as the program has set it.
CUmemoryPool workspace_pool(int device) {
  static std::mutex mutex;
  static std::map<int, CUmemoryPool> pools;  // kept for the life of the program, as contexts are
  const std::lock_guard lock(mutex);
  CUmemoryPool& pool = pools[device];
  if (pool == nullptr) {
    CUmemPoolProps properties{};
    properties.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
    CUmemoryPool fresh = nullptr;
    check(driver().pool_create(&fresh, &properties), "cuMemPoolCreate");
    cuuint64_t everything = ~cuuint64_t{0};
    check(driver().pool_set_attribute(fresh, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &everything), "cuMemPoolSetAttribute");
    pool = fresh;
  }
  return pool;
}

}  // namespace

DeviceExecutable::DeviceExecutable(const Problem& problem, const PlanOptions& options)
    : problem_(problem), device_(options.device.index) {
  if (problem.score_function && !problem.score_function->params().empty()) {
    const std::vector<float>& params = problem.score_function->params();
    function_params_ = DeviceMemory(device_, params.size() * sizeof(float));
    function_params_.copy_from(params.data(), function_params_.bytes());
  }
}

ScoreParams DeviceExecutable::score_params_of(const ScoreTensors& tensors) const {
  return score_params(problem_, tensors, device_, static_cast<const float*>(function_params_.data()));
}

std::byte* DeviceExecutable::allocate_workspace(std::size_t bytes, void* stream) const {
  const ContextScope context(device_);
  CUdeviceptr memory = 0;
  check(driver().memory_allocate_from_pool(&memory, bytes, workspace_pool(device_), static_cast<CUstream>(stream)),
        "cuMemAllocFromPoolAsync");
  return reinterpret_cast<std::byte*>(memory);
}

void DeviceExecutable::release_workspace(std::byte* memory, void* stream) const noexcept {
  const ContextScope context(device_);
  driver().memory_free_async(reinterpret_cast<CUdeviceptr>(memory), static_cast<CUstream>(stream));
}

std::string_view element_name(DType dtype) { return dtype_name(dtype); }

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
