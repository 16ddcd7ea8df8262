#include "call_table.h"

#include <algorithm>

#include "refuse.h"
#include "tensors.h"

namespace nb = nanobind;

namespace tessera::python {

std::size_t CallTable::Hash::operator()(const Key& key) const {
  std::uint64_t hash = 0xCBF29CE484222325ULL;
  for (const std::int64_t number : key) {
    hash = (hash ^ static_cast<std::uint64_t>(number)) * 0x9E3779B97F4A7C15ULL;
    hash ^= hash >> 32;
  }
  return hash;
}

bool CallTable::read(Key& key, std::array<nb::handle, 3> tensors) {
  key = {};
  auto next = key.begin();
  for (const nb::handle tensor : tensors) {
    const std::optional<TensorView> view = torch_tensor(tensor);
    if (!view) {
      return false;
    }
    *next++ = static_cast<std::int64_t>(view->dtype);
    *next++ = static_cast<std::int64_t>(view->device.kind) << 32 | view->device.index;
    *next++ = view->rank;
    next = std::copy(view->shape.begin(), view->shape.end(), next);
    next = std::copy(view->strides.begin(), view->strides.end(), next);
  }
  return true;
}

int CallTable::find(nb::handle q, nb::handle k, nb::handle v) const {
  Key key;
  if (!read(key, {q, k, v})) {
    return -1;
  }
  const auto found = numbers_.find(key);
  return found == numbers_.end() ? -1 : found->second;
}

int CallTable::add(nb::handle q, nb::handle k, nb::handle v) {
  Key key;
  if (!read(key, {q, k, v})) {
    refuse("q, k, v", "other objects", "torch tensors");
  }
  return numbers_.try_emplace(key, static_cast<int>(numbers_.size())).first->second;
}

}  // namespace tessera::python
