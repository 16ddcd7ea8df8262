#include "cuda/shared_memory.h"

#include "cuda/absent/fail.h"

namespace tessera::internal {

std::shared_ptr<std::byte> allocate_shared(int /*device*/, std::int64_t /*bytes*/, SharedKey& /*key*/) {
  fail_without_cuda();
}
OpenedMemory::OpenedMemory(int device, const SharedKey& /*key*/) : device_(device) { fail_without_cuda(); }
OpenedMemory::~OpenedMemory() = default;
SharedEvent::SharedEvent(int device) : device_(device) { fail_without_cuda(); }
SharedEvent::SharedEvent(int device, const SharedKey& /*key*/) : device_(device) { fail_without_cuda(); }
SharedEvent::~SharedEvent() = default;
SharedKey SharedEvent::key() const { fail_without_cuda(); }
void SharedEvent::record(void* /*stream*/) { fail_without_cuda(); }
bool SharedEvent::reached() const { fail_without_cuda(); }

}  // namespace tessera::internal
