// Calls that were prepared, by the tensors that they are for.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

namespace tessera::python {

// Of one set of options: a number for q, k and v of these shapes, strides, dtypes and devices. The calls themselves are
// Python's, whose garbage collector does not see what C++ holds.
class CallTable {
 public:
  // -1 where there is none, and where one of them is no torch tensor that Tessera has.
  int find(nanobind::handle q, nanobind::handle k, nanobind::handle v) const;
  // The number is how many there were before. Throws Error(invalid_argument) for what is no such tensor.
  int add(nanobind::handle q, nanobind::handle k, nanobind::handle v);

 private:
  // For each tensor dtype, device, rank, four extents and four strides.
  static constexpr std::size_t kNumbers = 11;
  using Key = std::array<std::int64_t, 3 * kNumbers>;
  struct Hash {
    std::size_t operator()(const Key& key) const;
  };

  static bool read(Key& key, std::array<nanobind::handle, 3> tensors);

  std::unordered_map<Key, int, Hash> numbers_;
};

}  // namespace tessera::python
