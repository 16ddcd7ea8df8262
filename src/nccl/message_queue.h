// Messages between devices that have been posted and wait for the next flush.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/stream.h"

namespace tessera::internal {

// One end of a message.
struct DeviceMessage {
  bool sends = false;
  int peer = 0;
  int channel = 0;
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::unique_ptr<DeviceEvent> ready = nullptr;  // the memory may be used
  bool dropped = false;                          // nobody wants it any more
};

// `Operation` is a DeviceMessage and what its transport keeps of it.
template <class Operation>
class MessageQueue {
 public:
  // The memory may be used once `stream` of `device` has come to this point.
  std::shared_ptr<Operation> add(DeviceMessage message, int device, void* stream) {
    auto operation = std::make_shared<Operation>();
    static_cast<DeviceMessage&>(*operation) = std::move(message);
    operation->ready = std::make_unique<DeviceEvent>(device);
    operation->ready->record(stream);
    posted_.push_back(operation);
    return operation;
  }

  bool empty() const { return posted_.empty(); }

  // What is still wanted. Both ends pair the messages between them by their order alone: by that of the channels.
  std::vector<std::shared_ptr<Operation>> take() {
    std::vector<std::shared_ptr<Operation>> group = std::exchange(posted_, {});
    std::erase_if(group, [](const auto& operation) { return operation->dropped; });
    std::stable_sort(group.begin(), group.end(), [](const auto& a, const auto& b) {
      return std::pair(a->peer, a->channel) < std::pair(b->peer, b->channel);
    });
    return group;
  }

 private:
  std::vector<std::shared_ptr<Operation>> posted_;
};

}  // namespace tessera::internal
